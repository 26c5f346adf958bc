"""COCO's annotations as targets: boxes, masks, crowds, and one clear sentence for what is broken."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from skimage.draw import ellipse

import hf_pvt
from hf_pvt.detection.coco_masks import draw_mask, encode_mask, nearest_as_cv2

HEIGHT, WIDTH = 60, 90
IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
SMALL = {"shortest_edge": 80, "longest_edge": 133}  # 60x90 becomes 80x120, padded to 96x128
POLYGONS = {
    "triangle": [[10.2, 5.1, 40.7, 8.3, 22.5, 50.9]],
    "two parts": [[1, 1, 20, 1, 20, 20, 1, 20], [30.5, 30.5, 60.25, 31.75, 59.5, 58.5, 35.0, 50.0]],
    "over the border": [[-10.0, -5.0, 120.0, 10.0, 80.0, 75.0]],
    "below one pixel": [[5.1, 5.1, 5.4, 5.1, 5.4, 5.4]],
    "self-crossing": [[10, 10, 80, 50, 80, 10, 10, 50]],
    "concave": [[5, 5, 85, 5, 85, 55, 45, 20, 5, 55]],
}


def disc() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[ellipse(30, 50, 17.3, 24.8, shape=mask.shape)] = True
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: down the columns, zeros first."""
    flat = np.concatenate([[0], mask.T.reshape(-1), [-1]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges]).tolist()


def entry(**changes: Any) -> dict[str, Any]:
    fields = {"bbox": [9.0, 6.0, 45.0, 30.0], "category_id": 1, "area": 700.5, "iscrowd": 0}
    return fields | {"segmentation": POLYGONS["triangle"]} | changes


def target(*entries: dict[str, Any], **settings: Any) -> Any:
    processor = hf_pvt.detection_image_processor(size=SMALL, **settings)
    annotation = {"image_id": 42, "annotations": list(entries)}
    return processor(IMAGE, annotation, return_tensors="pt")["labels"][0]


# Boxes and labels


def test_target() -> None:
    """Boxes are shares of the image without its padding, whatever it was resized to."""
    labels = target(entry(), entry(bbox=[0, 0, 90, 60], category_id=0, area=5400))
    expected = [[31.5 / 90, 21 / 60, 45 / 90, 30 / 60], [0.5, 0.5, 1, 1]]
    torch.testing.assert_close(labels["boxes"], torch.tensor(expected))
    assert labels["class_labels"].tolist() == [1, 0] and labels["class_labels"].dtype == torch.int64
    assert labels["area"].tolist() == [700.5, 5400]
    assert labels["image_id"].tolist() == [42] and labels["orig_size"].tolist() == [HEIGHT, WIDTH]
    assert "masks" not in labels and "crowd_masks" not in labels


def test_boxes_are_clipped() -> None:
    labels = target(entry(bbox=[-10, 50, 40, 30]))
    torch.testing.assert_close(labels["boxes"], torch.tensor([[15 / 90, 55 / 60, 30 / 90, 10 / 60]]))


def test_what_is_left_out() -> None:
    """As published: below one pixel, of no area, or only touching the image."""
    small = [entry(bbox=[5, 5, 0.9, 20]), entry(bbox=[5, 5, 20, 0]), entry(area=0), entry(bbox=[90, 5, 10, 10])]
    labels = target(*small, entry(bbox=[5, 5, 1, 1]), return_segmentation_masks=True)
    assert labels["boxes"].shape == (1, 4) and labels["masks"].shape == (1, 96, 128)


def test_image_without_objects() -> None:
    labels = target(return_segmentation_masks=True)
    assert (labels["boxes"].shape, labels["class_labels"].shape) == ((0, 4), (0,))
    assert labels["masks"].shape == (0, 96, 128) and labels["crowd_boxes"].shape == (0, 4)


