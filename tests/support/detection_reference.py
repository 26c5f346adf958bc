"""What MMDetection 2.13.0 computes with the published detectors: weights, inputs, ground truth, outputs.

As in `reference`, weights and inputs are drawn from names; the outputs are in `fixtures/detection`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import detector_keys
import numpy as np
import reference
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt.original_checkpoints import recognise_layout
from hf_pvt.original_layouts import Layout

RECORDED = {
    "retinanet": ("pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li", "p2t_tiny"),
    "mask_rcnn": ("pvt_small", "pvt_v2_b1", "pvt_v2_b2_li", "p2t_small"),
}


@dataclass(frozen=True)
class Case:
    """A batch (B, 3, H, W), the sizes (height, width) of its images, and their objects as a detector takes them."""

    name: str
    pixel_values: Tensor
    pixel_mask: Tensor
    valid: list[tuple[int, int]]
    original: list[tuple[int, int]]
    labels: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Recorded:
    """One detector on one variant."""

    detector: str
    variant: str

    def __str__(self) -> str:
        return f"{self.detector}-{self.variant}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        with self._open() as file:
            return {name: json.loads(text) for name, text in file.metadata().items() if name != "salt"}

    def _open(self) -> Any:
        return safe_open(detector_keys.FOLDER / f"{self.detector}.safetensors", "pt")

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor of this variant, such as "single/test/neck/0/samples"."""
        with self._open() as file:
            return file.get_tensor(f"{self.detector}/{self.variant}/{name}")

    def names(self, prefix: str) -> Iterator[str]:
        """What is recorded under a prefix that ends in "/"."""
        whole = f"{self.detector}/{self.variant}/{prefix}"
        with self._open() as file:
            yield from (key.removeprefix(whole) for key in file.keys() if key.startswith(whole))  # noqa: SIM118

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The published weight `name`: as everywhere, but with gains, and stored biases, in the last layers."""
        if name in set(self.names("bias/")):
            return self.tensor(f"bias/{name}")
        gain = self.metadata["extra"][f"{self.detector}.{self.variant}"].get(name)
        if gain is None:
            return reference.weight(name, shape)
        return torch.from_numpy((reference.drawn_weight(name, shape) * gain).astype(np.float32))

    @cached_property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """Key and shape of every weight of the published checkpoint."""
        (row,) = (
            row
            for row in hf_pvt.PUBLISHED_DETECTORS.values()
            if (row.model_type, row.variant) == (self.detector, self.variant.replace("_", "-"))
        )
        return detector_keys.published_keys(row)

    def samples(self, output: Tensor, count: int) -> Tensor:
        """The values of an output at the flat indices of the recorded ones."""
        return reference.samples(output, count)

    @property
    def layout(self) -> Layout:
        return recognise_layout(detector_keys.without_values(self.keys), str(self))

    def model(self, path: Path) -> PreTrainedModel:
        """The detector, by way of a published checkpoint at `path`."""
        weights = {name: self.weight(name, shape) for name, shape in self.keys.items()}
        torch.save({"meta": {}, "state_dict": weights}, path)
        return hf_pvt.load_original(path)

    def case(self, name: str) -> Case:
        """ "single", "pair", or "none": a single image without objects."""
        (height, width), images = self.metadata["cases"]["single" if name == "none" else name]
        shape = (len(images), 3, height, width)
        number = self.metadata["draws"][f"{self.detector}/{self.variant}/{name}"]
        drawn = reference.draw(f"image:{self.detector}:{self.variant}:{name}:{number}", shape)
        valid, original = [tuple(sizes[1]) for sizes in images], [tuple(sizes[2]) for sizes in images]
        pixel_mask = torch.zeros(len(images), height, width, dtype=torch.int64)
        for mask, (inner_height, inner_width) in zip(pixel_mask, valid, strict=True):
            mask[:inner_height, :inner_width] = 1
        objects = self.metadata["truth_retinanet" if self.detector == "retinanet" else "truth"][name]
        labels = [labels_of(some, size, (height, width)) for some, size in zip(objects, valid, strict=True)]
        return Case(name, torch.from_numpy(drawn.astype(np.float32)), pixel_mask, valid, original, labels)


def labels_of(objects: list[list[float]], valid: tuple[int, int], padded: tuple[int, int]) -> dict[str, Tensor]:
    """Objects x1, y1, x2, y2, label in pixels; their masks are an inscribed ellipse and the whole box, by turns."""
    values = torch.tensor(objects, dtype=torch.float32).view(-1, 5).double()  # the recorded ones were rounded
    x1, y1, x2, y2 = values[:, :4].unbind(1)
    height, width = valid
    boxes = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    rows = torch.arange(padded[0], dtype=torch.float64)[:, None] + 0.5
    columns = torch.arange(padded[1], dtype=torch.float64) + 0.5
    masks = torch.zeros(len(values), *padded, dtype=torch.bool)
    for number, (left, top, right, bottom) in enumerate(values[:, :4].tolist()):
        across = (columns - (left + right) / 2) / ((right - left) / 2)
        down = (rows - (top + bottom) / 2) / ((bottom - top) / 2)
        masks[number] = across**2 + down**2 <= 1 if number % 2 == 0 else (across.abs() <= 1) & (down.abs() <= 1)
    return {"class_labels": values[:, 4].long(), "boxes": torch.stack(boxes, dim=1), "masks": masks}


class Gradients:
    """A model's gradients in the place of its weights, 0 where there is none, for `to_original`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.base_model_prefix = model.base_model_prefix
        self.parameters = dict(model.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.parameters.items()
        }
