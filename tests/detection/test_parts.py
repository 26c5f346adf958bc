"""The parts of detectors, each against a plain loop over the published rules, or torchvision where it agrees."""

import copy
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_checks import random_boxes
from torch import Tensor
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder

from hf_pvt.detection.parts.anchors import Anchors, base_anchors
from hf_pvt.detection.parts.assigners import IGNORED, NEGATIVE, IoUAssigner
from hf_pvt.detection.parts.box_coder import LARGEST_LOG_RATIO, decode, encode
from hf_pvt.detection.parts.ground_truth import ground_truth, valid_sizes
from hf_pvt.detection.parts.loss_terms import means
from hf_pvt.detection.parts.mask_head import mask_loss, mask_targets
from hf_pvt.detection.parts.roi_pooling import levels_of, pool_boxes
from hf_pvt.detection.parts.samplers import RandomSampler
from hf_pvt.detection.parts.suppression import best_candidates, detect
from hf_pvt.heads.feature_pyramid import ConvolvedNeck

# Anchors

OCTAVE = tuple(4 * 2 ** (third / 3) for third in range(3))


def test_anchors() -> None:
    """Row, column, ratio, scale; centres at multiples of the nominal stride, nothing rounded."""
    anchors = Anchors((8, 16), OCTAVE, (0.5, 1, 2), 32)
    levels = [torch.zeros(1, 4, 5, 7), torch.zeros(1, 4, 2, 3)]
    for level, stride, found in zip(levels, (8, 16), anchors(levels), strict=True):
        expected = []
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for ratio in (0.5, 1, 2):
                    for scale in OCTAVE:
                        width = stride * scale / math.sqrt(ratio) / 2
                        height = stride * scale * math.sqrt(ratio) / 2
                        x, y = column * stride, row * stride
                        expected.append((x - width, y - height, x + width, y + height))
        torch.testing.assert_close(found, torch.tensor(expected))


def test_anchors_keep_area_and_ratio() -> None:
    x1, y1, x2, y2 = base_anchors(16, (8,), (0.5, 1, 2)).unbind(1)
    torch.testing.assert_close((x2 - x1) * (y2 - y1), torch.full((3,), 128.0**2))
    torch.testing.assert_close((y2 - y1) / (x2 - x1), torch.tensor([0.5, 1, 2]))


def test_anchors_are_kept_for_training_too() -> None:
    """What is made once in inference mode, and kept, may be part of a later graph."""
    anchors, levels = Anchors((8,), (3.25,), (1,), 32), [torch.zeros(1, 4, 5, 7)]
    with torch.inference_mode():
        (first,) = anchors(levels)
    (second,) = anchors(levels)
    assert second is first and not second.is_inference()
    (second * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("image", [(64, 96), (33, 65), (32, 96), (64, 1)])
def test_anchors_inside(image: tuple[int, int]) -> None:
    """Those up to ceil(padded / stride) of the image's own padded size, also where a map is shorter than that."""
    anchors = Anchors((8, 64), (4,), (1, 2), 32)
    levels = [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 1, 1)]
    padded = [math.ceil(side / 32) * 32 for side in image]
    expected = [
        row < math.ceil(padded[0] / stride) and column < math.ceil(padded[1] / stride)
        for level, stride in zip(levels, (8, 64), strict=True)
        for row in range(level.shape[2])
        for column in range(level.shape[3])
        for _ in range(2)
    ]
    assert anchors.inside(levels, image).tolist() == expected


# The box coder


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_box_coder_is_torchvisions(stds: tuple[float, ...]) -> None:
    coder = BoxCoder(weights=tuple(1 / std for std in stds))
    reference, boxes = random_boxes(50), random_boxes(50, seed=1)
    deltas = encode(reference, boxes, stds)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, reference))
    torch.testing.assert_close(decode(reference, deltas, stds), boxes, rtol=0, atol=1e-4)
    small = 0.5 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(decode(reference, small, stds), coder.decode_single(small, reference))


