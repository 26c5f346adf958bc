"""The detectors against what MMDetection 2.13.0 computes with the published code: outputs, losses, gradients.

Tolerances are those that the reference names for float32: 2e-5 of the largest value, 5e-5 for the logits of masks. In
float64, 1e-6. Mask R-CNN's gradients in all cases are compared on one variant, and in one case on the others.
"""

from typing import Any

import detector_keys
import numpy as np
import pytest
import torch
from detection_checks import EXACT, as_maps, check_gradient_norms, check_samples, in_pixels, matched
from detection_reference import RECORDED, Case, Gradients, Recorded
from reference import relative_error
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt.detection.anchors import Anchors, base_anchors
from hf_pvt.detection.assigners import IGNORED, NEGATIVE, IoUAssigner
from hf_pvt.detection.mask_pasting import paste_masks
from hf_pvt.detection.roi_pooling import levels_of
from hf_pvt.detection.samplers import RandomSampler
from hf_pvt.original_layouts import to_original

TOLERANCE, MASK_TOLERANCE = 2e-5, 5e-5

PAIRS = [Recorded(detector, variant) for detector, variants in RECORDED.items() for variant in variants]
IMAGES = {"single": 1, "pair": 2}


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return recorded.model(tmp_path_factory.mktemp("published") / "detector.pth")


@pytest.fixture(params=IMAGES)
def case(recorded: Recorded, request: pytest.FixtureRequest) -> Case:
    return recorded.case(request.param)


def test_dense_outputs(recorded: Recorded, model: PreTrainedModel, case: Case) -> None:
    """The neck's levels, and what the heads say of every anchor."""
    with torch.inference_mode():
        levels, predictions, _ = model.encode(case.pixel_values)
    prefix = f"{case.name}/test"
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{prefix}/neck/{number}", TOLERANCE)
    names = {"logits": "cls", "box_deltas": "bbox", "objectness": "rpn_cls", "proposal_deltas": "rpn_bbox"}
    for ours, values in predictions.items():
        for number, level_map in enumerate(as_maps(values if values.dim() == 3 else values[..., None], levels)):
            check_samples(level_map, recorded, f"{prefix}/{names[ours]}/{number}", TOLERANCE)


def test_anchors(recorded: Recorded, model: PreTrainedModel, case: Case) -> None:
    config = model.config
    with torch.inference_mode():
        levels, _, _ = model.encode(case.pixel_values)
    anchors = Anchors.of(config)(levels)
    prefix = f"{case.name}/test/anchors"
    assert [len(level) for level in anchors] == recorded.tensor(f"{prefix}/counts").tolist()
    for number, (level, stride) in enumerate(zip(anchors, config.strides, strict=True)):
        base = base_anchors(stride, config.anchor_scales, config.anchor_ratios)
        torch.testing.assert_close(base, recorded.tensor(f"{prefix}/base{number}"), rtol=1e-6, atol=0)
        ends = torch.cat((level[:3], level[-3:]))
        torch.testing.assert_close(ends, recorded.tensor(f"{prefix}/first_last{number}"), rtol=1e-6, atol=0)


def test_detections(recorded: Recorded, model: PreTrainedModel, case: Case) -> None:
    """The best 100, as sets: equal scores have no order, and boxes without an area may be equal."""
    with torch.inference_mode():
        output = model(case.pixel_values, case.pixel_mask)
    for image, (height, width) in enumerate(case.original):
        prefix = f"{case.name}/test/image{image}/detections"
        boxes, scores = (recorded.tensor(f"{prefix}/{name}") for name in ("boxes", "scores"))
        found = output.pred_labels[image] >= 0
        our_boxes = in_pixels(output.pred_boxes[image][found], height, width)
        our_scores, labels = output.pred_scores[image][found], output.pred_labels[image][found]
        ours, theirs = matched(our_boxes, our_scores, labels, recorded, prefix)
        assert (our_boxes[ours] - boxes[theirs]).abs().max() < TOLERANCE * boxes.abs().max()
        check_scores(our_scores[ours], scores[theirs], recorded, case, image)


def check_scores(found: Tensor, expected: Tensor, recorded: Recorded, case: Case, image: int) -> None:
    """A sigmoid or softmax moves by at most a quarter or a half of what its logits move by."""
    if recorded.detector == "retinanet":
        assert relative_error(found, expected) < TOLERANCE
        return
    logits = recorded.tensor(f"{case.name}/test/image{image}/cls_score/samples")
    assert (found - expected).abs().max() < TOLERANCE * logits.abs().max() / 2


def of(detector: str) -> Any:
    """Runs a test with the recorded variants of one detector only."""
    pairs = [pair for pair in PAIRS if pair.detector == detector]
    return pytest.mark.parametrize("recorded", pairs, ids=str, indirect=True, scope="module")


