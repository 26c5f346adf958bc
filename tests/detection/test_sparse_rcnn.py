"""Sparse R-CNN against what MMDetection 2.13.0 computes with the published code, and what is its own."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detection_checks import (
    EXACT,
    TOLERANCE,
    check_detections,
    check_gradient_norms,
    check_losses,
    check_samples,
    gradients,
    in_float64,
    matched,
    on_recordings,
)
from detection_reference import Recorded, recordings
from families import BACKBONES, SPARSE_RCNN, tiny_detector
from reference import relative_error
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt.detection.parts import set_matching
from hf_pvt.detection.parts.ground_truth import GroundTruth
from hf_pvt.detection.parts.set_matching import SetMatcher
from hf_pvt.original.detector_layouts import DETECTOR_LAYOUTS
from hf_pvt.original.pyramid_layouts import to_original

IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
LABELS = [
    {"class_labels": torch.tensor([0, 3]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.6], [0.3, 0.3, 0.2, 0.3]])},
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0]])},
]


VARIANTS, CASES = recordings("sparse_rcnn"), ("one", "two")


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return request.param


@pytest.fixture(scope="module")
def model(recorded: Recorded) -> PreTrainedModel:
    return recorded.model()


# Exactness


@on_recordings(VARIANTS, CASES)
@torch.inference_mode()
def test_stages_and_losses(recorded: Recorded, model: PreTrainedModel, name: str) -> None:
    """In float32: boxes, logits and features of each stage, and every term of the loss."""
    case = recorded.case(name)
    levels, predictions, features = model.encode(case.pixel_values)
    assert not predictions
    scales = torch.tensor([(width, height, width, height) for height, width in case.valid])
    assert relative_error(model.rpn_head(scales)[0], recorded.tensor(f"{name}/proposals")) < TOLERANCE
    for number, level in enumerate(levels):
        check_samples(level, recorded, f"{name}/neck/{number}")
    stages = model.stages(levels, case.valid)
    for number, stage in enumerate(stages):
        check_samples(stage.logits, recorded, f"{name}/stage{number}/logits")
        check_samples(stage.features, recorded, f"{name}/stage{number}/object_features")
        assert relative_error(stage.boxes.flatten(0, 1), recorded.tensor(f"{name}/stage{number}/boxes")) < TOLERANCE
    with patch.object(model, "stages", lambda *_: stages):  # once is enough
        output = model.complete(levels, predictions, features, case.pixel_values, case.pixel_mask, case.labels)
    check_losses(output, recorded, f"{name}/loss", TOLERANCE)
    if name == "one":
        check_parameters(recorded, model)


def check_parameters(recorded: Recorded, model: PreTrainedModel) -> None:
    """As counted of the published code, and every key there and back."""
    counts = {"neck": 2_623_488, "rpn_head": 78_000, "box_heads": 79_412_472}
    if recorded.variant == "pvt_v2_b2":
        assert round(model.num_parameters() / 1e6, 2) == 106.96
        assert {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in counts} == counts
    back = to_original(model, recorded.layout)
    assert {key: tuple(weight.shape) for key, weight in back.items()} == recorded.keys


@on_recordings(VARIANTS, CASES)
def test_detections_losses_and_gradients(
    recorded: Recorded, model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: every term, which proposal learns which object, and what the sum does to the weights.

    The best 300 pairs, also as the processor gives them, not clipped.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    match = SetMatcher.__call__

    def record(matcher: SetMatcher, *inputs: Any) -> tuple[Tensor, Tensor]:
        pairs.append(match(matcher, *inputs))
        return pairs[-1]

    monkeypatch.setattr(SetMatcher, "__call__", record)
    case = recorded.case(name)
    with in_float64(model):
        output = model(case.pixel_values.double(), case.pixel_mask, case.labels)
        check_losses(output, recorded, f"{name}/loss", EXACT)
        rows = [
            [call // len(case.valid), call % len(case.valid), *pair]
            for call, indices in enumerate(pairs)
            for pair in torch.stack(indices, dim=1).tolist()
        ]
        assert sorted(rows) == sorted(recorded.tensor(f"{name}/loss/matched").tolist())
        check_detections(output, recorded, case)
        processor = hf_pvt.detection_image_processor()
        found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=case.original)
        for image, detections in enumerate(found):
            prefix = f"{name}/detections/{image}"
            ours, theirs = matched(*(detections[part] for part in ("boxes", "scores", "labels")), recorded, prefix)
            expected = recorded.tensor(f"{prefix}/boxes")[theirs]
            assert expected.min() < -50 and relative_error(detections["boxes"][ours], expected) < TOLERANCE
        output.loss.backward()
        check_gradient_norms(gradients(model, recorded), recorded, f"{name}/loss/grad")


# Matching

SCALE = torch.tensor([128.0, 96.0, 128.0, 96.0])
MATCHER = SetMatcher(focal_alpha=0.25, focal_gamma=2.0, cls_weight=2.0, l1_weight=5.0, giou_weight=2.0)


def some_boxes(count: int, seed: int) -> Tensor:
    """Corners inside an image of 96 x 128 pixels."""
    shares = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 0.4 + torch.tensor([0.3, 0.3, 0, 0])
    return box_convert(shares.clamp(min=0.05), "cxcywh", "xyxy") * SCALE


def cost(logits: list[float], box: list[float], label: int, wanted: list[float]) -> float:
    """Of one pair, written down anew."""
    p = 1 / (1 + math.exp(-logits[label]))
    focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
    l1 = sum(abs(a - b) / side for a, b, side in zip(box, wanted, SCALE.tolist(), strict=True))
    inner, outer = (
        [(pick_low(a, b), pick_high(c, d)) for (a, c), (b, d) in zip(sides(box), sides(wanted), strict=True)]
        for pick_low, pick_high in ((max, min), (min, max))
    )
    overlap = math.prod(max(high - low, 0) for low, high in inner)
    union = sum(math.prod(high - low for low, high in sides(one)) for one in (box, wanted)) - overlap
    hull = math.prod(high - low for low, high in outer)
    return 2 * focal + 5 * l1 - 2 * (overlap / union - (hull - union) / hull)


def sides(box: list[float]) -> list[tuple[float, float]]:
    return [(box[0], box[2]), (box[1], box[3])]


@pytest.mark.parametrize(("proposals", "objects"), [(7, 3), (3, 7), (1, 1)])
def test_the_cheapest_pairs(proposals: int, objects: int) -> None:
    """One proposal for each object, or one object for each proposal where there are fewer."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(proposals, 4, generator=generator)
    truth = GroundTruth(some_boxes(objects, 1), torch.randint(0, 4, (objects,), generator=generator), None)
    boxes = some_boxes(proposals, 3)
    costs = [
        [cost(*one, label, wanted) for label, wanted in zip(truth.labels.tolist(), truth.boxes.tolist(), strict=True)]
        for one in zip(logits.tolist(), boxes.tolist(), strict=True)
    ]
    rows, columns = linear_sum_assignment(costs)
    found = MATCHER(logits, boxes, truth, SCALE)
    assert [indices.tolist() for indices in found] == [rows.tolist(), columns.tolist()]


