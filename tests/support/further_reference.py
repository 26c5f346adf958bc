"""What MMDetection 2.13.0 computes with ATSS, GFL, Cascade Mask R-CNN, Sparse R-CNN and PVT+DETR.

As in `detection_reference`, weights and inputs are drawn from names; the outputs are in `fixtures/detection`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import detector_keys
import numpy as np
import reference
import torch
from detection_reference import Case, Recorded, labels_of
from torch import Tensor

RECORDED = {
    "atss": ("pvt_v2_b0", "pvt_v2_b2_li"),
    "gfl": ("pvt_v2_b0", "pvt_v2_b2"),
    "cascade_mask_rcnn": ("pvt_v2_b0", "pvt_v2_b2_li"),
    "sparse_rcnn": ("pvt_v2_b0", "pvt_v2_b2"),
    "detr": ("pvt_small",),
}
CASES = ("one", "two")


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


@dataclass(frozen=True)
class FurtherRecorded(Recorded):
    """One detector on one variant."""

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The published weight `name`."""
        return weight(self.detector, name, shape)

    @cached_property
    def keys(self) -> dict[str, tuple[int, ...]]:
        return detector_keys.keys_of(self.detector, self.variant.replace("_", "-"))

    def samples(self, output: Tensor, count: int) -> Tensor:
        """At indices that PyTorch rounded, in which numpy's `linspace` differs in the last bit."""
        index = torch.linspace(0, output.numel() - 1, count, dtype=torch.float64).long()
        return output.contiguous().flatten()[index]

    def case(self, name: str) -> Case:
        """ "one", or "two": with four objects and without any."""
        batch, height, width = shape = tuple(self.tensor(f"{name}/image/size").tolist())
        valid, original = (
            [tuple(size) for size in self.tensor(f"{name}/image/{kind}").tolist()] for kind in ("valid", "original")
        )
        seed = int(self.tensor(f"{name}/image/seed"))
        drawn_of = f"image:{batch}x3x{height}x{width}" + (f":{seed}" if seed else "")
        drawn = reference.draw(drawn_of, (batch, 3, height, width))
        pixel_mask = torch.zeros(shape, dtype=torch.int64)
        for mask, (inner_height, inner_width) in zip(pixel_mask, valid, strict=True):
            mask[:inner_height, :inner_width] = 1
        pixel_values = torch.from_numpy(drawn.astype(np.float32)) * pixel_mask[:, None]
        labels = []
        for image, size in enumerate(valid):
            boxes, classes = (self.tensor(f"{name}/gt/{image}/{kind}") for kind in ("boxes", "labels"))
            objects = torch.cat((boxes, classes[:, None].to(boxes.dtype)), dim=1).tolist()
            labels.append(labels_of(objects, size, (height, width)))
        return Case(name, pixel_values, pixel_mask, valid, original, labels)


def recordings(*detectors: str) -> list[FurtherRecorded]:
    """All recorded variants of these detectors."""
    return [FurtherRecorded(detector, variant) for detector in detectors for variant in RECORDED[detector]]