@of("mask_rcnn")
def test_proposals(recorded: Recorded, model: PreTrainedModel, case: Case) -> None:
    """As sets: the best 1000 after NMS."""
    with torch.inference_mode():
        levels, predictions, _ = model.encode(case.pixel_values)
        proposals = model.rpn_head.propose(levels, predictions, case.valid, 1000, 1000)
    for image, boxes in enumerate(proposals):
        expected = recorded.tensor(f"{case.name}/test/image{image}/proposals")[:, :4]
        assert len(boxes) == len(expected)
        nearest, ours = torch.cdist(boxes, expected, p=float("inf")).min(dim=0)
        assert len(ours.unique()) == len(expected)
        assert nearest.max() < TOLERANCE * expected.max()


@of("mask_rcnn")
def test_second_stage(recorded: Recorded, model: PreTrainedModel, case: Case) -> None:
    """Pooled features, logits and deltas of the recorded proposals; masks of the recorded detections."""
    every_label: list[Tensor] = []
    hook = model.mask_head.conv_logits.register_forward_hook(lambda _, __, logits: every_label.append(logits))
    with torch.inference_mode():
        levels = model.poolable(model.encode(case.pixel_values)[0])
        for image, (valid, original) in enumerate(zip(case.valid, case.original, strict=True)):
            prefix = f"{case.name}/test/image{image}"
            boxes = only(image, recorded.tensor(f"{prefix}/proposals")[:, :4], len(case.valid))
            counts = levels_of(boxes[image], 4).bincount(minlength=4)
            assert counts.tolist() == recorded.tensor(f"{prefix}/levels").tolist()
            check_samples(model.pooled(levels, boxes, 7), recorded, f"{prefix}/roi_feats", TOLERANCE)
            logits, deltas = model.box_predictions(model.box_head, levels, boxes)
            check_samples(logits, recorded, f"{prefix}/cls_score", TOLERANCE)
            check_samples(deltas.flatten(1), recorded, f"{prefix}/bbox_pred", TOLERANCE)
            scale = torch.tensor([valid[1] / original[1], valid[0] / original[0]]).repeat(2)
            boxes = only(image, recorded.tensor(f"{prefix}/detections/boxes") * scale, len(case.valid))
            labels = recorded.tensor(f"{prefix}/detections/labels").long()
            masks = model.mask_logits(model.mask_head, levels, boxes, labels)
            check_samples(masks, recorded, f"{prefix}/mask_logits_of_label", MASK_TOLERANCE)
            check_samples(every_label.pop(), recorded, f"{prefix}/mask_logits", MASK_TOLERANCE)
            pasted = paste_masks(masks.sigmoid(), recorded.tensor(f"{prefix}/detections/boxes"), original)
            check_pasted(pasted, recorded, f"{prefix}/masks")
    hook.remove()


def check_pasted(pasted: Tensor, recorded: Recorded, name: str) -> None:
    """Single pixels may differ, where a probability is within rounding of the threshold: 5 in an image."""
    assert (pasted.sum((1, 2)) - recorded.tensor(f"{name}/area")).abs().sum() <= 5
    if f"{name}/every8" in set(recorded.names("")):
        bits = np.unpackbits(recorded.tensor(f"{name}/every8").numpy(), axis=1)
        sampled = pasted[:, 4::8, 4::8].flatten(1).numpy()
        assert (bits[:, : sampled.shape[1]] != sampled).sum() <= 5


def only(image: int, boxes: Tensor, images: int) -> list[Tensor]:
    """Boxes in one image of a batch."""
    return [boxes if number == image else boxes.new_zeros((0, 4)) for number in range(images)]


class FirstInOrder:
    """The random sampler made deterministic, as for the recording, and what it was asked and gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []
        sample = RandomSampler.__call__

        def record(sampler: RandomSampler, assigned: Tensor) -> tuple[Tensor, Tensor]:
            self.calls.append(sample(sampler, assigned))
            return self.calls[-1]

        monkeypatch.setattr(RandomSampler, "choose", lambda _, indices, count: indices[:count])
        monkeypatch.setattr(RandomSampler, "__call__", record)


TRAININGS = ["single/train", "pair/train", "none/train", "single/train_all"]


@pytest.mark.parametrize("training", TRAININGS)
def test_losses_and_gradients(
    recorded: Recorded, model: PreTrainedModel, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every term, the samples behind it, and what the sum does to the weights, in evaluation mode as recorded."""
    if not list(recorded.names(f"{training}/")):
        assert (recorded.detector, training) == ("retinanet", "single/train_all")  # which samples nothing
        return
    sampler = FirstInOrder(monkeypatch)
    if training.endswith("train_all"):
        monkeypatch.setattr(model.rpn_head, "sample", RandomSampler(10**6, 0.5))
        monkeypatch.setattr(model, "sample", RandomSampler(10**6, 0.25))
    case = recorded.case(training.split("/")[0])
    with torch.no_grad():
        check_losses(recorded, model(case.pixel_values, case.pixel_mask, case.labels), training, TOLERANCE)
    if recorded.detector == "mask_rcnn":
        check_sampled(recorded, sampler.calls, training, len(case.valid))
    if recorded.detector == "mask_rcnn" and recorded.variant != "pvt_v2_b1" and training != "single/train":
        return  # each takes seconds: all cases of one variant, and one case of the others
    # In float32 the rounding of a convolution flips ReLUs, which a gradient's norm shows: in float64 it is exact.
    model.double().zero_grad()
    output = model(case.pixel_values.double(), case.pixel_mask, case.labels)
    check_losses(recorded, output, training, EXACT)
    output.loss.backward()
    check_gradients(recorded, model, training)
    model.float()


