"""ATSS and GFL against what MMDetection 2.13.0 computes with the published code: outputs, losses, gradients.

In float32 to 1e-5 of the largest value; losses and gradients in float64 to 1e-6.
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
    gradients,
    in_float64,
    in_pixels,
    on_recordings,
)
from detection_reference import Case, Recorded, recordings
from torch import Tensor
from transformers import PreTrainedModel

from hf_pvt.detection.parts.anchors import base_anchors

VARIANTS, CASES = recordings("atss", "gfl"), ("one", "two")
QUICK = ["atss-pvt_v2_b0-one", "gfl-pvt_v2_b0-one"]
NAMES = {"logits": "cls", "box_deltas": "reg", "box_distributions": "reg", "centerness": "centerness"}


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: Recorded) -> PreTrainedModel:
    return recorded.model()


@on_recordings(VARIANTS, CASES, QUICK)
@torch.inference_mode()
def test_dense_outputs_and_losses(recorded: Recorded, model: PreTrainedModel, name: str) -> None:
    """In float32: the neck's levels, what the head says of every anchor, every term of the loss, and the anchors."""
    case = recorded.case(name)
    levels, predictions, features = model.encode(case.pixel_values)
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{name}/neck/{number}")
    for ours, values in predictions.items():
        for number, level_map in enumerate(as_maps(values.reshape(*values.shape[:2], -1), levels)):
            check_samples(level_map, recorded, f"{name}/head/{NAMES[ours]}/{number}")
    output = model.complete(levels, predictions, features, case.pixel_values, case.pixel_mask, case.labels)
    check_losses(output, recorded, f"{name}/loss", TOLERANCE)
    check_anchors(recorded, model, levels, case)


def check_anchors(recorded: Recorded, model: PreTrainedModel, levels: list[Tensor], case: Case) -> None:
    """All of them, and level, image, anchor and label of the positive ones, which are of an image's own anchors."""
    anchors, rows = model.anchors(levels), set()
    counts = [len(level) for level in anchors]
    assert counts == recorded.tensor(f"{case.name}/anchors/count").tolist()
    base = [base_anchors(stride, model.config.anchor_scales, (1,)) for stride in model.config.strides]
    assert torch.cat(base).equal(recorded.tensor(f"{case.name}/anchors/base"))
    expected = recorded.tensor(f"{case.name}/anchors/all/samples")
    assert recorded.samples(torch.cat(anchors), len(expected)).equal(expected)
    for image, (size, label) in enumerate(zip(case.valid, case.labels, strict=True)):
        inside = model.anchors.inside(levels, size)
        own = [level[some] for level, some in zip(anchors, inside.split(counts), strict=True)]
        assigned = torch.full((sum(counts),), -1)
        assigned[inside] = model.assign(own, in_pixels(label["boxes"], *size).float())
        for number, level in enumerate(assigned.split(counts)):
            for anchor in (level >= 0).nonzero().flatten().tolist():
                rows.add((number, image, anchor, int(label["class_labels"][level[anchor]])))
    positive = recorded.tensor(f"{case.name}/targets/positive").tolist()
    assert rows == {tuple(row) for row in positive} and len(rows) == len(positive)


def check_in_float64(recorded: Recorded, model: PreTrainedModel, case: Case) -> Tensor:
    """Every term of the loss, which is returned, and the detections.

    How many pairs of a place and a label are over the threshold, and how many of them are left by NMS.
    """
    pixel_values = case.pixel_values.double()
    levels, predictions, features = model.encode(pixel_values)
    output = model.complete(levels, predictions, features, pixel_values, case.pixel_mask, case.labels)
    check_losses(output, recorded, f"{case.name}/loss", EXACT)
    check_detections(output, recorded, case)
    with torch.no_grad():
        check_counts(model.config, lambda: model.detect(levels, predictions, case.valid)[0], recorded, case)
    return output.loss


@on_recordings([VARIANTS[0], VARIANTS[2]], ["one"], QUICK)
@torch.no_grad()
def test_detections_and_losses(recorded: Recorded, model: PreTrainedModel, name: str) -> None:
    """The smallest ones, which the quick tier has time for."""
    with in_float64(model):
        check_in_float64(recorded, model, recorded.case(name))


@on_recordings(VARIANTS, CASES)
def test_detections_losses_and_gradients(recorded: Recorded, model: PreTrainedModel, name: str) -> None:
    """And what the sum of the losses does to the weights, in evaluation mode as recorded."""
    with in_float64(model):
        check_in_float64(recorded, model, recorded.case(name)).backward()
        check_gradient_norms(gradients(model, recorded), recorded, f"{name}/loss/grad")