def test_crowds_are_kept_apart() -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": runs(disc())}
    entries = [entry(), entry(iscrowd=1, category_id=5, segmentation=crowd, bbox=[25, 13, 50, 34]), entry(area=3.0)]
    labels = target(*entries, return_segmentation_masks=True)
    assert labels["class_labels"].tolist() == [1, 1] and labels["area"].tolist() == [700.5, 3.0]
    assert labels["crowd_class_labels"].tolist() == [5]
    torch.testing.assert_close(labels["crowd_boxes"], torch.tensor([[50 / 90, 30 / 60, 50 / 90, 34 / 60]]))
    assert len(labels["masks"]) == 2
    assert labels["crowd_masks"][0, :80, :120].numpy().tolist() == nearest_as_cv2(disc(), (80, 120)).tolist()


def test_coco_categories() -> None:
    labels = target(
        entry(category_id=90), entry(category_id=1), entry(category_id=13), category_ids=hf_pvt.coco_category_ids()
    )
    names = hf_pvt.coco_id2label()
    assert [names[label] for label in labels["class_labels"].tolist()] == ["toothbrush", "person", "stop sign"]


def test_batch() -> None:
    """Annotations go with their images; masks have the size of the batch."""
    processor = hf_pvt.detection_image_processor(size=SMALL, return_segmentation_masks=True)
    annotations = [{"image_id": i, "annotations": [entry(category_id=i)] * i} for i in (1, 2)]
    batch = processor([IMAGE, np.zeros((90, 60, 3), np.uint8)], annotations, return_tensors="pt")
    assert [labels["class_labels"].tolist() for labels in batch["labels"]] == [[1], [2, 2]]
    assert [labels["orig_size"].tolist() for labels in batch["labels"]] == [[60, 90], [90, 60]]
    assert [labels["masks"].shape for labels in batch["labels"]] == [(1, 128, 128), (2, 128, 128)]
    with pytest.raises(ValueError, match="got 2 annotations for 1 images"):
        processor(IMAGE, annotations)


# Masks


def test_polygons_as_pycocotools_draws_them() -> None:
    for name, polygons in POLYGONS.items():
        expected = coco_mask.decode(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)).any(axis=2)
        assert np.array_equal(draw_mask(polygons, (HEIGHT, WIDTH)), expected), name
        assert expected.any() or name == "below one pixel", name


def test_run_lengths() -> None:
    """Uncompressed, compressed as text or bytes, and as this package writes them; all read by pycocotools too."""
    mask, size = disc(), [HEIGHT, WIDTH]
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    written = json.loads(json.dumps(encode_mask(mask)))
    assert written == {"size": size, "counts": compressed.decode()}
    assert np.array_equal(coco_mask.decode(written), mask)
    for counts in (runs(mask), compressed, compressed.decode(), written["counts"]):
        assert np.array_equal(draw_mask({"size": size, "counts": counts}, (HEIGHT, WIDTH)), mask)


def test_masks_are_resized_and_padded() -> None:
    """To the nearest pixel as cv2 does, with zeros on the padding."""
    labels = target(entry(), entry(segmentation=encode_mask(disc())), return_segmentation_masks=True)
    assert labels["masks"].shape == (2, 96, 128) and labels["masks"].dtype == torch.bool
    assert not labels["masks"][:, 80:].any() and not labels["masks"][:, :, 120:].any()
    for mask, original in zip(labels["masks"], (draw_mask(POLYGONS["triangle"], (60, 90)), disc()), strict=True):
        rows, columns = np.arange(80) * 60 // 80, np.arange(120) * 90 // 120
        assert np.array_equal(mask[:80, :120], original[rows[:, None], columns])


def test_nearest_of_opencv() -> None:
    """Recorded from OpenCV 5.0: its scale is rounded, so that row 31 of 93 is row 14 of 45 and not 15."""
    column = nearest_as_cv2(np.arange(45)[:, None], (93, 1))[:, 0]
    assert [column[row] for row in (0, 2, 30, 31, 32, 62, 92)] == [0, 0, 14, 14, 15, 29, 44]


# What is broken


