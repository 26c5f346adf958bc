"""RetinaNet and Mask R-CNN against what MMDetection 2.13.0 computes with the published code.

Maps, logits and masks in float32, to the tolerances that the reference names for it: 2e-5 of the largest value, 5e-5
for the logits of masks. In float64, in which the order of scores is the recorded one: proposals and detections to 2e-5,
losses and gradients to 1e-6.
"""

from typing import Any

import numpy as np
import pytest
import torch
from detection_checks import (
    EXACT,
    as_maps,
    check_gradient_norms,
    check_samples,
    gradients,
    in_float64,
    in_pixels,
    matched,
    on_recordings,
)
from detection_reference import Case, RecordedWithMetadata, recording, recordings
from reference import relative_error
from torch import Tensor
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt.detection.parts.anchors import Anchors, base_anchors
from hf_pvt.detection.parts.assigners import IGNORED, NEGATIVE, IoUAssigner
from hf_pvt.detection.parts.mask_pasting import paste_masks
from hf_pvt.detection.parts.roi_pooling import levels_of
from hf_pvt.detection.parts.samplers import RandomSampler

TOLERANCE, MASK_TOLERANCE = 2e-5, 5e-5
RETINANET, MASK_RCNN = recordings("retinanet"), recordings("mask_rcnn")
IMAGES = ("single", "pair")


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> RecordedWithMetadata:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: RecordedWithMetadata) -> PreTrainedModel:
    return recorded.model()


# In float32


@on_recordings(RETINANET, IMAGES, quick=["retinanet-pvt_v2_b0-single"])
@torch.inference_mode()
def test_dense_outputs_and_losses(recorded: RecordedWithMetadata, model: PreTrainedModel, name: str) -> None:
    """RetinaNet: the neck's levels, what the head says of every anchor, every term of the loss, and the anchors."""
    case = recorded.case(name)
    levels, predictions, features = model.encode(case.pixel_values)
    check_dense_outputs(recorded, levels, predictions, case)
    check_anchors(recorded, model, levels, case)
    output = model.complete(levels, predictions, features, case.pixel_values, case.pixel_mask, case.labels)
    check_losses(recorded, output, f"{name}/train", TOLERANCE)
    if name == "single":
        check_assigned(recorded, model, levels, case)


def check_dense_outputs(
    recorded: RecordedWithMetadata, levels: list[Tensor], predictions: dict[str, Tensor], case: Case
) -> None:
    prefix = f"{case.name}/test"
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{prefix}/neck/{number}", TOLERANCE)
    names = {"logits": "cls", "box_deltas": "bbox", "objectness": "rpn_cls", "proposal_deltas": "rpn_bbox"}
    for ours, values in predictions.items():
        for number, level_map in enumerate(as_maps(values if values.dim() == 3 else values[..., None], levels)):
            check_samples(level_map, recorded, f"{prefix}/{names[ours]}/{number}", TOLERANCE)


def check_anchors(recorded: RecordedWithMetadata, model: PreTrainedModel, levels: list[Tensor], case: Case) -> None:
    config, prefix = model.config, f"{case.name}/test/anchors"
    anchors = Anchors.of(config)(levels)
    assert [len(level) for level in anchors] == recorded.tensor(f"{prefix}/counts").tolist()
    for number, (level, stride) in enumerate(zip(anchors, config.strides, strict=True)):
        base = base_anchors(stride, config.anchor_scales, config.anchor_ratios)
        torch.testing.assert_close(base, recorded.tensor(f"{prefix}/base{number}"), rtol=1e-6, atol=0)
        ends = torch.cat((level[:3], level[-3:]))
        torch.testing.assert_close(ends, recorded.tensor(f"{prefix}/first_last{number}"), rtol=1e-6, atol=0)


def check_assigned(recorded: RecordedWithMetadata, model: PreTrainedModel, levels: list[Tensor], case: Case) -> None:
    """The anchors that learn the boxes of a single image."""
    boxes = in_pixels(case.labels[0]["boxes"], *case.valid[0]).float()
    assigned = model.assign(model.anchors(levels), boxes)
    positive = (assigned >= 0).nonzero().flatten()
    counts = [len(positive), int((assigned == NEGATIVE).sum()), int((assigned == IGNORED).sum())]
    prefix = f"{case.name}/train/assigned"
    assert counts == recorded.tensor(f"{prefix}/counts").tolist()
    assert positive.tolist() == recorded.tensor(f"{prefix}/positive").tolist()
    assert assigned[positive].tolist() == recorded.tensor(f"{prefix}/gt").tolist()


