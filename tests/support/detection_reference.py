"""What MMDetection 2.13.0 computes with the published detectors: weights, inputs, ground truth, outputs.

As in `reference`, weights and inputs are drawn from names; the outputs are in `fixtures/detection`. RetinaNet's and
Mask R-CNN's have their cases in the metadata, the other five theirs among the tensors.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import detector_keys
import numpy as np
import reference
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hf_pvt.original.load_original import build_model, recognise_layout
from hf_pvt.original.pyramid_layouts import Layout

RECORDED = {
    "retinanet": ("pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li", "p2t_tiny"),
    "mask_rcnn": ("pvt_small", "pvt_v2_b1", "pvt_v2_b2_li", "p2t_small"),
    "atss": ("pvt_v2_b0", "pvt_v2_b2_li"),
    "gfl": ("pvt_v2_b0", "pvt_v2_b2"),
    "cascade_mask_rcnn": ("pvt_v2_b0", "pvt_v2_b2_li"),
    "sparse_rcnn": ("pvt_v2_b0", "pvt_v2_b2"),
    "detr": ("pvt_small",),
}
CASES_IN_METADATA = ("retinanet", "mask_rcnn")


@dataclass(frozen=True)
class Case:
    """A batch (B, 3, H, W), the sizes (height, width) of its images, and their objects as a detector takes them."""

    name: str
    pixel_values: Tensor
    pixel_mask: Tensor
    valid: list[tuple[int, int]]
    original: list[tuple[int, int]]
    labels: list[dict[str, Tensor]]


@cache
def recording(detector: str) -> Any:
    """The file of a detector, open."""
    return safe_open(detector_keys.FOLDER / f"{detector}.safetensors", "pt")


@cache
def names_in(detector: str) -> tuple[str, ...]:
    return tuple(recording(detector).keys())


@dataclass(frozen=True)
class Recorded:
    """One detector on one variant."""

    detector: str
    variant: str

    def __str__(self) -> str:
        return f"{self.detector}-{self.variant}"

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor of this variant, such as "single/test/neck/0/samples"."""
        return recording(self.detector).get_tensor(f"{self.detector}/{self.variant}/{name}")

    def names(self, prefix: str) -> Iterator[str]:
        """What is recorded under a prefix that ends in "/"."""
        whole = f"{self.detector}/{self.variant}/{prefix}"
        yield from (key.removeprefix(whole) for key in names_in(self.detector) if key.startswith(whole))

    @cached_property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """Key and shape of every weight of the published checkpoint."""
        return detector_keys.keys_of(self.detector, self.variant.replace("_", "-"))

    @property
    def layout(self) -> Layout:
        return recognise_layout(detector_keys.without_values(self.keys), str(self))

    def weights(self) -> dict[str, Tensor]:
        """The published checkpoint."""
        return {name: self.weight(name, shape) for name, shape in self.keys.items()}

    def save(self, path: Path) -> None:
        """Writes the published checkpoint to a file."""
        torch.save({"meta": {}, "state_dict": self.weights()}, path)

    def model(self) -> PreTrainedModel:
        """The detector with these weights, as `load_original` builds it."""
        return build_model(self.weights(), self.layout, {}, {}, str(self))

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The published weight `name`."""
        return weight(self.detector, name, shape)

    def samples(self, output: Tensor, count: int) -> Tensor:
        """The values of an output at the flat indices of the recorded ones, which PyTorch rounded.

        numpy's `linspace` differs in the last bit.
        """
        index = torch.linspace(0, output.numel() - 1, count, dtype=torch.float64).long()
        return output.contiguous().flatten()[index]

    def case(self, name: str) -> Case:
        """ "one", or "two": with four objects and without any."""
        batch, height, width = self.tensor(f"{name}/image/size").tolist()
        valid, original = (
            [tuple(size) for size in self.tensor(f"{name}/image/{kind}").tolist()] for kind in ("valid", "original")
        )
        seed = int(self.tensor(f"{name}/image/seed"))
        drawn_of = f"image:{batch}x3x{height}x{width}" + (f":{seed}" if seed else "")
        drawn = reference.draw(drawn_of, (batch, 3, height, width))
        pixel_mask = mask_of(valid, height, width)
        pixel_values = torch.from_numpy(drawn.astype(np.float32)) * pixel_mask[:, None]
        labels = []
        for image, size in enumerate(valid):
            boxes, classes = (self.tensor(f"{name}/gt/{image}/{kind}") for kind in ("boxes", "labels"))
            objects = torch.cat((boxes, classes[:, None].to(boxes.dtype)), dim=1).tolist()
            labels.append(labels_of(objects, size, (height, width)))
        return Case(name, pixel_values, pixel_mask, valid, original, labels)


@dataclass(frozen=True)
class RecordedWithMetadata(Recorded):
    """One whose file has its cases and gains in the metadata, and biases of last layers among the tensors."""

    @cached_property
    def metadata(self) -> dict[str, Any]:
        content = recording(self.detector).metadata()
        return {name: json.loads(text) for name, text in content.items() if name != "salt"}

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As everywhere, but with gains, and stored biases, in the last layers."""
        if name in set(self.names("bias/")):
            return self.tensor(f"bias/{name}")
        gain = self.metadata["extra"][str(self).replace("-", ".")].get(name)
        if gain is None:
            return reference.weight(name, shape)
        return torch.from_numpy((reference.drawn_weight(name, shape) * gain).astype(np.float32))

    def samples(self, output: Tensor, count: int) -> Tensor:
        """The values of an output at the flat indices of the recorded ones."""
        return reference.samples(output, count)

    def case(self, name: str) -> Case:
        """ "single", "pair", or "none": a single image without objects."""
        (height, width), images = self.metadata["cases"]["single" if name == "none" else name]
        number = self.metadata["draws"][f"{self.detector}/{self.variant}/{name}"]
        drawn_of = f"image:{self.detector}:{self.variant}:{name}:{number}"
        drawn = reference.draw(drawn_of, (len(images), 3, height, width))
        valid, original = [tuple(sizes[1]) for sizes in images], [tuple(sizes[2]) for sizes in images]
        objects = self.metadata["truth_retinanet" if self.detector == "retinanet" else "truth"][name]
        labels = [labels_of(some, size, (height, width)) for some, size in zip(objects, valid, strict=True)]
        pixel_values = torch.from_numpy(drawn.astype(np.float32))
        return Case(name, pixel_values, mask_of(valid, height, width), valid, original, labels)


