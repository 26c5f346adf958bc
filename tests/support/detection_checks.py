"""Ours against what is recorded of MMDetection: samples of tensors, detections, losses, gradients."""

from collections.abc import Iterator
from typing import Any

import torch
from detection_reference import Case, Gradients, Recorded
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert
from transformers import PreTrainedModel

from hf_pvt.original_layouts import to_original

# Of the largest value, in float32 and in float64.
TOLERANCE, EXACT = 1e-5, 1e-6


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
    distance = torch.cdist(boxes, their_boxes, p=float("inf")) + (scores[:, None] - their_scores).abs()
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


@torch.no_grad()
def check_counts(model: PreTrainedModel, recorded: Recorded, case: Case, prefix: str = "", **inputs: Any) -> None:
    """How many pairs of a box and a label are over the threshold, and how many of them NMS keeps in all."""
    settings = {"nms_threshold": model.config.nms_threshold, "max_detections": model.config.max_detections}
    counts = []
    for threshold in (1.0, settings["nms_threshold"]):  # nothing overlaps by more than 1
        model.config.nms_threshold, model.config.max_detections = threshold, 50_000
        output = model(case.pixel_values, case.pixel_mask, **inputs)
        counts.append((output.pred_labels >= 0).sum(dim=1))
    for name, value in settings.items():
        setattr(model.config, name, value)
    expected = [recorded.tensor(f"{case.name}/{prefix}detections/{image}/counts") for image in range(len(case.valid))]
    assert torch.stack(counts, dim=1).equal(torch.stack(expected).long())


def check_losses(output: Any, recorded: Recorded, name: str, tolerance: float) -> None:
    """Each term, which is recorded as one value or one of each level, is right relative to the sum of all."""
    total = recorded.tensor(f"{name}/total")
    terms = {term for term in recorded.names(f"{name}/") if "loss" in term and "/" not in term}
    assert terms == set(output.loss_dict)
    for term, value in output.loss_dict.items():
        assert (value - recorded.tensor(f"{name}/{term}").sum()).abs() < tolerance * total, term
    assert (output.loss - total).abs() < tolerance * total


def check_gradient_norms(model: PreTrainedModel, recorded: Recorded, name: str, tolerance: float = EXACT) -> None:
    """The norms of the gradients of the parts recorded under `<name>/`, by the published names of the weights."""
    theirs = to_original(Gradients(model), recorded.layout)
    for part in recorded.names(f"{name}/"):
        squares = [
            gradient.square().sum() for key, gradient in theirs.items() if part == "all" or key.startswith(f"{part}.")
        ]
        expected = recorded.tensor(f"{name}/{part}").item()
        assert abs(sum(squares) ** 0.5 - expected) <= tolerance * expected, part


def random_boxes(count: int, seed: int = 0, height: int = 96, width: int = 128) -> Tensor:
    """Boxes (n, 4) inside an image, none without an area."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor(
        [width - 2.0, height - 2.0]
    )
    return torch.cat((corners[:, 0], corners[:, 1] + 2), dim=1)
