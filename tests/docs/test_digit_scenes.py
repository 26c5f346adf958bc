"""The scenes of the demos: what is in them is known to the pixel, and held out from training."""

from typing import Any

import digit_scenes
import numpy as np
import pytest
from digit_scenes import LEAST_VISIBLE, SCENE_SIZE, Scene, scenes
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits, load_sample_image


@pytest.fixture(scope="module", params=[False, True], ids=["quarters", "overlapping"])
def some(request: pytest.FixtureRequest) -> list[Scene]:
    return scenes(60, held_out=False, seed=0, overlapping=request.param)


def test_boxes_are_the_masks_extents(some: list[Scene]) -> None:
    """As COCO's code sees them, which gives x, y, width and height."""
    for scene in some:
        assert scene.masks.shape == (len(scene.digits), SCENE_SIZE, SCENE_SIZE) and len(scene.digits) >= 2
        expected = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), dtype=np.uint8)))
        np.testing.assert_array_equal(scene.boxes[:, :2], expected[:, :2])
        np.testing.assert_array_equal(scene.boxes[:, 2:] - scene.boxes[:, :2], expected[:, 2:])


def test_label_map(some: list[Scene]) -> None:
    """Each pixel is one digit's, or the background's."""
    for scene in some:
        covered = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=bool)
        for digit, mask in zip(scene.digits, scene.masks, strict=True):
            assert not (covered & mask).any()
            assert (scene.label_map[mask] == digit + 1).all()
            covered |= mask
        assert (scene.label_map[~covered] == 0).all()


def test_what_is_over_a_digit_hides_it() -> None:
    """Of squares full of ink each pixel has its own square's colour; the last one is whole, none is hidden too much."""
    generator = np.random.default_rng(0)
    photo = np.full((200, 200, 3), 128, dtype=np.uint8)
    hidden = 0
    for _ in range(60):
        scene = digit_scenes.scene(generator, np.full((1, 8, 8), 16.0), np.array([7]), [photo], overlapping=True)
        for mask, (x1, y1, x2, y2) in zip(scene.masks, scene.boxes.astype(int), strict=True):
            assert len(np.unique(scene.image[mask], axis=0)) == 1
            visible = mask.sum() / max(x2 - x1, y2 - y1) ** 2
            assert visible >= LEAST_VISIBLE
            hidden += visible < 1
        assert (scene.image[scene.label_map == 0] == 128).all()
        newest = scene.boxes[-1]
        assert scene.masks[-1].sum() == np.prod(newest[2:] - newest[:2])
    assert hidden > 30


def test_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and test share no scan and no part of a photograph, and leave none out."""
    sides: list[tuple[set[bytes], list[np.ndarray]]] = []

    def look(generator: Any, scans: np.ndarray, labels: np.ndarray, photos: list[np.ndarray], *_: Any) -> None:
        assert len(scans) == len(labels)
        sides.append(({scan.tobytes() for scan in scans}, photos))

    monkeypatch.setattr(digit_scenes, "scene", look)
    for held_out in (False, True):
        scenes(1, held_out, seed=0)
    (learnt, photos), (tested, others) = sides
    assert not learnt & tested and learnt | tested == {scan.tobytes() for scan in load_digits().images}
    for name, left, right in zip(("china.jpg", "flower.jpg"), photos, others, strict=True):
        np.testing.assert_array_equal(np.concatenate((left, right), axis=1), load_sample_image(name))


def test_the_seed_decides(some: list[Scene]) -> None:
    overlapping = any(len(scene.digits) > 4 for scene in some)
    again = scenes(60, held_out=False, seed=0, overlapping=overlapping)
    others = scenes(60, held_out=False, seed=1, overlapping=overlapping)
    for scene, same, other in zip(some, again, others, strict=True):
        assert np.array_equal(scene.image, same.image) and np.array_equal(scene.masks, same.masks)
        assert not np.array_equal(scene.image, other.image)
