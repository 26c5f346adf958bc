"""Cascade Mask R-CNN against what MMDetection 2.13.0 computes with the published code: outputs, losses, gradients.

Box and mask heads are compared in float32 on recorded proposals, so that nothing depends on the order of nearly equal
ones. Logits of later stages, and masks, are as far off in float32 as the boxes before them. What depends on the model's
own proposals is compared in float64, in which their order is the recorded one, and so are gradients.
"""

from typing import Any

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
    gradients,
    in_float64,
    in_pixels,
    matched,
    on_recordings,
)
from detection_reference import Case, Recorded, recordings
from families import CASCADE_MASK_RCNN, tiny_detector
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_pvt.detection.modeling_cascade_mask_rcnn import likeliest
from hf_pvt.detection.parts.anchors import Anchors, base_anchors
from hf_pvt.detection.parts.assigners import NEGATIVE
from hf_pvt.detection.parts.ground_truth import ground_truth
from hf_pvt.detection.parts.mask_pasting import paste_masks
from hf_pvt.detection.parts.samplers import RandomSampler
from hf_pvt.heads.synchronized_batch_norm import SynchronizedBatchNorm2d

VARIANTS, CASES = recordings("cascade_mask_rcnn"), ("one", "two")


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: Recorded) -> PreTrainedModel:
    return recorded.model()


def check_dense_outputs(recorded: Recorded, encoded: Any, name: str) -> None:
    """The neck's levels, and what is said of every anchor."""
    levels, predictions, _ = encoded
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{name}/neck/{number}")
    for ours, theirs in (("objectness", "cls"), ("proposal_deltas", "reg")):
        values = predictions[ours]
        for number, level_map in enumerate(as_maps(values if values.dim() == 3 else values[..., None], levels)):
            check_samples(level_map, recorded, f"{name}/rpn/{theirs}/{number}")


def check_anchors(recorded: Recorded, config: Any, levels: list[Tensor], name: str) -> None:
    anchors, prefix = Anchors.of(config)(levels), f"{name}/anchors"
    assert [len(level) for level in anchors] == recorded.tensor(f"{prefix}/count").tolist()
    check_samples(torch.cat(anchors), recorded, f"{prefix}/all", EXACT)
    base = [base_anchors(stride, config.anchor_scales, config.anchor_ratios) for stride in config.strides]
    torch.testing.assert_close(torch.stack(base), recorded.tensor(f"{prefix}/base"), rtol=1e-6, atol=0)


class Stages:
    """What the heads are given and say, stage by stage; in the same boxes they are not asked again."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rois: list[Tensor] = []
        self.said: dict[Any, tuple[Tensor, Tensor]] = {}
        predict = model.box_predictions

        def recorded(head: Any, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
            if head not in self.said:
                images = [some.new_full((len(some), 1), image) for image, some in enumerate(boxes)]
                self.rois.append(torch.cat((torch.cat(images), torch.cat(boxes)), dim=1))
                self.said[head] = predict(head, levels, boxes)
            return self.said[head]

        monkeypatch.setattr(model, "box_predictions", recorded)


def fixed_proposals(recorded: Recorded, case: Case, dtype: torch.dtype) -> list[Tensor]:
    return [recorded.tensor(f"{case.name}/fixed/proposals/{image}").to(dtype) for image in range(len(case.valid))]


@on_recordings(VARIANTS, CASES)
@torch.inference_mode()
def test_stages(recorded: Recorded, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, from the recorded proposals: boxes, logits and deltas of each stage, the detections, the losses.

    All labels' logits of each stage's mask head in the recorded boxes.
    """
    case, prefix = recorded.case(name), f"{name}/fixed"
    encoded = model.encode(case.pixel_values)
    check_dense_outputs(recorded, encoded, name)
    check_anchors(recorded, model.config, encoded[0], name)
    monkeypatch.setattr(model.rpn_head, "propose", lambda *_: fixed_proposals(recorded, case, model.dtype))
    output, sampled = losses_of(model, encoded, case, "fixed")
    check_losses(output, recorded, f"{prefix}/loss", TOLERANCE)
    assert recorded.tensor(f"{prefix}/loss/sampled")[:, 1:].tolist() == sampled
    stages = Stages(model, monkeypatch)
    output = model.complete(*encoded, case.pixel_values, case.pixel_mask, None)
    for stage, (rois, (logits, deltas)) in enumerate(zip(stages.rois, stages.said.values(), strict=True)):
        expected = recorded.tensor(f"{prefix}/stage{stage}/rois")
        assert (rois - expected).abs().max() < TOLERANCE * expected.max()
        check_samples(logits, recorded, f"{prefix}/stage{stage}/logits", 2 * TOLERANCE)
        check_samples(deltas.flatten(1), recorded, f"{prefix}/stage{stage}/deltas", 2 * TOLERANCE)
    check_detections(output, recorded, case, "fixed/")
    check_masks(output, recorded, case, "fixed/")
    check_counts(
        model.config, lambda: model.detect_in([], model.rpn_head.propose(), case.valid), recorded, case, "fixed/"
    )
    check_mask_heads(recorded, model, encoded[0], case)


