"""COCO's average precision against pycocotools; in two processes see test_two_processes.py."""

import contextlib
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as published_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_pvt.metrics import CocoAveragePrecision
from hf_pvt.metrics.evidence_metric import as_array

NAMES = ["cat", "dog", "bird"]
STATISTICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def published(predictions: Any, references: Any, num_labels: int, kind: str) -> dict[str, Any]:
    """The numbers of pycocotools; masks are scored without boxes beside them, as its result files have it."""
    truth: dict[str, Any] = {
        "images": [{"id": r["image_id"], "height": r["size"][0], "width": r["size"][1]} for r in references],
        "categories": [{"id": label} for label in range(num_labels)],
        "annotations": [],
    }
    found = []
    for prediction, reference in zip(predictions, references, strict=True):
        for annotation in reference["annotations"]:
            number = len(truth["annotations"]) + 1
            entry = {"iscrowd": 0, "area": area(annotation, reference["size"])} | annotation
            truth["annotations"].append(entry | {"id": number, "image_id": reference["image_id"]})
        for i, (x1, y1, x2, y2) in enumerate(prediction["boxes"].double().tolist()):
            entry = {"image_id": reference["image_id"], "category_id": int(prediction["labels"][i])}
            entry["score"] = float(prediction["scores"][i])
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "box" else {}
            entry |= {"segmentation": prediction["segmentation"][i]} if kind == "mask" else {}
            found.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        annotated, detected = COCO(), COCO()
        annotated.dataset = truth
        annotated.createIndex()
        if found:
            detected = annotated.loadRes(found)
        evaluation = COCOeval(annotated, detected, {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores: dict[str, Any] = {f"{kind}_{n}": v for n, v in zip(STATISTICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    scores[f"per_category_{kind}_ap"] = [
        np.mean(precision[:, :, label]) if precision[0, 0, label] > -1 else -1 for label in range(num_labels)
    ]
    return scores


def area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(segmentation, list):
        segmentation = published_mask.merge(published_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = published_mask.frPyObjects(segmentation, *size)
    return float(published_mask.area(segmentation))


def assert_same(scores: dict[str, Any], *expected: dict[str, Any]) -> None:
    together = {name: value for each in expected for name, value in each.items()}
    assert list(scores) == list(together)
    for name, value in together.items():
        value = np.asarray(value, dtype=np.float64)
        np.testing.assert_allclose(scores[name], np.where(value == -1, np.nan, value), rtol=0, atol=1e-9, err_msg=name)


def ellipse(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) of an ellipse in a box x, y, w, h."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y, width, height = box
    across, down = (columns + 0.5 - x - width / 2) / (width / 2), (rows + 0.5 - y - height / 2) / (height / 2)
    return across**2 + down**2 <= 1


def encode(mask: np.ndarray) -> dict[str, Any]:
    encoding = published_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoding["size"], "counts": encoding["counts"].decode()}


def segmentation(box: np.ndarray, size: tuple[int, int], form: int) -> Any:
    """One of the forms of COCO's files: a polygon, runs as numbers, runs as text."""
    x, y, width, height = box.tolist()
    if form == 0:
        return [[x, y, x + width, y, x + width / 2, y + height]]
    mask = ellipse(box, size)
    if form == 1:
        pixels = mask.ravel(order="F").astype(np.int8)
        starts = np.flatnonzero(np.diff(pixels, prepend=0))
        return {"size": list(size), "counts": np.diff([0, *starts, pixels.size]).tolist()}
    return encode(mask)


def scenes(
    seed: int, images: int = 12, objects: int = 6, labels: int = 3, crowd: float = 0.1, empty: float = 0.2
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detections that are displaced objects and inventions, some of equal scores; images of up to 160 pixels."""
    random = np.random.default_rng(seed)
    predictions, references = [], []
    for image_id in random.permutation(1000)[:images].tolist():
        size = (int(random.integers(40, 160)), int(random.integers(40, 160)))
        limits = np.array([size[1], size[0]])
        count = 0 if random.random() < empty else int(random.integers(1, objects + 1))
        corners = random.random((count, 2)) * limits * 0.7
        boxes = np.concatenate([corners, 2 + random.random((count, 2)) * (limits - corners - 2)], axis=1)
        categories = random.integers(0, labels, count)
        annotations = []
        for box, category in zip(boxes, categories.tolist(), strict=True):
            annotation = {"bbox": box.tolist(), "category_id": category}
            annotation["segmentation"] = segmentation(box, size, int(random.integers(3)))
            annotation |= {"iscrowd": 1} if random.random() < crowd else {}
            annotation |= {"area": float(random.random() * 12000)} if random.random() < 0.5 else {}
            annotations.append(annotation)
        references.append({"image_id": image_id, "size": size, "annotations": annotations})
        inventions = np.concatenate([random.random((3, 2)) * 30, 3 + random.random((3, 2)) * 30], axis=1)
        found = np.concatenate([np.repeat(boxes, 2, axis=0) + random.normal(0, 2, (2 * count, 4)), inventions])
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        chosen = np.concatenate([np.repeat(categories, 2), random.integers(0, labels, 3)])
        if random.random() < empty:
            found, chosen = found[:0], chosen[:0]
        masks = [encode(ellipse(box, size)) for box in found]
        found[:, 2:] += found[:, :2]
        predictions.append(
            {
                "scores": torch.from_numpy(random.integers(1, 20, len(found)) / 20 + 1e-9).double(),
                "labels": torch.from_numpy(chosen),
                "boxes": torch.from_numpy(found).float(),
                "segmentation": masks,
            }
        )
    return predictions, references


CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "crowded": {"images": 3, "objects": 60, "labels": 2, "empty": 0.0},
    "more than 100 of a label": {"images": 2, "objects": 120, "labels": 1, "empty": 0.0},
    "crowd regions": {"crowd": 0.6},
    "single class": {"labels": 1},
    "half empty": {"empty": 0.5},
}


@pytest.mark.parametrize(
    ("case", "seed"), [*((case, seed) for seed, case in enumerate(CASES)), ("random", 10), ("crowd regions", 11)]
)
def test_pycocotools(case: str, seed: int) -> None:
    """All numbers of boxes and masks; a label that nothing has, at the end, is NaN and in no mean."""
    predictions, references = scenes(seed, **CASES[case])
    expected = [published(predictions, references, 4, kind) for kind in ("box", "mask")]
    metric = CocoAveragePrecision([*NAMES, "unicorn"], with_masks=True)
    scores = metric.compute(predictions=predictions, references=references)
    assert scores is not None and 0.05 < scores["box_ap"] < 0.95 and 0.02 < scores["mask_ap"] < 0.95
    assert np.isnan(scores["per_category_box_ap"][3])
    assert_same(scores, *expected)
    boxes = CocoAveragePrecision([*NAMES, "unicorn"]).compute(predictions=predictions, references=references)
    assert_same(boxes, expected[0])


def test_only_the_best_hundred_count() -> None:
    """The case above holds images with more detections of a label than COCO takes."""
    predictions, references = scenes(0, **CASES["more than 100 of a label"])
    assert max(len(prediction["scores"]) for prediction in predictions) > 150
    best = [one["scores"].argsort(descending=True, stable=True)[:100] for one in predictions]
    cut = [
        {name: one[name][rows] for name in ("scores", "labels", "boxes")}
        for one, rows in zip(predictions, best, strict=True)
    ]
    whole = CocoAveragePrecision(["cat"]).compute(predictions=predictions, references=references)
    assert_same(CocoAveragePrecision(["cat"]).compute(predictions=cut, references=references), whole)


@pytest.mark.parametrize("missing", ["detections", "objects", "both"])
def test_nothing_there(missing: str) -> None:
    """Without detections everything is 0, without objects NaN, as COCO's -1."""
    predictions, references = scenes(0, crowd=0)
    if missing != "objects":
        nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0), "boxes": torch.zeros(0, 4), "segmentation": []}
        predictions = [nothing for _ in predictions]
    if missing != "detections":
        references = [reference | {"annotations": []} for reference in references]
    scores = CocoAveragePrecision(NAMES, with_masks=True).compute(predictions=predictions, references=references)
    assert_same(scores, *(published(predictions, references, 3, kind) for kind in ("box", "mask")))
    wanted = 0.0 if missing == "detections" else np.nan
    np.testing.assert_array_equal([scores["box_ap"], scores["mask_ar100"]], wanted)


def test_hand_count() -> None:
    """Two objects, one found exactly and one with an IoU of 0.62, and the best detection is of neither."""
    found = {
        "scores": [0.9, 0.8, 0.7],
        "labels": [0, 0, 0],
        "boxes": [[70, 70, 80, 80], [0, 0, 10, 10], [20, 0, 26.2, 10]],
    }
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10]]
    truth = {"image_id": 1, "size": (90, 90), "annotations": [{"bbox": box, "category_id": 0} for box in boxes]}
    scores = CocoAveragePrecision(["cat"]).compute(predictions=[found], references=[truth])
    # Precision is 2/3 up to full recall for IoU 0.5, 0.55 and 0.6, else 1/2 up to half of it, 51 of 101 places.
    assert scores["box_ap50"] == pytest.approx(2 / 3)
    assert scores["box_ap75"] == pytest.approx(0.5 * 51 / 101)
    assert scores["box_ap"] == pytest.approx((3 * 2 / 3 + 7 * 0.5 * 51 / 101) / 10)
    assert scores["box_ar1"] == 0 and scores["box_ar100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)


def test_scores_and_boxes_are_not_rounded() -> None:
    """Scores that differ in float64 alone order the detections, and an IoU just below 0.5 is no hit."""
    truth = {"image_id": 0, "size": (64, 64), "annotations": [{"bbox": [0, 0, 10, 10], "category_id": 0}]}
    boxes = torch.tensor([[0, 0, 10, 10], [30, 30, 40, 40]], dtype=torch.float64)
    for order, expected in (([0, 1], 1.0), ([1, 0], 0.5)):
        scores = torch.tensor([0.5 + 1e-12, 0.5], dtype=torch.float64)[order]
        found = {"scores": scores, "labels": torch.zeros(2, dtype=torch.int64), "boxes": boxes}
        assert CocoAveragePrecision(["cat"]).compute(predictions=[found], references=[truth])["box_ap50"] == expected
    for width, expected in ((5.0, 1.0), (5 - 1e-7, 0.0)):
        found = {"scores": [0.5], "labels": [0], "boxes": [[0, 0, width, 10]]}
        assert CocoAveragePrecision(["cat"]).compute(predictions=[found], references=[truth])["box_ap50"] == expected


@pytest.mark.parametrize("given", ["bfloat16", "array", "list"])
def test_any_kind_of_arrays(given: str) -> None:
    predictions, references = scenes(3)
    rounded = [{name: one[name] for name in ("scores", "labels", "boxes")} for one in predictions]
    for one in rounded:
        one["scores"], one["boxes"] = (one[name].bfloat16() for name in ("scores", "boxes"))
    expected = published(rounded, references, 3, "box")
    convert = {"bfloat16": lambda t: t, "array": as_array, "list": lambda t: t.tolist()}[given]
    rounded = [one | {name: convert(one[name]) for name in one} for one in rounded]
    references = [r | {"image_id": torch.tensor([r["image_id"]]), "size": torch.tensor(r["size"])} for r in references]
    assert_same(CocoAveragePrecision(NAMES).compute(predictions=rounded, references=references), expected)


def test_large_and_negative_image_ids() -> None:
    predictions, references = scenes(4)
    expected = published(predictions, references, 3, "box")
    order = sorted(range(12), key=lambda i: references[i]["image_id"])
    for rank, i in enumerate(order):
        references[i]["image_id"] = (rank - 6) * 2**40
    assert_same(CocoAveragePrecision(NAMES).compute(predictions=predictions, references=references), expected)


def test_batches_and_reset() -> None:
    """However the images are handed over the scores are the same bits, and computing starts anew."""
    predictions, references = scenes(5)
    metric = CocoAveragePrecision(NAMES, with_masks=True)
    expected = metric.compute(predictions=predictions, references=references)
    for turn in range(2):
        metric.add(prediction=predictions[-1], reference=references[-1])
        metric.add_batch(predictions=predictions[turn:-1], references=references[turn:-1])
        metric.add_batch(predictions=predictions[:turn], references=references[:turn])
        assert len(metric) == 12
        scores = metric.compute()
        assert list(scores) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(scores[name], value, err_msg=name)
        assert len(metric) == 0
    with pytest.raises(ValueError, match="CocoAveragePrecision has nothing to compute"):
        metric.compute()


def test_201_images_count_201() -> None:
    predictions, references = scenes(6, images=201, objects=3)
    metric = CocoAveragePrecision(NAMES)
    for start in range(0, 201, 8):
        rows = slice(start, start + 8)
        metric.add_batch(predictions=predictions[rows], references=references[rows])
    assert len(metric) == 201
    assert_same(metric.compute(), published(predictions, references, 3, "box"))
    records = metric.count(predictions, references)
    with pytest.raises(ValueError, match="there are 200 records of 201 images"):
        metric.result(records[:200], 201)


def test_exactly_once() -> None:
    predictions, references = scenes(7)
    name = references[3]["image_id"]
    metric = CocoAveragePrecision(NAMES)
    metric.add_batch(predictions=predictions[:6], references=references[:6])
    for again in ([6, 3], [6, 6]):
        twice = name if 3 in again else references[6]["image_id"]
        with pytest.raises(ValueError, match=f"image {twice} was added twice; each image counts once"):
            metric.add_batch(predictions=[predictions[i] for i in again], references=[references[i] for i in again])
    assert len(metric) == 6
    metric.add_batch(predictions=predictions[6:], references=references[6:])
    assert_same(metric.compute(), published(predictions, references, 3, "box"))
    metric.add(prediction=predictions[3], reference=references[3])  # anew
    records = metric.count(predictions, references)
    with pytest.raises(ValueError, match=f"image {name} was added twice"):
        metric.result([*records, records[3]], 13)


def test_records_are_small_and_of_json() -> None:
    """Of the same shapes at ten times the side the record grows as the outline does, not as the pixels."""

    def record(scale: int) -> dict[str, Any]:
        size, box = (60 * scale, 80 * scale), np.array([10, 10, 40, 30]) * scale
        mask = ellipse(box, size)
        found = {"scores": [0.5], "labels": [1], "boxes": [[10, 10, 50, 40]], "segmentation": [encode(mask)]}
        annotation = {"bbox": box.tolist(), "category_id": 1, "segmentation": encode(mask)}
        truth = {"image_id": 1, "size": size, "annotations": [annotation]}
        return CocoAveragePrecision(NAMES, with_masks=True).count([found], [truth])[0]

    records = [record(1), record(10)]
    for one in records:
        assert json.loads(json.dumps(one)) == one
    small, large = (len(json.dumps(one)) for one in records)
    assert large < 10 * small < 60 * 80 * 100


SQUARE = [[0, 0, 5, 0, 5, 5, 0, 5]]
RUNS = encode(np.eye(20, 30, dtype=bool))
GOOD_PREDICTION: dict[str, Any] = {
    "scores": [0.5, 0.4],
    "labels": [0, 1],
    "boxes": [[0, 0, 5, 5], [2, 2, 9, 9]],
    "segmentation": [RUNS, RUNS],
}
GOOD_ANNOTATION: dict[str, Any] = {"bbox": [0, 0, 5, 5], "category_id": 0, "segmentation": SQUARE}

BAD_PREDICTIONS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "scores": [
        ({"scores": [0.5, np.nan]}, "scores of the prediction for image 8 must be finite, got nan"),
        ({"scores": [0.5, -np.inf]}, "scores .* must be finite, got -inf"),
        ({"scores": [[0.5, 0.4]]}, r"scores .* must have shape \(n\), got \(1, 2\)"),
        ({"scores": ["a", "b"]}, r"scores .* must be numbers, got \['a', 'b'\]"),
    ],
    "labels": [
        ({"labels": [0, 3]}, r"labels of the prediction for image 8 hold 3, expected labels in \[0, 3\)"),
        ({"labels": [0, -1]}, "labels .* hold -1"),
        ({"labels": [0.0, 1.0]}, "labels .* hold float64, expected integers"),
        ({"labels": [[0, 1]]}, r"labels .* have shape \(1, 2\)"),
        ({"labels": [0]}, "image 8 has 2 scores, 1 labels, 2 masks; expected as many of each"),
    ],
    "boxes": [
        ({"boxes": [[0, 0, 5, 5]]}, r"boxes .* must have shape \(2, 4\), got \(1, 4\)"),
        ({"boxes": [[0, 0, 5], [0, 0, 5]]}, r"boxes .* got \(2, 3\)"),
        ({"boxes": [[0, 0, 5, np.nan], [0, 0, 5, 5]]}, "boxes .* got nan"),
        ({"boxes": [[0, 0, 5, 5], [9, 2, 3, 9]]}, r"has the box \[9.0, 2.0, 3.0, 9.0\], expected x1, y1, x2 >= x1"),
    ],
    "masks": [
        ({"segmentation": [RUNS]}, "2 scores, 2 labels, 1 masks"),
        (
            {"segmentation": [RUNS, RUNS | {"size": [20, 31]}]},
            r"detection 1 of the prediction for image 8 has a run-length encoding of size \[20, 31\], its image is "
            r"\[20, 30\]",
        ),
        ({"segmentation": [RUNS, RUNS | {"counts": "zz"}]}, "detection 1 .* cannot be decoded to its image's 20x30"),
        ({"segmentation": torch.zeros(2, 20, 30)}, "detection 0 .* has the segmentation tensor"),
    ],
}


@pytest.mark.parametrize("part", BAD_PREDICTIONS)
def test_refused_predictions(part: str) -> None:
    reference = {"image_id": 8, "size": (20, 30), "annotations": []}
    for changed, message in BAD_PREDICTIONS[part]:
        assert_refused(GOOD_PREDICTION | changed, reference, message)


BAD_ANNOTATIONS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "box": [
        ({"bbox": [0, 0, 5]}, r"the box of annotation 1 of image 8 must have shape \(4\), got \(3,\)"),
        ({"bbox": [0, 0, -1, 5]}, r"annotation 1 of image 8 has the box \[0.0, 0.0, -1.0, 5.0\], expected x, y, width"),
        ({"bbox": [0, 0, np.inf, 5]}, "the box of annotation 1 of image 8 must be finite, got inf"),
        ({"bbox": None}, "the box of annotation 1 of image 8 must"),
    ],
    "label": [
        ({"category_id": 3}, r"labels of annotation 1 of image 8 hold 3, expected labels in \[0, 3\)"),
        ({"category_id": "cat"}, "labels of annotation 1 of image 8 hold .*expected integers"),
    ],
    "numbers": [
        ({"iscrowd": 2}, "annotation 1 of image 8 has iscrowd 2, expected 0 or 1"),
        ({"area": -1}, "annotation 1 of image 8 has area -1.0, expected at least 0"),
        ({"area": np.nan}, "the area of annotation 1 of image 8 must be finite, got nan"),
    ],
    "mask": [
        ({"segmentation": None}, "annotation 1 of image 8 has the segmentation None, expected polygons"),
        ({"segmentation": [[0, 0, 5, 5]]}, "annotation 1 of image 8 has the polygon"),
        ({"segmentation": RUNS | {"size": [30, 20]}}, r"annotation 1 of image 8 has a run-length .* \[30, 20\]"),
        ({"segmentation": RUNS | {"counts": [1, 2]}}, "annotation 1 of image 8 .* cannot be decoded"),
    ],
}


