"""Published checkpoints as Transformers models: what they call the weights, and what they say of the architecture.

`load_original` reads the classification checkpoints of PVT, PVTv2 and P2T as their authors publish them, timm's PVTv2,
and MMSegmentation's Semantic FPN on any of the three. A `Layout` is an ordered table from our names to a source's; the
architecture is read off the shapes found under those names, and every error speaks in the source's names.
"""

import argparse
import math
import os
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

from .auto import AUTO_CLASSES
from .variants import CONFIG_CLASSES, VARIANTS, VariantConfig

StateDict = dict[str, Tensor]
Renames = tuple[tuple[str, str], ...]

STAGES = 4
CLASSIFICATION_HEAD = "classifier.weight"
SEGMENTATION_HEAD = "decode_head.classifier.weight"
LATERAL = "decode_head.lateral_convs.0.weight"


def _per_stage(*renames: tuple[str, str]) -> Renames:
    """The renames for each stage: `<i>` counts from 0 as ours do, `<n>` from 1 as the published ones."""
    return tuple(
        (pattern.replace("<i>", str(i)), name.replace("<i>", str(i)).replace("<n>", str(i + 1)))
        for i in range(STAGES)
        for pattern, name in renames
    )


# Ours -> published, applied in order as `re.sub`.
PUBLISHED: Renames = (
    *_per_stage(
        (r"^encoder\.layers\.<i>\.patch_embedding\.proj\.", r"patch_embed<n>.proj."),
        (r"^encoder\.layers\.<i>\.patch_embedding\.layer_norm\.", r"patch_embed<n>.norm."),
        (r"^encoder\.layers\.<i>\.patch_embedding\.position_embeddings", r"pos_embed<n>"),
        (r"^encoder\.layers\.<i>\.patch_embedding\.cls_token", r"cls_token"),
        (r"^encoder\.layers\.<i>\.pyramid_pooling\.convs\.", r"d_convs<n>."),
        (r"^encoder\.layers\.<i>\.blocks\.", r"block<n>."),
        (r"^encoder\.layers\.<i>\.layer_norm\.", r"norm<n>."),
    ),
    (r"^encoder\.layer_norm\.", r"norm."),
    (r"^classifier\.", r"head."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.query\.", r".attn.q."),
    (r"\.attention\.(key|value)\.", r".attn.kv."),
    (r"\.attention\.proj\.", r".attn.proj."),
    (r"\.attention\.spatial_reduction\.", r".attn.sr."),
    (r"\.attention\.layer_norm\.", r".attn.norm."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)

# P2T wraps the projections and has no module around the depthwise convolution.
PUBLISHED_P2T: Renames = (
    *PUBLISHED,
    (r"\.attn\.(q|kv)\.", r".attn.\1.0."),
    (r"\.mlp\.dwconv\.dwconv\.", r".mlp.conv."),
)

TIMM_PVT_V2: Renames = (
    *PUBLISHED,
    (r"^patch_embed1\.", r"patch_embed."),
    *((rf"^patch_embed{i + 1}\.", rf"stages.{i}.downsample.") for i in range(1, STAGES)),
    *((rf"^block{i + 1}\.", rf"stages.{i}.blocks.") for i in range(STAGES)),
    *((rf"^norm{i + 1}\.", rf"stages.{i}.norm.") for i in range(STAGES)),
    (r"\.mlp\.dwconv\.dwconv\.", r".mlp.dwconv."),
)

# MMSegmentation puts the pyramid under `backbone` and splits the decoder into `neck` and `decode_head`.
SEMANTIC_FPN: Renames = (
    (r"^decode_head\.(lateral_convs|fpn_convs)\.(\d+)\.", r"neck.\1.\2.conv."),
    (r"^decode_head\.classifier\.", r"decode_head.conv_seg."),
    (r"\.batch_norm\.", r".bn."),
    (r"^(?!neck\.|decode_head\.)", r"backbone."),
)


@dataclass(frozen=True)
class Layout:
    """How one source names the weights of one family."""

    source: str
    model_type: str
    marker: str  # a key that this layout has and no other
    renames: Renames
    ignored: str = "$^"  # keys without a use here, as a pattern

    def name(self, ours: str) -> str:
        """The source's name of our weight `ours` (without the base model's prefix)."""
        for pattern, replacement in self.renames:
            ours = re.sub(pattern, replacement, ours)
        return ours


CLASSIFICATION_LAYOUTS = (
    Layout("published P2T", "p2t", "d_convs1.0.weight", PUBLISHED_P2T),
    Layout("published PVT", "pvt", "pos_embed1", PUBLISHED),
    Layout("published PVTv2", "pvt_v2", "block1.0.mlp.dwconv.dwconv.weight", PUBLISHED),
    Layout("timm PVTv2", "pvt_v2", "stages.0.blocks.0.mlp.dwconv.weight", TIMM_PVT_V2),
)

# An auxiliary head serves training only, as does the classifier that P2T's pyramid still carries there.
UNUSED_IN_SEGMENTATION = r"^auxiliary_head\.|^backbone\.head\."

LAYOUTS = (
    *CLASSIFICATION_LAYOUTS,
    *(
        Layout(
            f"MMSegmentation Semantic FPN on {layout.source}",
            layout.model_type,
            f"backbone.{layout.marker}",
            (*layout.renames, *SEMANTIC_FPN),
            UNUSED_IN_SEGMENTATION,
        )
        for layout in CLASSIFICATION_LAYOUTS[:3]
    ),
)


def load_original(path: str | os.PathLike[str], **config_overrides: Any) -> PreTrainedModel:
    """The model of a published checkpoint, in evaluation mode and float32, with family and variant recognised.

    Args:
        path: a .pth or .safetensors file: the published PVT, PVTv2 or P2T classification checkpoint (bare, or under
            `model` or `state_dict`, with or without `module.` before every key), a timm PVTv2 state dict, or
            MMSegmentation's Semantic FPN, whose `meta` names the labels; optimizer state and auxiliary heads are left.
        config_overrides: configuration fields to set, such as `id2label`, or `image_size=(height, width)` for a PVT
            whose position embeddings belong to images that are not square.

    Returns:
        The segmenter or image classifier where the checkpoint has such a head, the base model where it has none. The
        palette of a segmenter's labels, where there is one, is `config.palette`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint, holds code, or its keys and shapes do not fit; the message names
            them.
    """
    weights, meta = read_checkpoint(path)
    layout = recognise_layout(weights, path)
    config = read_config(weights, layout, label_fields(meta) | config_overrides, path)
    auto_class: Any = AutoModel
    if layout.name(SEGMENTATION_HEAD) in weights:
        auto_class = AutoModelForSemanticSegmentation
    elif layout.name(CLASSIFICATION_HEAD) in weights:
        auto_class = AutoModelForImageClassification
    with torch.device("meta"):
        model: PreTrainedModel = AUTO_CLASSES[type(config)][auto_class](config)
    model.load_state_dict(convert(weights, layout, model, path), strict=True, assign=True)
    return model.eval()


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[StateDict, dict[str, Any]]:
    """The flat state dict of a file, out of the containers around it, and its `meta`. Never runs code."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a checkpoint file; open a saved model with `from_pretrained`.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download the checkpoint again.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    for container in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__} without weights, expected a state dict.")
    strangers = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise ValueError(f"{path} is not a state dict: no named tensors under {_listing(strangers)}.")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): weight for key, weight in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def label_fields(meta: dict[str, Any]) -> dict[str, Any]:
    """Configuration fields from what MMSegmentation notes beside the weights: names of the labels and their colours."""
    meta = meta.get("dataset_meta", meta)
    names, palette = (meta.get(name.upper()) or meta.get(name) for name in ("classes", "palette"))
    if not names:
        return {}
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }
    if palette is not None and len(palette) == len(names):
        fields["palette"] = [[int(value) for value in colour] for colour in palette]
    return fields


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again.") from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            # Training scripts put their argparse.Namespace beside the weights; it holds plain values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises whatever the unpickler stumbles over
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise ValueError(
                    f"{path} is refused: it is a pickle that would run code ({refused[1]}); only tensors and plain "
                    "values are read."
                ) from error
            raise ValueError(
                f"{path} is not a PyTorch checkpoint, or not a whole one; expected a .pth or .safetensors file."
            ) from error


def recognise_layout(weights: StateDict, path: str | os.PathLike[str]) -> Layout:
    """The layout whose marker is among the keys."""
    for layout in LAYOUTS:
        if layout.marker in weights:
            return layout
    raise ValueError(
        f"{path} is none of: {', '.join(layout.source for layout in LAYOUTS)}; its keys are {_listing(weights)}."
    )


def read_config(
    weights: StateDict, layout: Layout, overrides: dict[str, Any], path: str | os.PathLike[str]
) -> VariantConfig:
    """The configuration that the shapes tell. Heads cannot be told: all published models have 1, 2, 5 and 8."""

    def shape(ours: str) -> tuple[int, ...]:
        """The shape of our weight `ours` in the checkpoint, () where it has none."""
        weight = weights.get(layout.name(ours))
        return () if weight is None else tuple(weight.shape)

    def depth(stage: int) -> int:
        prefix = layout.name(f"encoder.layers.{stage}.blocks.")
        return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})

    patches = [f"encoder.layers.{stage}.patch_embedding.proj.weight" for stage in range(STAGES)]
    expansions = [f"encoder.layers.{stage}.blocks.0.mlp.dense1.weight" for stage in range(STAGES)]
    needed = [*patches, *expansions]
    if layout.marker.startswith("backbone."):
        needed += [LATERAL, SEGMENTATION_HEAD]
    unusable = [layout.name(ours) for ours in needed if len(shape(ours)) < 2 or 0 in shape(ours)]
    if unusable:
        raise ValueError(
            f"{path}, recognised as {layout.source}, is incomplete; missing or misshapen keys: {_listing(unusable)}."
        )
    fields: dict[str, Any] = {
        "num_channels": shape(patches[0])[1],
        "hidden_sizes": tuple(shape(patch)[0] for patch in patches),
        "depths": tuple(depth(stage) for stage in range(STAGES)),
        "mlp_ratios": tuple(shape(expansion)[0] // shape(expansion)[1] for expansion in expansions),
    }
    if layout.model_type == "pvt_v2":
        reduction = f"encoder.layers.{STAGES - 1}.blocks.0.attention.spatial_reduction.weight"
        fields["linear_attention"] = bool(shape(reduction))
    if layout.model_type == "pvt" and "image_size" not in overrides:
        fields["image_size"] = _square_image_size(weights[layout.marker], path)
    if shape(SEGMENTATION_HEAD):
        fields["fpn_hidden_size"] = shape(LATERAL)[0]
        fields["decoder_hidden_size"] = shape(SEGMENTATION_HEAD)[1]
    head = shape(SEGMENTATION_HEAD) or shape(CLASSIFICATION_HEAD)
    if head and "id2label" not in overrides:
        fields["num_labels"] = head[0]
    for variant in VARIANTS.values():
        if (
            variant.model_type == layout.model_type
            and variant.architecture.items() <= {**fields, "drop_path_rate": variant.drop_path_rate}.items()
        ):
            fields["drop_path_rate"] = variant.drop_path_rate
    try:
        return CONFIG_CLASSES[layout.model_type](**(fields | overrides))
    except StrictDataclassError as error:
        raise ValueError(
            f"{path}, recognised as {layout.source}, has no valid configuration: {error.__cause__}"
        ) from error


def _square_image_size(position_embeddings: Tensor, path: str | os.PathLike[str]) -> int:
    """The side in pixels of the square image whose first grid has this many tokens, 4 pixels apart."""
    tokens = position_embeddings.shape[1] if position_embeddings.dim() > 1 else 0
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"{path}: the position embeddings belong to {tokens} tokens, which make no square; pass "
            "image_size=(height, width) of the images that the model was trained on."
        )
    return 4 * side


def convert(weights: StateDict, layout: Layout, model: PreTrainedModel, path: str | os.PathLike[str]) -> StateDict:
    """Our state dict of `model` from a source's weights; every key of both sides has to be used, in its shape."""
    converted: StateDict = {}
    missing: list[str] = []
    misshapen: list[str] = []
    unknown = {key for key in weights if not re.search(layout.ignored, key)}
    for ours, parameter in model.state_dict().items():
        theirs = layout.name(ours.removeprefix(f"{model.base_model_prefix}."))
        unknown.discard(theirs)
        if theirs not in weights:
            missing.append(theirs)
            continue
        weight = _part_of(weights[theirs], ours)
        if weight.dim() == 4 and parameter.dim() == 2 and weight.shape[2:] == (1, 1):
            weight = weight.flatten(1)  # P2T's 1x1 convolutions are linears here
        if weight.shape != parameter.shape:
            expected = (2 * parameter.shape[0], *parameter.shape[1:]) if _is_half(ours) else tuple(parameter.shape)
            misshapen.append(f"{theirs} {tuple(weights[theirs].shape)} instead of {expected}")
            continue
        converted[ours] = weight.to(torch.float32 if weight.is_floating_point() else weight.dtype, copy=True)
    problems = {"unknown": unknown, "missing": dict.fromkeys(missing), "misshapen": dict.fromkeys(misshapen)}
    report = [f"{kind} keys: {_listing(sorted(keys))}" for kind, keys in problems.items() if keys]
    if report:
        raise ValueError(f"{path}, recognised as {layout.source}, does not fit: {'; '.join(report)}.")
    return converted


def _is_half(ours: str) -> bool:
    """Published checkpoints hold keys and values in one matrix, keys first."""
    return ".attention.key." in ours or ".attention.value." in ours


def _part_of(weight: Tensor, ours: str) -> Tensor:
    if _is_half(ours) and weight.dim() > 0:
        return weight.chunk(2)[0 if ".attention.key." in ours else -1]
    return weight


def _listing(keys: Iterable[str], limit: int = 8) -> str:
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