def check_masks(output: Any, recorded: Recorded, case: Case, prefix: str) -> None:
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


def check_mask_heads(recorded: Recorded, model: PreTrainedModel, levels: list[Tensor], case: Case) -> None:
    rois = recorded.tensor(f"{case.name}/fixed/mask_rois")
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(len(case.valid))]
    pooled = model.pooled(model.poolable(levels), boxes, model.config.mask_pool_size)
    for stage, head in enumerate(model.mask_heads):
        every_label: list[Tensor] = []
        hook = head.conv_logits.register_forward_hook(lambda _, __, logits, seen=every_label: seen.append(logits))
        head(pooled, torch.zeros(len(rois), dtype=torch.int64))
        hook.remove()
        check_samples(every_label[0], recorded, f"{case.name}/fixed/stage{stage}/mask_logits", 5 * TOLERANCE)


@on_recordings(VARIANTS, ["one/full"])
@torch.no_grad()
def test_with_its_own_proposals(
    recorded: Recorded, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: the boxes of every stage, and the detections."""
    case, stages = recorded.case("one"), Stages(model, monkeypatch)
    pixel_values = case.pixel_values.double()
    with in_float64(model):
        encoded = model.encode(pixel_values)
        output = model.complete(*encoded, pixel_values, case.pixel_mask, None)
        for stage, rois in enumerate(stages.rois):
            check_samples(rois, recorded, f"{name}/stage{stage}/rois", EXACT)
        check_detections(output, recorded, case, "full/")
        check_masks(output, recorded, case, "full/")
        check_counts(
            model.config, lambda: model.detect_in([], [stages.rois[0][:, 1:]], case.valid), recorded, case, "full/"
        )


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


def losses_of(model: PreTrainedModel, encoded: Any, case: Case, proposals: str) -> tuple[Any, list[list[int]]]:
    """What training says, in evaluation mode as recorded, and how many boxes each stage sampled; no detections."""
    with pytest.MonkeyPatch.context() as patch:
        sampler = FirstInOrder(model, patch)
        if proposals == "fixed":
            patch.setattr(model.rpn_head, "losses", lambda *_: {})
        patch.setattr(model, "detect", lambda *_: ([], None))
        patch.setattr(model, "packed", lambda *_: {})
        return model.complete(*encoded, case.pixel_values.to(model.dtype), case.pixel_mask, case.labels), sampler.counts


@on_recordings(VARIANTS, ["one/loss", "one/fixed/loss", "two/fixed/loss"])
def test_losses_and_gradients(
    recorded: Recorded, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, from the model's own proposals, the first of which are sampled, or from the recorded ones."""
    case = recorded.case(name.split("/")[0])
    with in_float64(model):
        encoded = model.encode(case.pixel_values)
        if name != "one/fixed/loss":  # whose proposals are those of the first
            check_proposals(recorded, model, encoded, case)
        if "fixed" in name:
            monkeypatch.setattr(model.rpn_head, "propose", lambda *_: fixed_proposals(recorded, case, model.dtype))
        output, sampled = losses_of(model, encoded, case, "fixed" if "fixed" in name else "own")
        check_losses(output, recorded, name, EXACT)
        assert recorded.tensor(f"{name}/sampled")[:, 1:].tolist() == sampled
        output.loss.backward()
        check_gradient_norms(gradients(model, recorded), recorded, f"{name}/grad")


@torch.no_grad()
def check_proposals(recorded: Recorded, model: PreTrainedModel, encoded: Any, case: Case) -> None:
    """The best 1000 after NMS, as sets, and their losses, also of images of different sizes, one without objects."""
    (levels, predictions, _), config = encoded, model.config
    proposals = model.rpn_head.propose(levels, predictions, case.valid, config.rpn_candidates, config.max_proposals)
    for image, boxes in enumerate(proposals):
        expected = recorded.tensor(f"{case.name}/proposals/{image}")[:, :4].double()
        nearest, ours = torch.cdist(boxes, expected, p=float("inf")).min(dim=0)
        assert len(boxes) == len(ours.unique()) == len(expected)
        assert nearest.max() < TOLERANCE * expected.max()
    with pytest.MonkeyPatch.context() as patch:
        FirstInOrder(model, patch)
        objects = ground_truth(case.labels, case.pixel_values.double(), case.valid, 80, with_masks=False)
        terms = model.rpn_head.losses(levels, predictions, objects, case.valid)
    for name, term in terms.items():
        wanted = recorded.tensor(f"{case.name}/rpn/loss/{name}").sum()
        assert (term.total / term.number - wanted).abs() < TOLERANCE * wanted, name


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
