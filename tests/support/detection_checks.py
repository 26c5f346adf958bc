"""Ours against what is recorded of MMDetection: samples of tensors, detections, losses, gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from detection_reference import Case, Gradients, Recorded
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import PreTrainedModel

from hf_pvt.detection.parts.suppression import Detections
from hf_pvt.original.pyramid_layouts import to_original

# Of the largest value, in float32 and in float64.
TOLERANCE, EXACT = 1e-5, 1e-6


def on_recordings(recorded: Sequence[Recorded], names: Sequence[str], quick: Sequence[str] = ()) -> Any:
    """Runs a test on cases of recorded variants, with `recorded` and `name`; all but the quick ones are slow."""
    rows = [
        pytest.param(one, name, id=f"{one}-{name}", marks=() if f"{one}-{name}" in quick else pytest.mark.slow)
        for one in recorded
        for name in names
        if list(one.names(f"{name}/"))
    ]
    return pytest.mark.parametrize(("recorded", "name"), rows, indirect=["recorded"], scope="module")


@contextmanager
def in_float64(model: PreTrainedModel) -> Iterator[None]:
    """With weights in float64, in which the order of scores is the recorded one and no ReLU is flipped by rounding."""
    model.double()
    try:
        with patch.object(F, "conv2d", convolution):
            yield
    finally:
        model.float().zero_grad()


CONVOLUTION, AT_ONCE = F.conv2d, 32


def convolution(maps: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any) -> Tensor:
    """The same at twice the speed: in float64 PyTorch multiplies by each map for itself, however small it is."""
    if len(maps) >= AT_ONCE and maps.shape[-1] <= 7 and weight.shape[2:] == (3, 3) and how == ((1, 1),) * 3 + (1,):
        return torch.cat([convolution_in_a_row(some, weight, bias) for some in maps.split(AT_ONCE)])
    return CONVOLUTION(maps, weight, bias, *how, **named)


def convolution_in_a_row(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Small maps (n, C, H, W) beside each other, with zeros between them."""
    width = maps.shape[3]
    row = F.pad(maps, (0, 1)).permute(1, 2, 0, 3)  # (C, H, n, W + 1)
    convolved = CONVOLUTION(row.flatten(2)[None], weight, bias, padding=1)[0]
    return convolved.unflatten(2, (-1, width + 1))[..., :width].permute(2, 0, 1, 3)


def check_samples(output: Tensor, recorded: Recorded, name: str, tolerance: float = TOLERANCE) -> None:
    """A tensor's shape and samples are the recorded ones."""
    assert tuple(output.shape) == tuple(recorded.tensor(f"{name}/shape").tolist()), name
    expected = recorded.tensor(f"{name}/samples")
    difference = (recorded.samples(output, len(expected)) - expected).abs().max()
    assert difference <= tolerance * expected.abs().max(), name  # where all are zeros, ours are


def as_maps(values: Tensor, levels: list[Tensor]) -> Iterator[Tensor]:
    """Values (B, A, V) of all anchors as each level's map (B, P*V, H, W), which is what is recorded."""
    places = [level.shape[-2] * level.shape[-1] for level in levels]
    per_place = values.shape[1] // sum(places)
    split = values.split([count * per_place for count in places], dim=1)
    for level, some in zip(levels, split, strict=True):
        height, width = level.shape[-2:]
        yield some.unflatten(1, (height, width, per_place)).flatten(3).permute(0, 3, 1, 2)


def in_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """Centre and size as shares of an image -> corners in its pixels."""
    return box_convert(boxes * torch.tensor([width, height, width, height]), "cxcywh", "xyxy")


def matched(boxes: Tensor, scores: Tensor, labels: Tensor, recorded: Recorded, name: str) -> tuple[Tensor, Tensor]:
    """Indices of an image's detections and, in the same order, of the recorded ones that they are, one to one.

    Scores that differ by a rounding have no order, and boxes without an area may be equal.
    """
    their_boxes, their_scores, their_labels = (
        recorded.tensor(f"{name}/{part}") for part in ("boxes", "scores", "labels")
    )
    assert len(boxes) == len(their_boxes), name
    distance = torch.cdist(boxes, their_boxes.to(boxes.dtype), p=float("inf")) + (scores[:, None] - their_scores).abs()
    distance[labels[:, None] != their_labels] = 1e9
    ours, theirs = linear_sum_assignment(distance)
    return torch.from_numpy(ours), torch.from_numpy(theirs)


def check_detections(
    output: Any, recorded: Recorded, case: Case, prefix: str = "", tolerance: float = TOLERANCE
) -> None:
    """An output's detections are those under `<case>/<prefix>detections`, in pixels of the original images."""
    for image, (height, width) in enumerate(case.original):
        found = output.pred_labels[image] >= 0
        boxes = in_pixels(output.pred_boxes[image][found], height, width)
        scores, labels = output.pred_scores[image][found], output.pred_labels[image][found]
        name = f"{case.name}/{prefix}detections/{image}"
        ours, theirs = matched(boxes, scores, labels, recorded, name)
        expected = recorded.tensor(f"{name}/boxes")
        assert (boxes[ours] - expected[theirs]).abs().max() < tolerance * expected.abs().max(), name
        assert (scores[ours] - recorded.tensor(f"{name}/scores")[theirs]).abs().max() < tolerance, name


def check_counts(
    config: Any, detect: Callable[[], list[Detections]], recorded: Recorded, case: Case, prefix: str = ""
) -> None:
    """How many pairs of a box and a label are over the threshold, and how many of them NMS keeps in all."""
    counts = []
    for threshold in (1.0, config.nms_threshold):  # nothing overlaps by more than 1
        with patch.multiple(config, nms_threshold=threshold, max_detections=50_000):
            counts.append([len(found.labels) for found in detect()])
    expected = [recorded.tensor(f"{case.name}/{prefix}detections/{image}/counts") for image in range(len(case.valid))]
    assert counts == torch.stack(expected, dim=1).tolist(), f"{recorded}, {case.name}/{prefix}"


def check_losses(output: Any, recorded: Recorded, name: str, tolerance: float) -> None:
    """Each term, which is recorded as one value or one of each level, is right relative to the sum of all."""
    total = recorded.tensor(f"{name}/total")
    terms = {term for term in recorded.names(f"{name}/") if "loss" in term and "/" not in term}
    assert terms == set(output.loss_dict)
    for term, value in output.loss_dict.items():
        assert (value - recorded.tensor(f"{name}/{term}").sum()).abs() < tolerance * total, term
    assert (output.loss - total).abs() < tolerance * total


def gradients(model: PreTrainedModel, recorded: Recorded) -> dict[str, Tensor]:
    """By the published names of the weights."""
    return to_original(Gradients(model), recorded.layout)


def check_gradient_norms(found: dict[str, Tensor], recorded: Recorded, name: str) -> None:
    """The norms, in float64, of the gradients of the parts recorded under `<name>/`."""
    for part in recorded.names(f"{name}/"):
        squares = [
            gradient.square().sum() for key, gradient in found.items() if part == "all" or key.startswith(f"{part}.")
        ]
        expected = recorded.tensor(f"{name}/{part}").item()
        assert abs(sum(squares) ** 0.5 - expected) <= EXACT * expected, f"{recorded}, {name}/{part}"


def random_boxes(count: int, seed: int = 0, height: int = 96, width: int = 128) -> Tensor:
    """Boxes (n, 4) inside an image, none without an area."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor(
        [width - 2.0, height - 2.0]
    )
    return torch.cat((corners[:, 0], corners[:, 1] + 2), dim=1)