@pytest.mark.parametrize("part", BAD_ANNOTATIONS)
def test_refused_annotations(part: str) -> None:
    for changed, message in BAD_ANNOTATIONS[part]:
        annotations = [GOOD_ANNOTATION, GOOD_ANNOTATION | changed]
        assert_refused(GOOD_PREDICTION, {"image_id": 8, "size": (20, 30), "annotations": annotations}, message)


BAD_REFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"image_id": "8"}, "image_id is '8', expected an integer"),
    ({"image_id": True}, "image_id is True, expected an integer"),
    ({"size": (20,)}, r"the size of image 8 is \(20,\), expected \(height, width\)"),
    ({"size": (0, 30)}, r"the size of image 8 is \(0, 30\)"),
    ({"annotations": [3]}, "annotation 0 of image 8 is 3, expected a dict with at least bbox and category_id"),
]


def test_refused_references() -> None:
    for changed, message in BAD_REFERENCES:
        assert_refused(GOOD_PREDICTION, {"image_id": 8, "size": (20, 30), "annotations": []} | changed, message)


def assert_refused(prediction: Any, reference: Any, message: str) -> None:
    """A refused batch leaves nothing behind, neither its bad image nor its good one."""
    good = {"image_id": 1, "size": (20, 30), "annotations": []}
    metric = CocoAveragePrecision(NAMES, with_masks=True)
    with pytest.raises(ValueError) as caught:
        metric.add_batch(predictions=[GOOD_PREDICTION, prediction], references=[good, reference])
    assert re.search(message, str(caught.value)), (message, caught.value)
    assert len(metric) == 0
    metric.add(prediction=GOOD_PREDICTION, reference=good)


def test_refused_keys() -> None:
    reference = {"image_id": 8, "size": (20, 30), "annotations": []}
    boxes_alone = {name: GOOD_PREDICTION[name] for name in ("scores", "labels", "boxes")}
    with pytest.raises(
        ValueError, match="prediction for image 8 is .*expected a dict with scores, labels, boxes, segm"
    ):
        CocoAveragePrecision(NAMES, with_masks=True).add(prediction=boxes_alone, reference=reference)
    with pytest.raises(ValueError, match="a reference is .*expected a dict with image_id, size and annotations"):
        CocoAveragePrecision(NAMES).add(prediction=GOOD_PREDICTION, reference={"image_id": 8, "annotations": []})
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        CocoAveragePrecision(NAMES).add_batch(predictions=[GOOD_PREDICTION], references=[reference, reference])
    for names in ([], "cat"):
        with pytest.raises(ValueError, match="expected the names of all labels"):
            CocoAveragePrecision(names)
