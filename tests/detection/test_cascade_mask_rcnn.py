"""Cascade Mask R-CNN against what MMDetection 2.13.0 computes with the published code: outputs, losses, gradients.

Box and mask heads are compared on recorded proposals, so that nothing depends on the order of nearly equal ones, and
whole once more. Logits of later stages, and masks, are as far off in float32 as the boxes before them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import further_reference
import numpy as np
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
    matched,
)
from detection_reference import Case
from families import CASCADE_MASK_RCNN, tiny_detector
from further_reference import CASES, FurtherRecorded
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_pvt.detection.anchors import Anchors, base_anchors
from hf_pvt.detection.assigners import NEGATIVE
from hf_pvt.detection.ground_truth import ground_truth
from hf_pvt.detection.mask_pasting import paste_masks
from hf_pvt.detection.modeling_cascade_mask_rcnn import likeliest
from hf_pvt.detection.samplers import RandomSampler
from hf_pvt.synchronized_batch_norm import SynchronizedBatchNorm2d

PAIRS = further_reference.recordings("cascade_mask_rcnn")


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def recorded(request: pytest.FixtureRequest) -> FurtherRecorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: FurtherRecorded, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return recorded.model(tmp_path_factory.mktemp("published") / "detector.pth")


@pytest.fixture(params=CASES)
def case(recorded: FurtherRecorded, request: pytest.FixtureRequest) -> Case:
    return recorded.case(request.param)


def test_proposals(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """The neck's levels, what is said of every anchor, and the best 1000 after NMS, as sets."""
    config = model.config
    with torch.inference_mode():
        levels, predictions, _ = model.encode(case.pixel_values)
        proposals = model.rpn_head.propose(levels, predictions, case.valid, config.rpn_candidates, config.max_proposals)
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{case.name}/neck/{number}")
    for ours, theirs in (("objectness", "cls"), ("proposal_deltas", "reg")):
        values = predictions[ours]
        for number, level_map in enumerate(as_maps(values if values.dim() == 3 else values[..., None], levels)):
            check_samples(level_map, recorded, f"{case.name}/rpn/{theirs}/{number}")
    for image, boxes in enumerate(proposals):
        expected = recorded.tensor(f"{case.name}/proposals/{image}")[:, :4]
        nearest, ours = torch.cdist(boxes, expected, p=float("inf")).min(dim=0)
        assert len(boxes) == len(ours.unique()) == len(expected)
        assert nearest.max() < TOLERANCE * expected.max()