def check_losses(recorded: Recorded, output: Any, training: str, tolerance: float) -> None:
    expected = {name: recorded.tensor(f"{training}/{name}") for name in (*output.loss_dict, "loss")}
    for name, loss in (*output.loss_dict.items(), ("loss", output.loss)):
        assert (loss - expected[name]).abs() < tolerance * expected["loss"].abs(), name
    assert {name for name in recorded.names(f"{training}/") if name.startswith("loss_")} == set(output.loss_dict)


def check_gradients(recorded: Recorded, model: PreTrainedModel, training: str) -> None:
    check_gradient_norms(model, recorded, f"{training}/grad_norm")
    theirs = to_original(Gradients(model), recorded.layout)
    for name in recorded.names(f"{training}/grad/"):
        if name.endswith("/samples"):
            weight = name.removesuffix("/samples")
            check_samples(theirs[weight], recorded, f"{training}/grad/{weight}", EXACT)


def check_sampled(recorded: Recorded, calls: list[tuple[Tensor, Tensor]], training: str, images: int) -> None:
    """First the anchors of each image, then its proposals: how many are positive and negative, and which."""
    for image, (positive, negative) in enumerate(calls[:images]):
        prefix = f"{training}/image{image}"
        assert [len(positive), len(negative)] == recorded.tensor(f"{prefix}/rpn_sampled").tolist()
        if images == 1:  # in a batch ours count the image's own anchors, the recorded ones all
            assert positive.tolist() == recorded.tensor(f"{prefix}/rpn_positive").tolist()
    for image, (positive, negative) in enumerate(calls[images:]):
        counts = recorded.tensor(f"{training}/image{image}/rcnn_sampled").tolist()
        assert [len(positive), len(negative)] == counts


@of("retinanet")
def test_assigned_anchors(recorded: Recorded, model: PreTrainedModel) -> None:
    """The anchors that learn the boxes of a single image."""
    case = recorded.case("single")
    with torch.inference_mode():
        levels, _, _ = model.encode(case.pixel_values)
    height, width = case.valid[0]
    boxes = in_pixels(case.labels[0]["boxes"], height, width).float()
    assigned = model.assign(model.anchors(levels), boxes)
    positive = (assigned >= 0).nonzero().flatten()
    counts = [len(positive), int((assigned == NEGATIVE).sum()), int((assigned == IGNORED).sum())]
    assert counts == recorded.tensor("single/train/assigned/counts").tolist()
    assert positive.tolist() == recorded.tensor("single/train/assigned/positive").tolist()
    assert assigned[positive].tolist() == recorded.tensor("single/train/assigned/gt").tolist()


ASSIGNERS = {
    "retinanet": (hf_pvt.RetinaNetConfig(), IoUAssigner(0.5, 0.4, least=0.0)),
    "rpn": (hf_pvt.MaskRcnnConfig(), IoUAssigner(0.7, 0.3, least=0.3)),
}


@pytest.mark.parametrize("detector", ASSIGNERS)
def test_assigner_in_float32(detector: str) -> None:
    """Ties between anchors, which rounding decides, in the published order of operations."""
    config, assign = ASSIGNERS[detector]
    maps = [torch.empty(1, 1, -(-256 // stride), -(-352 // stride)) for stride in config.strides]
    anchors = torch.cat(Anchors.of(config)(maps))
    with safe_open(detector_keys.FOLDER / "retinanet.safetensors", "pt") as file:
        boxes = torch.tensor(Recorded("retinanet", "pvt_tiny").metadata["assigner"])[:, :4]
        for number in (*range(len(boxes)), "all"):
            prefix = f"assigner/{detector}/{number}"
            assigned = assign(anchors, boxes if number == "all" else boxes[number : number + 1])
            positive = (assigned >= 0).nonzero().flatten()
            counts = [len(positive), int((assigned == NEGATIVE).sum()), int((assigned == IGNORED).sum())]
            assert counts == file.get_tensor(f"{prefix}/counts").tolist(), number
            assert positive.tolist() == file.get_tensor(f"{prefix}/positive").tolist(), number
            assert assigned[positive].tolist() == file.get_tensor(f"{prefix}/gt").tolist(), number
