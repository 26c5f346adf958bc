"""What ATSS and GFL are made of, against plain loops over the published rules, or torchvision where it agrees."""

import math
from types import SimpleNamespace

import pytest
import torch
from detection_checks import random_boxes
from families import ATSS, tiny_detector
from torch import Tensor
from torchvision import ops

from hf_pvt.detection.modeling_atss import centerness_of
from hf_pvt.detection.modeling_dense_detector import Matched
from hf_pvt.detection.modeling_gfl import Integral, distribution_focal_loss, overlaps, quality_focal_loss
from hf_pvt.detection.parts.anchors import Anchors
from hf_pvt.detection.parts.assigners import NEGATIVE
from hf_pvt.detection.parts.atss_assigner import AtssAssigner
from hf_pvt.detection.parts.ground_truth import GroundTruth
from hf_pvt.detection.parts.loss_terms import LossTerm, means
from hf_pvt.detection.parts.suppression import detect
from hf_pvt.heads.feature_pyramid import ContinuedNeck

ANCHORS = Anchors((8, 16, 32, 64), (8,), (1,), 32)
LEVELS = [torch.zeros(1, 1, 12, 16), torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)]


def assigned_by_loop(levels: tuple[Tensor, ...], boxes: Tensor, most: int) -> list[int]:
    anchors = torch.cat(levels)
    iou = ops.box_iou(anchors, boxes)
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in anchors.tolist()]
    claims: list[dict[int, float]] = [{} for _ in anchors]
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        candidates, first = [], 0
        for level in levels:
            own = range(first, first + len(level))
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            candidates += sorted(own, key=lambda i: math.hypot(centres[i][0] - x, centres[i][1] - y))[:most]
            first += len(level)
        own = [iou[i, number].item() for i in candidates]
        mean = sum(own) / len(own)
        enough = mean + math.sqrt(sum((value - mean) ** 2 for value in own) / (len(own) - 1))
        for i, value in zip(candidates, own, strict=True):
            x, y = centres[i]
            if value >= enough and min(x - x1, y - y1, x2 - x, y2 - y) > 0.01:
                claims[i][number] = value
    return [max(claim, key=lambda box: claim[box]) if claim else NEGATIVE for claim in claims]


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 12), (2, 70)])
def test_assigner(seed: int, count: int) -> None:
    """Also of more boxes than are looked at together; a level may have fewer anchors than candidates."""
    boxes, levels = random_boxes(count, seed).double(), tuple(level.double() for level in ANCHORS(LEVELS))
    found = AtssAssigner(9)(levels, boxes).tolist()
    assert found == assigned_by_loop(levels, boxes, 9)
    assert any(box >= 0 for box in found)
    assert AtssAssigner(4)(levels, boxes).tolist() == assigned_by_loop(levels, boxes, 4)


def test_nothing_to_assign() -> None:
    """No box, and one in which no anchor's centre lies."""
    anchors = ANCHORS(LEVELS)
    for boxes in (torch.zeros(0, 4), torch.tensor([[1.0, 1, 5, 5]])):
        assert set(AtssAssigner(9)(anchors, boxes).tolist()) == {NEGATIVE}


def test_what_overlaps_enough() -> None:
    """Two that overlap alike have no deviation, and both are enough; of four it is a sample's, which none reaches."""
    alike = torch.tensor([[0.0, 0, 8, 8], [4, 0, 12, 8]])
    assert AtssAssigner(9)([alike], torch.tensor([[0.0, 0, 12, 8]])).tolist() == [0, 0]
    # Overlaps of 1, 0.9, 0 and 0: their mean is 0.475, their deviation 0.55 (of all that there is 0.476).
    various = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [40, 40, 50, 50], [60, 60, 70, 70]])
    assert AtssAssigner(9)([various], torch.tensor([[0.0, 0, 10, 10]])).tolist() == [NEGATIVE] * 4


def test_the_neck_goes_on_from_its_own_output() -> None:
    """Not, as RetinaNet's, from the backbone's last map."""
    torch.manual_seed(0)
    neck = ContinuedNeck((4, 6), 8, further=2)
    levels = neck([torch.randn(1, 4, 10, 14), torch.randn(1, 6, 5, 7)])
    assert [level.shape[2:] for level in levels] == [(10, 14), (5, 7), (3, 4), (2, 2)]
    for level, conv in enumerate(neck.further_convs):
        torch.testing.assert_close(levels[level + 2], conv(levels[level + 1]))