@on_recordings(MASK_RCNN, IMAGES)
@torch.inference_mode()
def test_dense_outputs_and_heads(recorded: RecordedWithMetadata, model: PreTrainedModel, name: str) -> None:
    """Mask R-CNN: levels and what the first stage says of every anchor; the heads in recorded boxes.

    Pooled features, logits and deltas of the recorded proposals; masks of the recorded detections.
    """
    case, every_label = recorded.case(name), []
    levels, predictions, _ = model.encode(case.pixel_values)
    check_dense_outputs(recorded, levels, predictions, case)
    check_anchors(recorded, model, levels, case)
    levels = model.poolable(levels)
    hook = model.mask_head.conv_logits.register_forward_hook(lambda _, __, logits: every_label.append(logits))
    for image, (valid, original) in enumerate(zip(case.valid, case.original, strict=True)):
        prefix = f"{name}/test/image{image}"
        boxes = only(image, recorded.tensor(f"{prefix}/proposals")[:, :4], len(case.valid))
        counts = levels_of(boxes[image], 4).bincount(minlength=4)
        assert counts.tolist() == recorded.tensor(f"{prefix}/levels").tolist()
        pooled = model.pooled(levels, boxes, 7)
        check_samples(pooled, recorded, f"{prefix}/roi_feats", TOLERANCE)
        logits, deltas = model.box_head(pooled)
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


def check_pasted(pasted: Tensor, recorded: RecordedWithMetadata, name: str) -> None:
    """Single pixels may differ, where a probability is within rounding of the threshold: 5 in an image."""
    assert (pasted.sum((1, 2)) - recorded.tensor(f"{name}/area")).abs().sum() <= 5
    if f"{name}/every8" in set(recorded.names("")):
        bits = np.unpackbits(recorded.tensor(f"{name}/every8").numpy(), axis=1)
        sampled = pasted[:, 4::8, 4::8].flatten(1).numpy()
        assert (bits[:, : sampled.shape[1]] != sampled).sum() <= 5


def only(image: int, boxes: Tensor, images: int) -> list[Tensor]:
    """Boxes in one image of a batch."""
    return [boxes if number == image else boxes.new_zeros((0, 4)) for number in range(images)]


# In float64


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


TRAININGS = ("single/train", "pair/train", "none/train", "single/train_all")