def test_decoding_clamps_on_both_sides() -> None:
    """torchvision clamps from above alone."""
    reference = torch.tensor([[10.0, 10, 42, 42]]).expand(2, 4)
    boxes = decode(reference, torch.tensor([[0, 0, 9.0, 9], [0, 0, -9, -9]]))
    sides = torch.tensor([[32 * 62.5] * 2, [32 / 62.5] * 2])
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], sides, rtol=1e-4, atol=0)
    assert pytest.approx(4.135, abs=1e-3) == LARGEST_LOG_RATIO
    assert decode(reference, torch.full((2, 4), math.inf).clamp(max=1e30), size=(50, 60)).isfinite().all()


def test_decoding_clips() -> None:
    """To the image inside its padding, height and width not mixed up; of any shape."""
    boxes = torch.tensor([[-5.0, -6, 200, 300], [70, 10, 90, 20]])
    expected = torch.tensor([[0.0, 0, 80, 60], [70, 10, 80, 20]])
    assert decode(boxes, torch.zeros(2, 4), size=(60, 80)).equal(expected)
    reference = random_boxes(6)
    deltas = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(3))
    together = decode(reference[:, None], deltas, (0.1, 0.1, 0.2, 0.2), (60, 80))
    for label in range(3):
        assert together[:, label].equal(decode(reference, deltas[:, label], (0.1, 0.1, 0.2, 0.2), (60, 80)))


# The assigner


def assigned_by_loop(anchors: Tensor, boxes: Tensor, positive: float, negative: float, least: float) -> list[int]:
    overlaps = ops.box_iou(boxes, anchors)
    result = []
    for anchor in range(len(anchors)):
        best = overlaps[:, anchor].max()
        box = overlaps[:, anchor].tolist().index(best)
        result.append(box if best >= positive else NEGATIVE if best < negative else IGNORED)
    for box in range(len(boxes)):  # later boxes win
        best = overlaps[box].max()
        if best >= least:
            for anchor in (overlaps[box] == best).nonzero().flatten().tolist():
                result[anchor] = box
    return result


@pytest.mark.parametrize(
    ("thresholds", "seed", "count"),
    [
        ((0.5, 0.4, 0.0), 0, 12),
        ((0.7, 0.3, 0.3), 1, 12),
        ((0.7, 0.3, 0.3), 2, 70),  # more than are looked at together
        ((0.5, 0.5, 0.5), 3, 70),
    ],
)
def test_assigner(thresholds: tuple[float, float, float], seed: int, count: int) -> None:
    """RetinaNet's, the proposals' and the box head's numbers."""
    anchors = torch.cat(Anchors((8, 16), (2, 3), (0.5, 1, 2), 32)([torch.zeros(1, 1, 12, 16), torch.zeros(1, 1, 6, 8)]))
    boxes = random_boxes(count, seed)
    boxes[3] = boxes[7]  # the same object twice
    boxes[5, 2:] = boxes[5, :2] + 0.5  # below a pixel
    found = IoUAssigner(*thresholds)(anchors, boxes).tolist()
    assert found == assigned_by_loop(anchors, boxes, *thresholds)
    assert len(set(found)) > 4


def test_ties_and_the_minimum() -> None:
    square = torch.tensor([[0.0, 0, 10, 10]])
    two = torch.tensor([[0.0, 0, 10, 5], [0.0, 5, 10, 10], [50, 50, 60, 60]])
    assert IoUAssigner(0.7, 0.3, 0.3)(two, square).tolist() == [0, 0, NEGATIVE]  # both tie at 0.5
    assert IoUAssigner(0.7, 0.3, 0.6)(two, square).tolist() == [IGNORED, IGNORED, NEGATIVE]  # too little to be taken
    assert IoUAssigner(0.7, 0.3, 0.5)(two, square).tolist() == [0, 0, NEGATIVE]  # just enough
    assert IoUAssigner(0.5, 0.3, 0.6)(two, square).tolist() == [0, 0, NEGATIVE]  # from the threshold on, not beyond
    # The second box has its best overlap with the anchor that fits the first one exactly, and takes it.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])
    assert IoUAssigner(0.5, 0.4, 0.0)(square, boxes).tolist() == [1]
    assert IoUAssigner(0.5, 0.4, 0.6)(square, boxes).tolist() == [0]


def test_nothing_to_assign() -> None:
    assert IoUAssigner(0.5, 0.4, 0.0)(random_boxes(3), torch.zeros(0, 4)).tolist() == [NEGATIVE] * 3
    assert (
        IoUAssigner(0.5, 0.4, 0.0)(random_boxes(3), torch.tensor([[900.0, 900, 950, 950]])).tolist() == [NEGATIVE] * 3
    )


