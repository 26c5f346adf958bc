"""Published checkpoints as Transformers models.

`load_original` reads the layouts of `original_layouts`. The architecture is read off the shapes, and every error speaks
in the source's names.
"""

import argparse
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
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
from .original_labels import label_fields
from .original_layouts import LAYOUTS, STAGES, Layout, StateDict
from .variants import CONFIG_CLASSES, VARIANTS, VariantConfig, variant_of

CLASSIFICATION_HEAD = "classifier.weight"
SEGMENTATION_HEAD = "decode_head.classifier.weight"
LATERAL = "decode_head.lateral_convs.0.weight"


def load_original(
    path: str | os.PathLike[str], num_channels: int | None = None, **config_overrides: Any
) -> PreTrainedModel:
    """The model of a published checkpoint, in evaluation mode and float32, with family and variant recognised.

    Args:
        path: a .pth or .safetensors file: the published PVT, PVTv2 or P2T classification checkpoint (bare, or under
            `model` or `state_dict`, with or without `module.` before every key), a timm PVTv2 state dict (or timm's
            folder with it, or that of its `features_only` model), or MMSegmentation's Semantic FPN, whose `meta` names
            the labels; optimizer state and auxiliary heads are left.
        num_channels: of the images, where they are others than the checkpoint's: see `for_channels`.
        config_overrides: configuration fields to set, such as `id2label`, or `image_size=(height, width)` for a PVT
            whose position embeddings belong to images that are not square.

    Returns:
        The segmenter or image classifier where the checkpoint has such a head, the base model where it has none. Where
        nothing names them, 1,000 classes are ImageNet's and the 150 labels of a segmenter ADE20K's. The palette of a
        segmenter's labels, where there is one, is `config.palette`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint, holds code, or its keys and shapes do not fit; the message names
            them.
    """
    weights, meta = read_checkpoint(path)
    model: Any = build_model(weights, recognise_layout(weights, path), meta, config_overrides, path)
    if num_channels is not None:
        model.set_num_channels(num_channels)
    return model


def build_model(
    weights: StateDict, layout: Layout, meta: dict[str, Any], overrides: dict[str, Any], path: str | os.PathLike[str]
) -> PreTrainedModel:
    """The model of a recognised checkpoint; `path` is for messages."""
    auto_class: Any = AutoModel
    if layout.is_segmentation:
        auto_class = AutoModelForSemanticSegmentation
    elif layout.name(CLASSIFICATION_HEAD) in weights:
        auto_class = AutoModelForImageClassification
    head = weights.get(layout.name(SEGMENTATION_HEAD if layout.is_segmentation else CLASSIFICATION_HEAD))
    count = head.shape[0] if head is not None and head.dim() else 0
    overrides = label_fields(meta, overrides, count, layout.is_segmentation) | overrides
    config = read_config(weights, layout, overrides, path)
    with torch.device("meta"):
        model: PreTrainedModel = AUTO_CLASSES[type(config)][auto_class](config)
    model.load_state_dict(convert(weights, layout, model, path), strict=True, assign=True)
    return model.eval()


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[StateDict, dict[str, Any]]:
    """The flat state dict of a file, out of the containers around it, and its `meta`. Never runs code."""
    path = checkpoint_file(path)
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
    for key, weight in content.items():
        check_weight(key, weight, path)
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): weight for key, weight in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def check_weight(key: str, weight: Tensor, path: Path) -> None:
    """One sentence for a tensor that is no weight: not dense, no floats (a batch norm counts), or larger than its file.

    Raises:
        ValueError: it is one of these.
    """
    is_dense = weight.layout is torch.strided and not (weight.is_quantized or weight.is_meta)
    if not is_dense or not (weight.is_floating_point() or key.endswith("num_batches_tracked")):
        kind = "without values" if weight.is_meta else f"in the layout {weight.layout}"
        raise ValueError(
            f"{path} is refused: {key} is of the type {weight.dtype} {kind}, expected dense floating-point weights; "
            "convert them before saving."
        )
    if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        raise ValueError(
            f"{path} is refused: {key} declares the shape {tuple(weight.shape)}, which is more than the file holds."
        )


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the one in a folder as timm saves it: its config.json names no `model_type`."""
    path = Path(path)
    if not path.is_dir():
        return path
    config = path / "config.json"
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    if not files or not config.is_file() or "model_type" in json.loads(config.read_text(encoding="utf-8")):
        raise ValueError(f"{path} is a folder, expected a checkpoint file; open a saved model with `from_pretrained`.")
    return files[0]


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again.") from error


def _read_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path) and _unpacked_size(path) > path.stat().st_size:
        raise ValueError(f"{path} is refused: it unpacks to more than it holds, and PyTorch does not compress weights.")
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


def _unpacked_size(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # PyTorch says what is wrong


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
    if layout.is_segmentation:
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
    variant = variant_of(layout.model_type, fields)
    if variant:
        fields["drop_path_rate"] = VARIANTS[variant].drop_path_rate
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
        expected = layout.shape(ours, tuple(parameter.shape))
        if weights[theirs].shape != expected:
            misshapen.append(f"{theirs} {tuple(weights[theirs].shape)} instead of {expected}")
            continue
        weight = layout.part(weights[theirs], ours)
        converted[ours] = weight.to(torch.float32 if parameter.is_floating_point() else parameter.dtype, copy=True)
    problems = {"unknown": unknown, "missing": dict.fromkeys(missing), "misshapen": dict.fromkeys(misshapen)}
    report = [f"{kind} keys: {_listing(sorted(keys))}" for kind, keys in problems.items() if keys]
    if report:
        raise ValueError(f"{path}, recognised as {layout.source}, does not fit: {'; '.join(report)}.")
    return converted


def _listing(keys: Iterable[str], limit: int = 8) -> str:
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