def check_in_float64(
    recorded: RecordedWithMetadata, model: PreTrainedModel, training: str, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Every term of the loss, which is returned, and the samples behind it; what is found where that is recorded."""
    sampler, case = FirstInOrder(monkeypatch), recorded.case(training.split("/")[0])
    if training.endswith("train_all"):
        monkeypatch.setattr(model.rpn_head, "sample", RandomSampler(10**6, 0.5))
        monkeypatch.setattr(model, "sample", RandomSampler(10**6, 0.25))
    pixel_values = case.pixel_values.double()
    encoded = model.encode(pixel_values)
    if training in ("single/train", "pair/train"):
        check_found(recorded, model, encoded, case)
    monkeypatch.setattr(model, "detect", lambda *_: ([], None))
    monkeypatch.setattr(model, "packed", lambda *_: {})
    output = model.complete(*encoded, pixel_values, case.pixel_mask, case.labels)
    check_losses(recorded, output, training, EXACT)
    if recorded.detector == "mask_rcnn":
        check_sampled(recorded, sampler.calls, training, len(case.valid))
    return output.loss


@on_recordings(RETINANET[1:2], TRAININGS[:1], quick=["retinanet-pvt_v2_b0-single/train"])
@torch.no_grad()
def test_detections_and_losses(
    recorded: RecordedWithMetadata, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest one, which the quick tier has time for."""
    with in_float64(model):
        check_in_float64(recorded, model, name, monkeypatch)


@on_recordings(RETINANET + MASK_RCNN, TRAININGS)
def test_detections_losses_and_gradients(
    recorded: RecordedWithMetadata, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the sum of the losses does to the weights, in evaluation mode as recorded."""
    with in_float64(model):
        check_in_float64(recorded, model, name, monkeypatch).backward()
        found = gradients(model, recorded)
        check_gradient_norms(found, recorded, f"{name}/grad_norm")
        for weight in recorded.names(f"{name}/grad/"):
            if weight.endswith("/samples"):
                weight = weight.removesuffix("/samples")
                check_samples(found[weight], recorded, f"{name}/grad/{weight}", EXACT)


@torch.no_grad()
def check_found(recorded: RecordedWithMetadata, model: PreTrainedModel, encoded: Any, case: Case) -> None:
    """The best 1000 proposals and the best 100 detections; as sets, as boxes without an area may be equal."""
    if recorded.detector == "mask_rcnn":
        for image, boxes in enumerate(model.rpn_head.propose(*encoded[:2], case.valid, 1000, 1000)):
            expected = recorded.tensor(f"{case.name}/test/image{image}/proposals")[:, :4].double()
            assert len(boxes) == len(expected)
            nearest, ours = torch.cdist(boxes, expected, p=float("inf")).min(dim=0)
            assert len(ours.unique()) == len(expected)
            assert nearest.max() < TOLERANCE * expected.max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "with_masks", False, raising=False)  # they are compared in the recorded boxes
        output = model.complete(*encoded, case.pixel_values, case.pixel_mask, None)
    for image, (height, width) in enumerate(case.original):
        prefix = f"{case.name}/test/image{image}/detections"
        boxes, scores = (recorded.tensor(f"{prefix}/{part}") for part in ("boxes", "scores"))
        found = output.pred_labels[image] >= 0
        our_boxes = in_pixels(output.pred_boxes[image][found], height, width)
        our_scores, labels = output.pred_scores[image][found], output.pred_labels[image][found]
        ours, theirs = matched(our_boxes, our_scores, labels, recorded, prefix)
        assert (our_boxes[ours] - boxes[theirs]).abs().max() < TOLERANCE * boxes.abs().max()
        check_scores(our_scores[ours], scores[theirs], recorded, case, image)


def check_scores(found: Tensor, expected: Tensor, recorded: RecordedWithMetadata, case: Case, image: int) -> None:
    """A sigmoid or softmax moves by at most a quarter or a half of what its logits move by."""
    if recorded.detector == "retinanet":
        assert relative_error(found, expected) < TOLERANCE
        return
    logits = recorded.tensor(f"{case.name}/test/image{image}/cls_score/samples")
    assert (found - expected).abs().max() < TOLERANCE * logits.abs().max() / 2


def check_losses(recorded: RecordedWithMetadata, output: Any, training: str, tolerance: float) -> None:
    expected = {name: recorded.tensor(f"{training}/{name}") for name in (*output.loss_dict, "loss")}
    for name, loss in (*output.loss_dict.items(), ("loss", output.loss)):
        assert (loss - expected[name]).abs() < tolerance * expected["loss"].abs(), name
    assert {name for name in recorded.names(f"{training}/") if name.startswith("loss_")} == set(output.loss_dict)


def check_sampled(
    recorded: RecordedWithMetadata, calls: list[tuple[Tensor, Tensor]], training: str, images: int
) -> None:
    """First the anchors of each image, then its proposals: how many are positive and negative, and which."""
    for image, (positive, negative) in enumerate(calls[:images]):
        prefix = f"{training}/image{image}"
        assert [len(positive), len(negative)] == recorded.tensor(f"{prefix}/rpn_sampled").tolist()
        if images == 1:  # in a batch ours count the image's own anchors, the recorded ones all
            assert positive.tolist() == recorded.tensor(f"{prefix}/rpn_positive").tolist()
    for image, (positive, negative) in enumerate(calls[images:]):
        counts = recorded.tensor(f"{training}/image{image}/rcnn_sampled").tolist()
        assert [len(positive), len(negative)] == counts


# Assignment


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
    file, boxes = recording("retinanet"), torch.tensor(RETINANET[0].metadata["assigner"])[:, :4]
    for number in (*range(len(boxes)), "all"):
        prefix = f"assigner/{detector}/{number}"
        assigned = assign(anchors, boxes if number == "all" else boxes[number : number + 1])
        positive = (assigned >= 0).nonzero().flatten()
        counts = [len(positive), int((assigned == NEGATIVE).sum()), int((assigned == IGNORED).sum())]
        assert counts == file.get_tensor(f"{prefix}/counts").tolist(), number
        assert positive.tolist() == file.get_tensor(f"{prefix}/positive").tolist(), number
        assert assigned[positive].tolist() == file.get_tensor(f"{prefix}/gt").tolist(), number
