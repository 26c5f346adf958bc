"""Key and shape of every weight of the published detectors, whose heads' are in `fixtures/detection`."""

import json
import re
from functools import cache

import reference
import torch
from torch import Tensor

import hf_pvt
from hf_pvt.published.detectors import PublishedDetector

FOLDER = reference.FIXTURES / "detection"
Shapes = dict[str, tuple[int, ...]]


@cache
def _read(name: str) -> dict[str, dict[str, list[int]]]:
    content: dict[str, dict[str, list[int]]] = json.loads((FOLDER / name).read_text())
    return content


def _head_keys(model_type: str, variant: str) -> Shapes:
    widths = "-".join(str(width) for width in hf_pvt.VARIANTS[variant].hidden_sizes)
    return {key: tuple(shape) for key, shape in _read("keys.json")[f"{model_type}.{widths}"].items()}


def keys_of(model_type: str, variant: str) -> Shapes:
    """The authors' detector on their pyramid, which is as in MMSegmentation's checkpoint, but for P2T's classifier."""
    pyramid = reference.segmentation_keys()[variant].items()
    heads = _head_keys(model_type, variant)
    return {key: shape for key, shape in pyramid if re.match(r"backbone\.(?!head\.)", key)} | heads


def published_keys(row: PublishedDetector) -> Shapes:
    """The authors' checkpoint."""
    return keys_of(row.model_type, row.variant)


def with_own_pyramid() -> list[str]:
    """Variants whose keys in MMDetection's own layout are in the fixtures."""
    return [variant.replace("_", "-") for variant in _read("own_pyramid_keys.json")]


def own_keys(row: PublishedDetector) -> Shapes:
    """MMDetection's own checkpoint."""
    pyramid = _read("own_pyramid_keys.json")[row.variant.replace("-", "_")].items()
    return {key: tuple(shape) for key, shape in pyramid} | _head_keys(row.model_type, row.variant)


def without_values(keys: Shapes) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


def checkpoint(row: PublishedDetector) -> dict[str, Tensor]:
    """The authors' checkpoint, drawn from its keys."""
    return {key: reference.weight(key, shape) for key, shape in published_keys(row).items()}