# The sampler


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [(300, 900, (128, 128)), (20, 900, (20, 236)), (20, 30, (20, 30)), (300, 10, (128, 10)), (0, 900, (0, 256))],
)
def test_sampler(positive: int, negative: int, expected: tuple[int, int]) -> None:
    """So many, none twice, none that is ignored, other ones every time, the same ones from the same seed."""
    assigned = torch.tensor([2] * positive + [NEGATIVE] * negative + [IGNORED] * 50)
    assigned = assigned[torch.randperm(len(assigned), generator=torch.Generator().manual_seed(0))]
    sample = RandomSampler(256, positive_share=0.5)
    torch.manual_seed(1)
    first, second = sample(assigned), sample(assigned)
    torch.manual_seed(1)
    again = sample(assigned)
    for indices, count, kind in zip(first, expected, (2, NEGATIVE), strict=True):
        assert len(indices.unique()) == len(indices) == count
        assert (assigned[indices] == kind).all()
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    if positive > expected[0] or negative > expected[1]:
        assert not all(one.sort().values.equal(other.sort().values) for one, other in zip(first, second, strict=True))


def test_every_one_is_sampled_as_often() -> None:
    torch.manual_seed(0)
    assigned, counts = torch.full((40,), NEGATIVE), torch.zeros(40)
    for _ in range(2000):
        counts[RandomSampler(10, 0.5)(assigned)[1]] += 1
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, standard deviation 19


# Suppression


def thresholds(score: float = 0.05, nms: float = 0.5, most: int = 100) -> Any:
    return SimpleNamespace(score_threshold=score, nms_threshold=nms, max_detections=most)


@pytest.mark.parametrize("most", [100, 7])
@pytest.mark.parametrize("own_boxes", [False, True], ids=["one box for all labels", "a box for each label"])
def test_detect(own_boxes: bool, most: int) -> None:
    """Torchvision's suppression of each label alone, then the best over all labels."""
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(80), torch.rand(80, 3, generator=generator)
    if own_boxes:
        boxes = torch.stack([random_boxes(80, seed) for seed in range(3)], dim=1)
    expected = []
    for label in range(3):
        its_boxes = boxes[:, label] if own_boxes else boxes
        for index in ops.nms(its_boxes, scores[:, label], 0.5).tolist():
            if scores[index, label] > 0.3:
                expected.append((scores[index, label].item(), label, its_boxes[index].tolist()))
    expected = sorted(expected, reverse=True)[:most]
    found = detect(boxes, scores, thresholds(score=0.3, most=most))
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.boxes.tolist() == [box for _, _, box in expected]


def test_detect_many() -> None:
    """Beyond torchvision's limit for one run of all labels the result is the same."""
    boxes, scores = random_boxes(2500), torch.rand(2500, 4, generator=torch.Generator().manual_seed(0))
    found = detect(boxes, scores, thresholds(most=10**6))
    pairs = {(label, score) for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)}
    expected = set()
    for label in range(4):
        over = scores[:, label] > 0.05
        kept = ops.nms(boxes[over], scores[over, label], 0.5)
        expected |= {(label, score) for score in scores[over, label][kept].tolist()}
    assert pairs == expected
    assert found.scores.equal(found.scores.sort(descending=True).values)


