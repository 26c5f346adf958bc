"""What a checkpoint's shapes tell of the configuration, and the sentences where they tell none."""

import math
import os
from collections.abc import Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig

from .checkpoint_files import listing
from .pyramid_layouts import STAGES, Layout, StateDict


def pyramid_fields(
    weights: StateDict,
    layout: Layout,
    overrides: dict[str, Any],
    heads: Iterable[str],
    path: str | os.PathLike[str],
) -> dict[str, Any]:
    """The fields of the pyramid that the shapes tell; also needed are `heads`, weights of ours.

    Raises:
        ValueError: a weight that tells a field, or one of `heads`, is missing or misshapen.
    """

    def depth(stage: int) -> int:
        prefix = layout.name(f"encoder.layers.{stage}.blocks.")
        positions = layout.name(f"encoder.layers.{stage}.patch_embedding.position_embeddings")
        inside = (key.removeprefix(prefix) for key in weights if key.startswith(prefix) and key != positions)
        return len({key.split(".")[0] for key in inside})

    patches = [f"encoder.layers.{stage}.patch_embedding.proj.weight" for stage in range(STAGES)]
    expansions = [f"encoder.layers.{stage}.blocks.0.mlp.dense1.weight" for stage in range(STAGES)]
    shapes = {ours: shape_of(weights, layout, ours) for ours in (*patches, *expansions, *heads)}
    unusable = [layout.name(ours) for ours, shape in shapes.items() if len(shape) < 2 or 0 in shape]
    if unusable:
        raise ValueError(
            f"{path}, recognised as {layout.source}, is incomplete; missing or misshapen keys: {listing(unusable)}."
        )
    fields: dict[str, Any] = {
        "num_channels": shapes[patches[0]][1],
        "hidden_sizes": tuple(shapes[patch][0] for patch in patches),
        "depths": tuple(depth(stage) for stage in range(STAGES)),
        "mlp_ratios": tuple(shapes[expansion][0] // shapes[expansion][1] for expansion in expansions),
    }
    if layout.model_type == "pvt_v2":
        reduction = f"encoder.layers.{STAGES - 1}.blocks.0.attention.spatial_reduction.weight"
        fields["linear_attention"] = bool(shape_of(weights, layout, reduction))
    if layout.model_type == "pvt" and "image_size" not in overrides:
        fields["image_size"] = _square_image_size(weights[layout.marker], path)
    return fields


def shape_of(weights: StateDict, layout: Layout, ours: str) -> tuple[int, ...]:
    """The shape of our weight `ours` in the checkpoint, () where it has none."""
    weight = weights.get(layout.name(ours))
    return () if weight is None else tuple(weight.shape)


def valid_config(
    config_class: type[PreTrainedConfig], fields: dict[str, Any], layout: Layout, path: str | os.PathLike[str]
) -> Any:
    """The configuration; a sentence that names the file where it is none."""
    try:
        return config_class(**fields)
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