def test_anchors(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    config = model.config
    with torch.inference_mode():
        levels, _, _ = model.encode(case.pixel_values)
    anchors = Anchors.of(config)(levels)
    prefix = f"{case.name}/anchors"
    assert [len(level) for level in anchors] == recorded.tensor(f"{prefix}/count").tolist()
    check_samples(torch.cat(anchors), recorded, f"{prefix}/all", EXACT)
    base = [base_anchors(stride, config.anchor_scales, config.anchor_ratios) for stride in config.strides]
    torch.testing.assert_close(torch.stack(base), recorded.tensor(f"{prefix}/base"), rtol=1e-6, atol=0)


@contextmanager
def in_float64(model: PreTrainedModel) -> Iterator[None]:
    model.double().zero_grad()
    try:
        yield
    finally:
        model.float()


class Stages:
    """What the heads are given and say, stage by stage."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rois: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.deltas: list[Tensor] = []
        predict = type(model).box_predictions

        def recorded(self_: Any, head: Any, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
            logits, deltas = predict(self_, head, levels, boxes)
            images = [torch.full((len(some), 1), float(image)) for image, some in enumerate(boxes)]
            self.rois.append(torch.cat((torch.cat(images), torch.cat(boxes)), dim=1))
            self.logits.append(logits)
            self.deltas.append(deltas.flatten(1))
            return logits, deltas

        monkeypatch.setattr(type(model), "box_predictions", recorded)


def fixed_proposals(recorded: FurtherRecorded, case: Case, dtype: torch.dtype) -> list[Tensor]:
    return [recorded.tensor(f"{case.name}/fixed/proposals/{image}").to(dtype) for image in range(len(case.valid))]


def on_fixed_proposals(
    model: PreTrainedModel, recorded: FurtherRecorded, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.rpn_head, "propose", lambda *_: fixed_proposals(recorded, case, model.dtype))


def test_stages(recorded: FurtherRecorded, model: PreTrainedModel, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes, logits and deltas of each stage from the recorded proposals, and the detections."""
    stages = Stages(model, monkeypatch)
    on_fixed_proposals(model, recorded, case, monkeypatch)
    with torch.inference_mode():
        output = model(case.pixel_values, case.pixel_mask)
    prefix = f"{case.name}/fixed"
    for stage, (rois, logits, deltas) in enumerate(zip(stages.rois, stages.logits, stages.deltas, strict=True)):
        expected = recorded.tensor(f"{prefix}/stage{stage}/rois")
        assert (rois - expected).abs().max() < TOLERANCE * expected.max()
        check_samples(logits, recorded, f"{prefix}/stage{stage}/logits", 2 * TOLERANCE)
        check_samples(deltas, recorded, f"{prefix}/stage{stage}/deltas", 2 * TOLERANCE)
    check_detections(output, recorded, case, "fixed/")
    check_masks(output, recorded, case, "fixed/")
    monkeypatch.setattr(model.config, "with_masks", False)  # of thousands
    check_counts(model, recorded, case, "fixed/")


def check_masks(output: Any, recorded: FurtherRecorded, case: Case, prefix: str) -> None:
    """Areas within two pixels; the probabilities of all detections, and the pixels of the first three."""
    for image, size in enumerate(case.original):
        name = f"{case.name}/{prefix}detections/{image}"
        boxes = in_pixels(output.pred_boxes[image], *size)
        scores, labels = output.pred_scores[image], output.pred_labels[image]
        ours, theirs = matched(boxes, scores, labels, recorded, name)
        ours = ours[theirs.argsort()]  # in the recorded order
        masks = output.pred_masks[image][ours]
        check_samples(masks, recorded, f"{name}/mask_probability", 5 * TOLERANCE)
        pasted = paste_masks(masks, boxes[ours], size)
        assert (pasted.sum((1, 2)) - recorded.tensor(f"{name}/mask_area")).abs().max() <= 2
        bits = np.unpackbits(recorded.tensor(f"{name}/mask_bits").numpy(), axis=1)[:, : pasted[0].numel()]
        assert (bits != pasted[:3].flatten(1).numpy()).sum(axis=1).max() <= 2


def test_mask_heads(recorded: FurtherRecorded, model: PreTrainedModel, case: Case) -> None:
    """All labels' logits of each stage in the recorded boxes."""
    prefix, rois = f"{case.name}/fixed", recorded.tensor(f"{case.name}/fixed/mask_rois")
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(len(case.valid))]
    with torch.inference_mode():
        levels = model.poolable(model.encode(case.pixel_values)[0])
        for stage, head in enumerate(model.mask_heads):
            every_label: list[Tensor] = []
            hook = head.conv_logits.register_forward_hook(lambda _, __, logits, seen=every_label: seen.append(logits))
            model.mask_logits(head, levels, boxes, torch.zeros(len(rois), dtype=torch.int64))
            hook.remove()
            check_samples(every_label[0], recorded, f"{prefix}/stage{stage}/mask_logits", 5 * TOLERANCE)