def test_thresholds_are_exceeded() -> None:
    """A score has to exceed its threshold, and so has an overlap; boxes without area overlap nothing."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 20, 10, 30], [20, 20, 20, 30], [20, 20, 20, 30]])
    scores = torch.tensor([[0.9], [0.8], [0.5], [0.7], [0.6]])
    assert detect(boxes, scores, thresholds(score=0.5)).scores.flatten().tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    half = boxes[:2]
    assert len(detect(half, scores[:2], thresholds(nms=0.5)).scores) == 2
    assert len(detect(half, scores[:2], thresholds(nms=0.49)).scores) == 1


def test_nothing_detected() -> None:
    found = detect(random_boxes(5), torch.zeros(5, 3), thresholds())
    assert (len(found.boxes), len(found.scores), len(found.labels)) == (0, 0, 0)
    assert found.boxes.shape == (0, 4)


def test_best_candidates() -> None:
    assert best_candidates(torch.tensor([0.1, 0.9, 0.5]), 2).tolist() == [1, 2]
    assert best_candidates(torch.tensor([0.1, 0.9, 0.5]), 1000).tolist() == [1, 2, 0]


# Pooling of boxes


def test_levels() -> None:
    """One coarser wherever the side doubles, from 112 pixels on; just below a border the finer one."""
    sides = torch.tensor([0.0, 1, 56, 111.9, 112, 223.9, 224, 448, 2000])
    boxes = torch.stack((torch.zeros(9), torch.zeros(9), sides / 2, sides * 2), dim=1)
    assert levels_of(boxes, 4).tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3]
    # The epsilon inside the logarithm lifts a side that rounding puts a little too low.
    assert levels_of(torch.tensor([[0, 0, 112 - 1e-5, 112 - 1e-5]]), 4).tolist() == [1]


def test_pool_boxes() -> None:
    """Image after image, each box from its level at that level's stride."""
    generator = torch.Generator().manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = [torch.randn(2, 5, 512 // stride, 512 // stride, generator=generator) for stride in strides]
    boxes = [random_boxes(9, 1, 500, 500), random_boxes(14, 2, 120, 120)]
    boxes[0][:2] = torch.tensor([[0.0, 0, 512, 512], [0, 100, 300, 400]])
    expected, levels = [], set()
    for image, some in enumerate(boxes):
        for box in some:
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)
            levels.add(level)
            its_map = maps[level][image : image + 1]
            expected.append(ops.roi_align(its_map, [box[None]], 7, 1 / strides[level], 0, aligned=True))
    assert levels == {0, 1, 2, 3}
    torch.testing.assert_close(pool_boxes(maps, strides, boxes, 7), torch.cat(expected))
    assert pool_boxes(maps, strides, [boxes[0][:0], boxes[1][:0]], 7).shape == (0, 5, 7, 7)
    one = pool_boxes([a_map[1:] for a_map in maps], strides, boxes[1:], 7)
    torch.testing.assert_close(one, torch.cat(expected)[9:])


def test_a_ramp_is_pooled_to_its_centres() -> None:
    """What is linear in the image is the value at each bin's centre, half a pixel left of it on the map: aligned."""
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    pooled = pool_boxes([ramp], [4], [torch.tensor([[40.0, 40, 96, 96]])], 7)
    centres = (40 + 56 / 7 * (torch.arange(7) + 0.5)) / 4 - 0.5
    torch.testing.assert_close(pooled[0, 0], centres.expand(7, 7))


# Targets of the masks


def test_mask_targets() -> None:
    """The object's own mask in each box, whichever objects are in the sample; 0 and 1 alone."""
    masks = torch.zeros(4, 64, 80, dtype=torch.bool)
    masks[1, 10:40, 20:60] = True
    masks[3, :, :40] = True
    boxes = torch.tensor([[20.0, 10, 60, 40], [0, 0, 80, 64], [0, 0, 80, 64], [20, 10, 60, 40]])
    learnt = torch.tensor([1, 3, 1, 0])
    found = mask_targets(boxes, masks, learnt, 28)
    assert found.shape == (4, 28, 28) and set(found.unique().tolist()) <= {0.0, 1.0}
    rois = torch.cat((learnt[:, None], boxes), dim=1)
    assert found.equal((ops.roi_align(masks[:, None].float(), rois, 28, 1.0, 0, aligned=True)[:, 0] >= 0.5).float())
    assert found[0].all() and not found[3].any()
    assert found[1, :, :14].all() and not found[1, :, 14:].any()
    assert found[2].mean().item() == pytest.approx(40 * 30 / (64 * 80), abs=0.03)
    for kind in (torch.uint8, torch.float32, torch.int64):
        assert mask_targets(boxes, masks.to(kind), learnt, 28).equal(found)
    assert mask_targets(boxes[:0], masks, learnt[:0], 28).shape == (0, 28, 28)


def test_mask_loss_of_nothing() -> None:
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = means({"loss_mask": mask_loss(logits, torch.zeros(0, 28, 28))}, over_processes=False)["loss_mask"]
    assert loss.item() == 0 and loss.requires_grad


# Ground truth

IMAGES = torch.zeros(2, 3, 64, 96)
SIZES = [(64, 96), (40, 50)]
OBJECT = {
    "class_labels": torch.tensor([1, 4]),
    "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.75, 0.1, 0.5]]),
    "masks": torch.ones(2, 64, 96, dtype=torch.bool),
}


def test_boxes_in_pixels() -> None:
    """Normalised by the size inside the padding, which is not the padded one."""
    whole, small = ground_truth([OBJECT, OBJECT], IMAGES, SIZES, 5, with_masks=True)
    torch.testing.assert_close(whole.boxes, torch.tensor([[0.0, 0, 96, 64], [19.2, 32, 28.8, 64]]))
    torch.testing.assert_close(small.boxes, torch.tensor([[0.0, 0, 50, 40], [10, 20, 15, 40]]))
    assert small.labels.tolist() == [1, 4] and small.masks is not None and small.masks.shape == (2, 64, 96)
    lists = {name: value.tolist() for name, value in OBJECT.items()}
    for ours, theirs in zip(ground_truth([lists] * 2, IMAGES, SIZES, 5, with_masks=True)[1], small, strict=True):
        assert ours.equal(theirs)
    assert ground_truth([OBJECT] * 2, IMAGES, SIZES, 5, with_masks=False)[0].masks is None
    nothing = {"class_labels": torch.tensor([]), "boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 64, 96)}
    empty = ground_truth([nothing, OBJECT], IMAGES, SIZES, 5, with_masks=True)[0]
    assert empty.boxes.shape == (0, 4) and empty.labels.dtype == torch.int64


BAD_BOXES = {
    "right": ([0.9, 0.5, 0.3, 0.2], "reaches outside the image"),
    "below": ([0.5, 0.95, 0.3, 0.2], "reaches outside the image"),
    "left": ([0.1, 0.5, 0.3, 0.2], "reaches outside the image"),
    "pixels": ([30.0, 30.0, 20.0, 20.0], "reaches outside the image.*as shares"),
    "negative": ([0.5, 0.5, -0.1, 0.2], "no positive width and height; drop it"),
    "flat": ([0.5, 0.5, 0.1, 0.0], "no positive width and height; drop it"),
    "vanishes in pixels": ([0.5, 0.5, 1e-9, 0.1], "no positive width and height; drop it"),
    "nan": ([0.5, math.nan, 0.1, 0.1], "holds NaN or infinity"),
    "infinite": ([0.5, 0.5, math.inf, 0.1], "holds NaN or infinity"),
}
BAD_FIELDS = {
    "label too large": ({"class_labels": [1, 5]}, r"holds 5, expected 0 to 4; check num_labels"),
    "label negative": ({"class_labels": [-1, 0]}, r"holds -1, expected 0 to 4"),
    "label floats": ({"class_labels": [0.0, 1.0]}, r"torch.float32, expected integers"),
    "label matrix": ({"class_labels": [[0, 1]]}, r"shape \(1, 2\)"),
    "fewer labels": ({"class_labels": [0]}, r"boxes has shape \(2, 4\), expected \(1, 4\), one for each class label"),
    "corners missing": ({"boxes": torch.zeros(2, 3)}, r"boxes has shape \(2, 3\), expected \(2, 4\)"),
    "mask size": ({"masks": torch.zeros(2, 40, 50)}, r"shape \(2, 40, 50\), expected \(2, 64, 96\).*of pixel_values"),
    "mask count": ({"masks": torch.zeros(1, 64, 96)}, r"shape \(1, 64, 96\), expected \(2, 64, 96\)"),
    "mask of 255": (
        {"masks": 255 * torch.ones(2, 64, 96, dtype=torch.uint8)},
        "masks holds 255 to 255, expected 0 and 1",
    ),
}


def test_bad_boxes_and_fields() -> None:
    """One sentence, which names the image and the box."""
    boxes = {name: ({"boxes": [[0.5, 0.5, 0.2, 0.2], box]}, message) for name, (box, message) in BAD_BOXES.items()}
    for name, (fields, message) in (boxes | BAD_FIELDS).items():
        with pytest.raises(ValueError) as caught:
            ground_truth([OBJECT, OBJECT | fields], IMAGES, SIZES, 5, with_masks=True)
        assert re.search(rf"^labels of image 1: .*{message}.*\.$", str(caught.value)), (name, caught.value)


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "too few": ([OBJECT], "one dict for each of the 2 images, with class_labels and boxes and masks, got 1 dicts"),
    "too many": ([OBJECT] * 3, "got 3 dicts"),
    "one dict": (OBJECT, "got dict"),
    "tensor": (torch.zeros(2, 5), "got Tensor"),
    "none": ([OBJECT, None], "labels of image 1: they are NoneType, expected a dict with class_labels, boxes, masks"),
    "missing": ([OBJECT, {"class_labels": [0]}], "labels of image 1: there is no boxes and no masks in it"),
}


def test_bad_labels() -> None:
    for name, (labels, message) in BAD_LABELS.items():
        with pytest.raises(ValueError) as caught:
            ground_truth(labels, IMAGES, SIZES, 5, with_masks=True)
        assert re.search(message, str(caught.value)), (name, caught.value)


def test_rounded_boxes_are_taken() -> None:
    """Half precision and JSON round; a box that touches the border may end a little beyond it."""
    box = torch.tensor([[0.5, 0.5, 1.00005, 1.0]])
    (truth,) = ground_truth([{"class_labels": [0], "boxes": box}], IMAGES[:1], SIZES[:1], 5, with_masks=False)
    assert truth.boxes[0, 2].item() == pytest.approx(96.0024)


def test_valid_sizes() -> None:
    mask = torch.zeros(2, 64, 96)
    mask[0, :50, :96], mask[1, :1, :7] = 1, 1
    for kind in (torch.float32, torch.int64, torch.bool):
        assert valid_sizes(IMAGES, mask.to(kind)) == [(50, 96), (1, 7)]
    assert valid_sizes(IMAGES, None) == [(64, 96)] * 2


def hole(mask: Tensor) -> Tensor:
    mask[0, 3, 3] = 0
    return mask


BAD_PIXEL_MASKS: dict[str, tuple[Any, str]] = {
    "width": (torch.ones(2, 64, 95), r"has shape \(2, 64, 95\), expected a tensor \(2, 64, 96\) as pixel_values"),
    "dimensions": (torch.ones(64, 96), r"has shape \(64, 96\)"),
    "list": ([[1]], "has list, expected a tensor"),
    "nothing": (torch.zeros(2, 64, 96), "must be 1 on each image"),
    "hole": (hole(torch.ones(2, 64, 96)), "a rectangle in the top left corner"),
    "triangle": (torch.ones(2, 64, 96).tril(), "a rectangle in the top left corner"),
    "padded above": (
        torch.ones(2, 64, 96).index_fill(1, torch.tensor([0]), 0),
        "a rectangle in the top left corner",
    ),
}


def test_bad_pixel_masks() -> None:
    for name, (mask, message) in BAD_PIXEL_MASKS.items():
        with pytest.raises(ValueError) as caught:
            valid_sizes(IMAGES, mask)
        assert re.search(message, str(caught.value)), (name, caught.value)


def test_the_gradient_of_a_single_place_is_written() -> None:
    """In bfloat16, too, whatever memory held: PyTorch leaves the weights that meet padding alone unwritten."""
    torch.manual_seed(0)
    neck = ConvolvedNeck([8, 8, 16], 16, further=2)
    maps = [torch.randn(4, channels, side, side) for channels, side in ((8, 8), (8, 4), (16, 2))]
    gradients = {}
    for name, maps_of_type in (("float32", maps), ("bfloat16", [one.bfloat16() for one in maps])):
        twin = copy.deepcopy(neck).to(maps_of_type[0].dtype)
        for _ in range(20):
            junk = [torch.full((16, 16, 3, 3), torch.nan, dtype=torch.bfloat16) for _ in range(4)]
            del junk
            twin.zero_grad()
            sum(level.sum() for level in twin(maps_of_type)).backward()
            gradients.setdefault(name, twin.further_convs[1].weight.grad.float())
            assert twin.further_convs[1].weight.grad.isfinite().all()
    torch.testing.assert_close(gradients["bfloat16"], gradients["float32"], rtol=0.1, atol=0.1)