def test_what_is_sure_costs_no_infinity() -> None:
    """The published 1e-12 is under the logarithms, which are 27.6 at most."""
    found = MATCHER.focal_cost(torch.tensor([-200.0, 200.0]))
    torch.testing.assert_close(found, math.log(1e-12) * torch.tensor([-0.25, 0.75]))


def test_nothing_to_match() -> None:
    proposals, objects = MATCHER(torch.zeros(5, 4), some_boxes(5, 1), truth_of_nothing(), SCALE)
    assert proposals.shape == objects.shape == (0,) and proposals.dtype == objects.dtype == torch.int64


def truth_of_nothing() -> GroundTruth:
    return GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None)


def test_weights_that_are_no_numbers() -> None:
    """The loss says so, as those of the other detectors, where scipy would raise an error about a matrix."""
    model = tiny_detector(SPARSE_RCNN)
    model.box_heads[0].fc_reg.bias.data[0] = math.nan
    assert model(IMAGES, labels=LABELS).loss.isnan()


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detections do without; a loss says what it needs."""
    monkeypatch.setattr(set_matching, "linear_sum_assignment", None)
    model = tiny_detector(SPARSE_RCNN)
    with torch.no_grad():
        assert (model(IMAGES).pred_labels >= 0).all()
    with pytest.raises(ImportError, match=r'needs scipy, .* pip install "hf_pvt\[detection\]"\.$'):
        model(IMAGES, labels=LABELS)


# What is its own


@pytest.mark.parametrize("empty", [False, True], ids=["built", "from an empty state dict"])
def test_initialisation(empty: bool) -> None:
    """The published distributions, also of weights that a checkpoint lacks."""
    torch.manual_seed(0)
    config = hf_pvt.SparseRcnnConfig(
        backbone_config=BACKBONES["pvt_v2"](), num_labels=20, fpn_hidden_size=64, num_stages=1, dynamic_hidden_size=16
    )
    kind = hf_pvt.SparseRcnnForObjectDetection
    model = kind.from_pretrained(None, config=config, state_dict={}) if empty else kind(config)
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(300, 4)
    assert model.rpn_head.init_proposal_bboxes.weight.equal(whole)
    features = model.rpn_head.init_proposal_features.weight
    assert abs(features.mean().item()) < 0.03 and features.std().item() == pytest.approx(1, rel=0.03)
    head = model.box_heads[0]
    for name, layer in head.named_modules():
        if isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all() and (layer.bias == 0).all(), name
        for leaf, parameter in layer.named_parameters(recurse=False):
            if parameter.dim() == 2:
                check_uniform(parameter, math.sqrt(6 / sum(parameter.shape)), name)
            elif name == "fc_cls":
                torch.testing.assert_close(parameter, torch.full_like(parameter, -math.log(99)))
            elif name.startswith("attention") and not name.endswith("norm"):
                assert leaf.endswith("bias") and not parameter.any(), name
            elif isinstance(layer, nn.Linear) and len(parameter) > 4:
                check_uniform(parameter, 1 / math.sqrt(layer.in_features), name)


def check_uniform(values: Tensor, bound: float, name: str) -> None:
    assert 0.85 * bound < values.abs().max() <= bound, name
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_a_box_may_have_several_labels() -> None:
    """The best pairs of a box and a label: all of them where there is room."""
    model = tiny_detector(SPARSE_RCNN, max_detections=200)
    with torch.no_grad():
        output = model(IMAGES)
    assert (output.pred_labels[:, :125] >= 0).all() and (output.pred_labels[:, 125:] == -1).all()  # 25 boxes, 5 labels
    for image in range(2):
        boxes, counts = output.pred_boxes[image, :125].unique(dim=0, return_counts=True)
        assert len(boxes) == 25 and (counts == 5).all()
        assert output.pred_labels[image, :125].bincount().tolist() == [25] * 5


def test_evaluation_runs_the_stages_once() -> None:
    """Loss and detections are of the same boxes."""
    model, calls = tiny_detector(SPARSE_RCNN), []
    for head in model.box_heads:
        head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert model(IMAGES, labels=LABELS).pred_boxes is not None
    assert len(calls) == 2


def test_sizes_are_read_of_a_checkpoint(tmp_path: Path) -> None:
    """All but the heads of the attention, which the caller says."""
    sizes = {"num_proposals": 11, "num_stages": 3, "box_pool_size": 5, "dynamic_hidden_size": 4}
    sizes |= {"feed_forward_size": 24, "num_cls_linears": 2, "num_reg_linears": 1, "fpn_hidden_size": 16}
    model = tiny_detector(SPARSE_RCNN, **sizes)
    layout = next(layout for layout in DETECTOR_LAYOUTS if layout.source.endswith("Sparse R-CNN on published PVTv2"))
    torch.save({"state_dict": to_original(model, layout)}, tmp_path / "detector.pth")
    heads = {"proposal_attention_heads": 4, "num_attention_heads": model.config.backbone_config.num_attention_heads}
    loaded = hf_pvt.load_original(tmp_path / "detector.pth", **heads)
    assert {name: getattr(loaded.config, name) for name in sizes} == sizes
    assert loaded.config.max_detections == 11
    loaded.config.max_detections = model.config.max_detections
    with torch.no_grad():
        assert loaded(IMAGES).pred_scores.equal(model(IMAGES).pred_scores)


def test_boxes_over_the_border_are_drawn() -> None:
    """As what of them is inside."""
    photo = np.full((96, 128, 3), 100, dtype=np.uint8)
    detections = {"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1])}
    boxes = torch.tensor([[-20.0, 10.0, 60.0, 80.0], [70.0, -5.0, 150.0, 99.0]])
    inside = boxes.clamp(min=0).minimum(SCALE)
    pictures = [
        hf_pvt.draw_detections(photo, detections | {"boxes": some}, {0: "a", 1: "b"}) for some in (boxes, inside)
    ]
    assert pictures[0].tobytes() == pictures[1].tobytes() != photo.tobytes()
