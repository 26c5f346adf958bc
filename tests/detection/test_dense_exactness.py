"""ATSS and GFL against what MMDetection 2.13.0 computes with the published code: outputs, losses, gradients.

In float32 to 1e-5 of the largest value, in float64 to 1e-6.
"""

import pytest
import torch
from detection_checks import (
    EXACT,
    TOLERANCE,
    as_maps,
    check_counts,
    check_detections,
    check_gradient_norms,
    check_losses,
    check_samples,
    in_pixels,
)
from detection_reference import Case
from further_reference import CASES, FurtherRecorded, recordings
from transformers import PreTrainedModel

from hf_pvt.detection.anchors import base_anchors


@pytest.fixture(scope="module", params=recordings("atss", "gfl"), ids=str)
def recorded(request: pytest.FixtureRequest) -> FurtherRecorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: FurtherRecorded, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return recorded.model(tmp_path_factory.mktemp("published") / "detector.pth")


@pytest.fixture(params=CASES)
def case(recorded: FurtherRecorded, request: pytest.FixtureRequest) -> Case:
    return recorded.case(request.param)


NAMES = {"logits": "cls", "box_deltas": "reg", "box_distributions": "reg", "centerness": "centerness"}


def test_dense_outputs(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """The neck's levels, and what the head says of every anchor."""
    with torch.inference_mode():
        levels, predictions, _ = model.encode(case.pixel_values)
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{case.name}/neck/{number}")
    for ours, values in predictions.items():
        for number, level_map in enumerate(as_maps(values.reshape(*values.shape[:2], -1), levels)):
            check_samples(level_map, recorded, f"{case.name}/head/{NAMES[ours]}/{number}")


def test_anchors(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    levels = [torch.empty(1, 1, *recorded.tensor(f"{case.name}/neck/{number}/shape")[2:]) for number in range(5)]
    anchors = model.anchors(levels)
    assert [len(level) for level in anchors] == recorded.tensor(f"{case.name}/anchors/count").tolist()
    base = [base_anchors(stride, model.config.anchor_scales, (1,)) for stride in model.config.strides]
    assert torch.cat(base).equal(recorded.tensor(f"{case.name}/anchors/base"))
    expected = recorded.tensor(f"{case.name}/anchors/all/samples")
    assert recorded.samples(torch.cat(anchors), len(expected)).equal(expected)


def test_detections(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    with torch.inference_mode():
        check_detections(model(case.pixel_values, case.pixel_mask), recorded, case)


def test_counts(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """How many pairs of a place and a label are over the threshold, and how many of them are left by NMS."""
    check_counts(model, recorded, case)


def test_positive_anchors(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """Level, image, anchor and label; of an image's own anchors."""
    levels = [torch.empty(1, 1, *recorded.tensor(f"{case.name}/neck/{number}/shape")[2:]) for number in range(5)]
    anchors, rows = model.anchors(levels), set()
    counts = [len(level) for level in anchors]
    for image, (size, label) in enumerate(zip(case.valid, case.labels, strict=True)):
        inside = model.anchors.inside(levels, size)
        own = [level[some] for level, some in zip(anchors, inside.split(counts), strict=True)]
        assigned = torch.full((sum(counts),), -1)
        assigned[inside] = model.assign(own, in_pixels(label["boxes"], *size).float())
        for number, level in enumerate(assigned.split(counts)):
            for anchor in (level >= 0).nonzero().flatten().tolist():
                rows.add((number, image, anchor, int(label["class_labels"][level[anchor]])))
    expected = recorded.tensor(f"{case.name}/targets/positive").tolist()
    assert rows == {tuple(row) for row in expected} and len(rows) == len(expected)


def test_losses_and_gradients(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """Every term, and what the sum does to the weights, in evaluation mode as recorded."""
    with torch.no_grad():
        check_losses(model(case.pixel_values, case.pixel_mask, case.labels), recorded, f"{case.name}/loss", TOLERANCE)
    # In float32 the rounding of a convolution flips ReLUs, which a gradient's norm shows: in float64 it is exact.
    model.double().zero_grad()
    output = model(case.pixel_values.double(), case.pixel_mask, case.labels)
    check_losses(output, recorded, f"{case.name}/loss", EXACT)
    output.loss.backward()
    check_gradient_norms(model, recorded, f"{case.name}/loss/grad")
    model.float()
