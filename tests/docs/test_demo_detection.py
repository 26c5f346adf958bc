"""The parts of the detection demo: annotations, the count of found digits, and what the pipeline's masks become."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_detection import NAMES, Detections, coco_annotations, detections_of, found_digits, truth_of
from digit_scenes import LARGE, Scene, scenes
from PIL import Image

import hf_pvt


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Several digits, one of them partly hidden."""
    return max(scenes(20, held_out=True, seed=1, overlapping=True), key=lambda scene: len(scene.digits))


def test_annotations(scene: Scene) -> None:
    """What the processor makes of them are the scene's digits, boxes and masks."""
    size = {"height": LARGE.side, "width": LARGE.side}
    processor = hf_pvt.detection_image_processor(size=size, return_segmentation_masks=True)
    (labels,) = processor(scene.image, coco_annotations(scene, 3), return_tensors="pt")["labels"]
    assert labels["class_labels"].tolist() == scene.digits.tolist() and labels["image_id"].tolist() == [3]
    np.testing.assert_array_equal(labels["masks"].numpy(), scene.masks)
    centre, extent = (LARGE.side * labels["boxes"]).split(2, dim=1)
    torch.testing.assert_close(torch.cat((centre - extent / 2, centre + extent / 2), 1), torch.tensor(scene.boxes))
    assert labels["area"].tolist() == scene.masks.sum((1, 2)).tolist()


def as_pipeline(scene: Scene) -> list[dict]:
    """The scene's digits as `pipeline("image-segmentation")` would give them."""
    return [
        {"score": 0.9, "label": NAMES[int(digit)], "mask": Image.fromarray(mask.astype(np.uint8) * 255)}
        for digit, mask in zip(scene.digits, scene.masks, strict=True)
    ]


def test_results_of_the_pipeline(scene: Scene) -> None:
    detections, expected = detections_of(as_pipeline(scene), LARGE.side), truth_of(scene)
    assert (detections["scores"] == 0.9).all()
    for name in ("labels", "boxes", "masks"):
        np.testing.assert_array_equal(detections[name], expected[name])
    nothing = detections_of([], LARGE.side)
    assert nothing["masks"].shape == (0, LARGE.side, LARGE.side) and nothing["boxes"].shape == (0, 4)
    assert found_digits(scene, nothing) == 0


def changed(scene: Scene, **fields: np.ndarray) -> Detections:
    return truth_of(replace(scene, **fields))


def test_found_digits(scene: Scene) -> None:
    """The right name, and more than half of the union: as many pixels beside the digit as on it are too many."""
    count = len(scene.digits)
    assert found_digits(scene, truth_of(scene)) == count
    order = np.arange(count)[::-1]
    assert found_digits(scene, changed(scene, digits=scene.digits[order], masks=scene.masks[order])) == count
    others = scene.digits.copy()
    others[0] = (others[0] + 1) % 10
    assert found_digits(scene, changed(scene, digits=others)) == count - 1
    mask = np.zeros((1, LARGE.side, LARGE.side), dtype=bool)
    mask[0, 10:20, 10:20] = True
    square = Scene(scene.image, np.array([7]), mask)
    for width, found in ((20, 0), (19, 1), (6, 1), (5, 0)):
        wider = np.zeros_like(mask)
        wider[0, 10:20, 10 : 10 + width] = True
        assert found_digits(square, changed(square, masks=wider)) == found