def recordings(*detectors: str) -> list[Any]:
    """All recorded variants of these detectors."""
    return [
        (RecordedWithMetadata if detector in CASES_IN_METADATA else Recorded)(detector, variant)
        for detector in detectors
        for variant in RECORDED[detector]
    ]


def mask_of(valid: list[tuple[int, int]], height: int, width: int) -> Tensor:
    """The pixel mask (B, H, W) of images of these sizes in the top left corner."""
    pixel_mask = torch.zeros(len(valid), height, width, dtype=torch.int64)
    for mask, (inner_height, inner_width) in zip(pixel_mask, valid, strict=True):
        mask[:inner_height, :inner_width] = 1
    return pixel_mask


def proposals(drawn: np.ndarray) -> np.ndarray:
    """Centres and sizes of boxes inside the image."""
    shares = 1 / (1 + np.exp(-2 * drawn))
    return np.concatenate((0.1 + 0.8 * shares[:, :2], 0.05 + 0.5 * shares[:, 2:]), axis=1)


# With weights drawn as everywhere all scores would be alike: what these keys have instead, by detector.
SPECIAL: dict[str, tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...]] = {
    "atss": (
        (r"bbox_head\.scales\.\d\.scale", lambda v: v + 1),
        (r"bbox_head\.atss_cls\.weight", lambda v: 2 * v),
        (r"bbox_head\.atss_cls\.bias", lambda v: v - 7),
    ),
    "gfl": (
        (r"bbox_head\.scales\.\d\.scale", lambda v: v + 1),
        (r"bbox_head\.gfl_cls\.weight", lambda v: 2 * v),
        (r"bbox_head\.gfl_cls\.bias", lambda v: v - 7),
        (r"bbox_head\.gfl_reg\.weight", lambda v: 3 * v),
        (r"bbox_head\.integral\.project", lambda v: np.arange(len(v))),
    ),
    "cascade_mask_rcnn": (
        (r"rpn_head\.rpn_reg\.weight", lambda v: 0.5 * v),
        (r"roi_head\.bbox_head\.\d\.fc_cls\.weight", lambda v: 7 * v),
    ),
    "sparse_rcnn": (
        (r"rpn_head\.init_proposal_bboxes\.weight", proposals),
        (r"roi_head\.bbox_head\.\d\.fc_reg\.weight", lambda v: 0.2 * v),
        (r"roi_head\.bbox_head\.\d\.fc_cls\.weight", lambda v: 1.5 * v),
        (r"roi_head\.bbox_head\.\d\.fc_cls\.bias", lambda v: v - 4),
    ),
    "detr": (
        (r"bbox_head\.query_embedding\.weight", lambda v: 16 * v),
        (r"bbox_head\.transformer\.decoder\.layers\.\d\.attentions\.1\.attn\.in_proj_weight", lambda v: 2 * v),
        (
            r"bbox_head\.transformer\.(encoder|decoder)\.layers\.\d\.attentions\.0\.attn\.out_proj\.weight",
            lambda v: 0.3 * v,
        ),
    ),
}


def weight(detector: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """As everywhere, but for those of `SPECIAL`, computed of it in float64."""
    drawn = reference.weight(name, shape)
    for pattern, change in SPECIAL.get(detector, ()):
        if re.fullmatch(pattern, name):
            return torch.from_numpy(np.asarray(change(drawn.double().numpy()), dtype=np.float32))
    return drawn


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