BROKEN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "polygons": [
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, r"the polygon \[1, 2, 3, 4, 5, 6, 7\], expected x1, y1"),
        ({"segmentation": [[1, 2, 3, 4]]}, r"the polygon \[1, 2, 3, 4\], expected .* of three points or more"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "the polygon 1, expected x1, y1"),
        ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]]}, "with points far outside its image of 90x60"),
        ({"segmentation": [[1, 2, 3, 1e12, 5, 6]]}, "with points far outside its image of 90x60"),
        ({"segmentation": []}, r"the segmentation \[\], expected polygons"),
        ({"segmentation": None}, "the segmentation None, expected polygons"),
    ],
    "run lengths": [
        ({"segmentation": {"size": [90, 60], "counts": [5400]}}, r"of size \[90, 60\], its image is \[60, 90\]"),
        ({"segmentation": {"size": [60, 90]}}, "expected `counts` and the same `size`"),
        ({"segmentation": {"size": [60, 90], "counts": [3, 4]}}, "cannot be decoded to its image's 60x90 pixels"),
        ({"segmentation": {"size": [60, 90], "counts": [3, 40000]}}, "cannot be decoded"),
        ({"segmentation": {"size": [60, 90], "counts": [-3, 5403]}}, "cannot be decoded"),
        ({"segmentation": {"size": [60, 90], "counts": ""}}, "cannot be decoded"),
        ({"segmentation": {"size": [60, 90], "counts": "abc"}}, "cannot be decoded"),
    ],
    "boxes": [
        ({"bbox": [100, 5, 10, 10]}, r"outside its image of 90x60 \(width x height\); is it another image's\?"),
        ({"bbox": [-20, 5, 10, 10]}, "outside its image of 90x60"),
        ({"bbox": [5, 61, 10, 10]}, "outside its image of 90x60"),
        ({"bbox": [5, 5, -1, 10]}, r"the box \[5.0, 5.0, -1.0, 10.0\], expected x, y, width >= 0, height >= 0"),
        ({"bbox": [5, 5, 10, float("nan")]}, "the box .*nan.*, expected x, y"),
        ({"bbox": [5, 5, 10]}, r"the box \[5.0, 5.0, 10.0\], expected x, y"),
        ({"bbox": None}, "the box None, expected x, y"),
        ({"bbox": "1, 2"}, "the box '1, 2', expected x, y"),
        ({"bbox": [1, 2, "wide", 4]}, "'wide' where a number is expected"),
    ],
    "categories and areas": [
        ({"area": "large"}, "'large' where a number is expected"),
        ({"category_id": 12}, "the category 12, expected one of the 80 category_ids; .*coco_category_ids"),
        ({"category_id": "dog"}, "the category 'dog', expected one of the 80"),
        ({"category_id": -1, "category_ids": None}, "the category -1, expected a label from 0"),
        ({"category_id": "dog", "category_ids": None}, "the category 'dog', expected a label from 0"),
    ],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_annotations(kind: str) -> None:
    """One sentence that names the annotation and what it has."""
    for changes, message in BROKEN[kind]:
        category_ids = changes.get("category_ids", hf_pvt.coco_category_ids())
        changed = entry(**{name: value for name, value in changes.items() if name != "category_ids"})
        with pytest.raises(ValueError) as caught:
            target(entry(), changed, category_ids=category_ids, return_segmentation_masks=True)
        assert re.search(f"annotation 1 of image 42 has .*{message}", str(caught.value)), (changes, caught.value)


BROKEN_FORMATS: list[tuple[Any, str]] = [
    ([{"annotations": []}], r"a dict \{\"image_id\": ..., \"annotations\": \[...\]\} in COCO's format, got"),
    ([[entry()]], "in COCO's format, got"),
    ([{"image_id": "a.jpg", "annotations": []}], "image_id is 'a.jpg', expected an integer"),
    (
        [{"image_id": 1, "annotations": [{"category_id": 1}]}],
        "annotation 0 of image 1 is .*, expected a dict with at least bbox and category_id",
    ),
    ([{"image_id": 1, "annotations": ["box"]}], "annotation 0 of image 1 is .*, expected a dict"),
]


def test_broken_format() -> None:
    processor = hf_pvt.detection_image_processor(size=SMALL)
    for annotation, message in BROKEN_FORMATS:
        with pytest.raises(ValueError) as caught:
            processor([IMAGE], annotation)
        assert re.search(message, str(caught.value)), (annotation, caught.value)
