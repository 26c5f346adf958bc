"""The published implementations' weights, inputs and outputs.

Weights and inputs are drawn from their names, so that two implementations can agree on them without files; the outputs
in `fixtures/outputs.safetensors` were computed with the published code. Fixture names have `_` for our `-`.
"""

import json
import math
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from paths import FIXTURES
from safetensors import safe_open
from torch import Tensor

SALT = "hf_pvt"
RECORDED_LOSS = "pvt_v2_b0/semantic_fpn/64x96"
# The deepest variants, which are allowed ten times as much.
DEEPEST = ("pvt-large", "pvt-v2-b4", "pvt-v2-b5", "p2t-large")


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(f"{SALT}:{name}".encode())).standard_normal(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the published weight `name`."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    return torch.from_numpy(np.asarray(drawn_weight(name, shape), dtype=np.float32))


def drawn_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same in float64."""
    leaf, drawn = name.rpartition(".")[2], draw(name, shape)
    if leaf == "running_var":
        drawn = 0.5 + abs(drawn)
    elif leaf.startswith("pos_embed") or leaf == "cls_token":
        drawn = 0.2 * drawn
    elif len(shape) >= 2:
        drawn = drawn / math.sqrt(math.prod(shape[1:]))
    elif leaf == "weight":
        drawn = 1 + 0.1 * drawn
    else:
        drawn = 0.1 * drawn
    return drawn


def image(height: int, width: int) -> Tensor:
    """The input (1, 3, H, W) of the outputs at this size."""
    shape = (1, 3, height, width)
    return torch.from_numpy(draw(f"image:{'x'.join(map(str, shape))}", shape).astype(np.float32))


@cache
def published_keys() -> dict[str, dict[str, list[int]]]:
    """Key and shape of every weight of the published checkpoints, by our variant names."""
    keys = json.loads((FIXTURES / "keys.json").read_text())
    return {variant.replace("_", "-"): shapes for variant, shapes in keys.items()}


def checkpoint(variant: str) -> dict[str, Tensor]:
    """The published classification checkpoint of a variant, drawn from its keys."""
    return {key: weight(key, tuple(shape)) for key, shape in published_keys()[variant].items()}


@cache
def segmentation_keys() -> dict[str, dict[str, tuple[int, ...]]]:
    """Key and shape of every weight of MMSegmentation's Semantic FPN checkpoints, by our variant names."""
    keys = {}
    for variant, difference in json.loads((FIXTURES / "semantic_fpn_keys.json").read_text()).items():
        name = variant.replace("_", "-")
        shapes = {
            f"backbone.{key}": shape for key, shape in published_keys()[name].items() if key not in difference["absent"]
        }
        keys[name] = {key: tuple(shape) for key, shape in (shapes | difference["head"]).items()}
    return keys


def segmentation_checkpoint(variant: str) -> dict[str, Tensor]:
    """MMSegmentation's Semantic FPN checkpoint of a variant, drawn from its keys."""
    return {key: weight(key, shape) for key, shape in segmentation_keys()[variant].items()}


def segmentation_backbone(variant: str) -> dict[str, Tensor]:
    """The checkpoint, without a head, with which the feature maps were recorded: inside a segmentation model."""
    shapes = published_keys()[variant].items()
    return {key: weight(f"backbone.{key}", tuple(shape)) for key, shape in shapes if not key.startswith("head.")}


@cache
def outputs() -> dict[str, Tensor]:
    """All recorded outputs."""
    with safe_open(FIXTURES / "outputs.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def recorded_sizes(variant: str, kind: str) -> Iterator[tuple[int, int]]:
    """The sizes (H, W) at which "logits", "features" or "semantic_fpn" of a variant were recorded."""
    prefix = f"{variant.replace('-', '_')}/{kind}/"
    sizes = {key.removeprefix(prefix).split("/")[0] for key in outputs() if key.startswith(prefix)}
    for size in sorted(sizes):
        height, width = size.split("x")
        yield int(height), int(width)


def segmentation_logits(variant: str, height: int, width: int) -> tuple[tuple[int, ...], Tensor]:
    """Shape and 2048 samples of the recorded logits at 1/4 of the size."""
    prefix = f"{variant.replace('-', '_')}/semantic_fpn/{height}x{width}"
    return tuple(outputs()[f"{prefix}/shape"].tolist()), outputs()[f"{prefix}/samples"]


def segmentation_labels() -> Tensor:
    """The label map (1, H, W) whose loss was recorded: 150 labels and 255, which is ignored."""
    return outputs()[f"{RECORDED_LOSS}/labels"][None].long()


def segmentation_loss() -> float:
    """The recorded loss: MMSegmentation divides the labelled pixels' sum by all pixels."""
    return outputs()[f"{RECORDED_LOSS}/loss"].item()


def logits(variant: str, height: int, width: int) -> Tensor:
    """Recorded class logits (1, 1000)."""
    return outputs()[f"{variant.replace('-', '_')}/logits/{height}x{width}"]


def features(variant: str, height: int, width: int) -> list[tuple[tuple[int, ...], Tensor]]:
    """Shape and 256 samples of each recorded stage's map."""
    prefix = f"{variant.replace('-', '_')}/features/{height}x{width}/stage"
    return [
        (tuple(outputs()[f"{prefix}{stage}/shape"].tolist()), outputs()[f"{prefix}{stage}/samples"])
        for stage in range(1, 5)
    ]


def samples(tensor: Tensor, count: int = 256) -> Tensor:
    """The values of a tensor at the flat indices at which the recorded ones were taken."""
    index = np.linspace(0, tensor.numel() - 1, count).astype(np.int64)  # float64, truncated
    return tensor.contiguous().flatten()[torch.from_numpy(index)]


def relative_error(output: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((output - expected).abs().max() / expected.abs().max()).item()


def tolerance(variant: str) -> float:
    """What float32 may differ from the recorded float64, as a `relative_error`."""
    return 1e-4 if variant in DEEPEST else 1e-5