def test_with_its_own_proposals(
    recorded: FurtherRecorded, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = recorded.case("one")
    with torch.inference_mode():
        output = model(case.pixel_values, case.pixel_mask)
    check_detections(output, recorded, case, "full/", 2 * TOLERANCE)
    check_masks(output, recorded, case, "full/")
    monkeypatch.setattr(model.config, "with_masks", False)  # of thousands
    check_counts(model, recorded, case, "full/")


@torch.no_grad()
def test_stages_of_its_own_proposals(
    recorded: FurtherRecorded, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, in which the order of nearly equal proposals is the recorded one: the boxes of every stage."""
    case, stages = recorded.case("one"), Stages(model, monkeypatch)
    monkeypatch.setattr(model.config, "with_masks", False)  # which come after all stages
    with in_float64(model):
        model(case.pixel_values.double(), case.pixel_mask)
    for stage, rois in enumerate(stages.rois):
        check_samples(rois, recorded, f"one/full/stage{stage}/rois", EXACT)


class FirstInOrder:
    """The random samplers made deterministic, as for the recording, and how many each gave."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[list[int]] = []
        sample = RandomSampler.__call__

        def choose(sampler: RandomSampler, indices: Tensor, count: int) -> Tensor:
            if sampler is not model.rpn_head.sample:
                return indices[:count]
            count = min(count, len(indices))
            return indices[torch.arange(count) * len(indices) // max(count, 1)]

        def record(sampler: RandomSampler, assigned: Tensor) -> tuple[Tensor, Tensor]:
            positive, negative = sample(sampler, assigned)
            if sampler is not model.rpn_head.sample:
                self.counts.append([len(positive), len(negative)])
            return positive, negative

        monkeypatch.setattr(RandomSampler, "choose", choose)
        monkeypatch.setattr(RandomSampler, "__call__", record)


def losses_of(
    model: PreTrainedModel, recorded: FurtherRecorded, training: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[list[int]]]:
    """What training says, in evaluation mode as recorded, and how many boxes each stage sampled; no detections."""
    sampler, case = FirstInOrder(model, monkeypatch), recorded.case(training.split("/")[0])
    if training.endswith("/fixed"):
        on_fixed_proposals(model, recorded, case, monkeypatch)
        monkeypatch.setattr(model.rpn_head, "losses", lambda *_: {})
    monkeypatch.setattr(model, "detect", lambda *_: ([], None))
    monkeypatch.setattr(model, "packed", lambda *_: {})
    return model(case.pixel_values.to(model.dtype), case.pixel_mask, case.labels), sampler.counts


TRAININGS = ("one", "one/fixed", "two/fixed")


@torch.no_grad()
@pytest.mark.parametrize("training", TRAININGS[1:])
def test_losses_of_stages(
    recorded: FurtherRecorded, model: PreTrainedModel, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recorded proposals: every term, and how many boxes are behind it."""
    output, sampled = losses_of(model, recorded, training, monkeypatch)
    check_losses(output, recorded, f"{training}/loss", TOLERANCE)
    assert recorded.tensor(f"{training}/loss/sampled")[:, 1:].tolist() == sampled


@pytest.mark.parametrize("training", TRAININGS)
def test_losses_and_gradients(
    recorded: FurtherRecorded, model: PreTrainedModel, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: in float32 the rounding of a convolution flips ReLUs, which a gradient's norm shows.

    The model's own proposals have the recorded order there, too: the first of them are sampled.
    """
    with in_float64(model):
        output, sampled = losses_of(model, recorded, training, monkeypatch)
        check_losses(output, recorded, f"{training}/loss", EXACT)
        assert recorded.tensor(f"{training}/loss/sampled")[:, 1:].tolist() == sampled
        output.loss.backward()
        check_gradient_norms(model, recorded, f"{training}/loss/grad")


@torch.no_grad()
def test_proposal_losses_of_a_batch(
    recorded: FurtherRecorded, model: PreTrainedModel, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images of different sizes, one of them without objects."""
    FirstInOrder(model, monkeypatch)
    levels, predictions, _ = model.encode(case.pixel_values)
    objects = ground_truth(case.labels, case.pixel_values, case.valid, 80, with_masks=False)
    for name, term in model.rpn_head.losses(levels, predictions, objects, case.valid).items():
        expected = recorded.tensor(f"{case.name}/rpn/loss/{name}").sum()
        assert (term.total / term.number - expected).abs() < TOLERANCE * expected, name


def test_statistics_are_of_all_processes() -> None:
    """In training; `test_segmentation` compares them with those of one process."""
    model = tiny_detector(CASCADE_MASK_RCNN)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 and all(type(norm) is SynchronizedBatchNorm2d for norm in norms)


def test_no_object_takes_a_box_that_overlaps_it_less() -> None:
    """Not even its best one, which an RPN's object takes; in the recorded cases the best overlap by more."""
    truth, shares = torch.tensor([[0.0, 0, 100, 100]]), (0.45, 0.55, 0.65, 0.75)
    proposals = torch.tensor([[0.0, 0, 100, 100 * share] for share in shares])
    for least, assign in zip((0.5, 0.6, 0.7), tiny_detector(CASCADE_MASK_RCNN).assigners, strict=True):
        assert assign(proposals, truth).tolist() == [0 if share > least else NEGATIVE for share in shares]
        assert assign(proposals[:1], truth).tolist() == [NEGATIVE]


def test_the_background_moves_no_box() -> None:
    """In no recorded case it is the likeliest of all."""
    assert likeliest(torch.tensor([[0.0, 1.0, 9.0], [2.0, 1.0, 1.5]])).tolist() == [1, 0]