def test_centerness() -> None:
    """From the anchor's centre: 1 in the middle, less towards a side."""
    boxes = torch.tensor([[0.0, 0, 40, 20]]).expand(3, 4)
    anchors = torch.tensor(
        [[0.0, -10, 40, 30], [-20, 0, 40, 20], [-10, -28, 30, 36]]
    )  # centres (20, 10), (10, 10), (10, 4)
    expected = torch.tensor([1.0, math.sqrt(10 / 30), math.sqrt(10 / 30 * 4 / 16)])
    torch.testing.assert_close(centerness_of(anchors, boxes), expected)


def test_quality_focal_loss() -> None:
    """Of qualities 0 and 1 it is the focal loss without its weight; at its quality it is flat; between, by hand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=generator)
    whole = torch.randint(0, 2, (20, 5), generator=generator).float()
    expected = ops.sigmoid_focal_loss(logits, whole, alpha=-1, gamma=2)
    torch.testing.assert_close(quality_focal_loss(logits, whole, 2.0), expected)
    assert quality_focal_loss(logits, logits.sigmoid(), 2.0).max() < 1e-10
    found = quality_focal_loss(torch.tensor([0.0]), torch.tensor([0.8]), 1.5)
    torch.testing.assert_close(found, torch.tensor([math.log(2) * 0.3**1.5]))


def test_distribution_focal_loss() -> None:
    """Both neighbours by their nearness, each side of its own; outside the range as at its end."""
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    distances = torch.tensor([[0.0, 0.25, 3.9, 2.0], [-3.0, 4.9, 5.0, 70.0], [1.5, 1.0, 0.1, 4.0]])
    expected = torch.empty(3, 4)
    for box in range(3):
        for side in range(4):
            distance = min(max(distances[box, side].item(), 0), 4.9)
            below, logs = int(distance), logits[box, side].log_softmax(0)
            expected[box, side] = -(below + 1 - distance) * logs[below] - (distance - below) * logs[below + 1]
    torch.testing.assert_close(distribution_focal_loss(logits, distances), expected)


def test_integral() -> None:
    """The mean distance, as exact under autocast as without: a box of 1,000 pixels is not rounded to multiples of 4."""
    integral, logits = Integral(16), torch.randn(50, 4, 17, generator=torch.Generator().manual_seed(0))
    expected = (logits.softmax(2) * torch.arange(17.0)).sum(2)
    torch.testing.assert_close(integral(logits), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(integral(logits), expected)


def test_overlaps() -> None:
    one, other = random_boxes(40), random_boxes(40, seed=1)
    torch.testing.assert_close(overlaps(one, other), ops.box_iou(one, other).diagonal())


def test_a_loss_of_little_is_divided_by_the_least() -> None:
    terms = {"few": LossTerm(torch.tensor(3.0), 0.5, least=1), "many": LossTerm(torch.tensor(3.0), 2.5, least=1)}
    found = means(terms, over_processes=False)
    assert found["few"] == 3.0 and found["many"] == pytest.approx(1.2)


def test_boxes_far_from_their_centres_are_divided_by_one() -> None:
    """ATSS: in the recorded cases the sum of what boxes are weighted by is larger, but for GFL's."""
    model = tiny_detector(ATSS)
    anchors, truth = torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([[31.0, 31, 95, 95]])
    predictions = {"logits": torch.zeros(1, 5), "box_deltas": torch.zeros(1, 4), "centerness": torch.zeros(1)}
    objects = GroundTruth(truth, torch.tensor([2]), None)
    terms = model.losses_of([Matched(anchors, predictions, torch.tensor([0]), objects)])
    weight = 1 / 63  # of both sides, the root of its square
    distance = ops.generalized_box_iou_loss(anchors, truth).item()
    assert means(terms, over_processes=False)["loss_bbox"].item() == pytest.approx(2 * weight * distance)


def test_factors_of_scores() -> None:
    """The threshold is of the score without its factor; the order, and what NMS keeps, of the product."""
    config = SimpleNamespace(score_threshold=0.05, nms_threshold=0.5, max_detections=10)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores, factors = torch.tensor([[0.9], [0.8], [0.06], [0.04]]), torch.tensor([0.1, 0.5, 0.2, 1.0])
    found = detect(boxes, scores, config, factors)
    torch.testing.assert_close(found.scores, torch.tensor([0.4, 0.012]))
    assert found.boxes.equal(boxes[[1, 2]])
