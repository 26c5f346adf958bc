"""The scenes of the demos: what is in them is known to the pixel, and held out from training."""

from typing import Any

import digit_scenes
import numpy as np
import pytest
from digit_scenes import LARGE, LEAST_VISIBLE, SMALL, Layout, Scene, scenes
from pycocotools import mask as coco_mask
from sklearn.datasets import load_digits, load_sample_image

KINDS = {
    "quarters": {"overlapping": False},
    "overlapping": {"overlapping": True},
    "small": {"overlapping": False, "layout": SMALL},
    "small, overlapping": {"overlapping": True, "layout": SMALL},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def some(kind: dict[str, Any]) -> list[Scene]:
    return scenes(60, held_out=False, seed=0, **kind)


def test_layouts(some: list[Scene], kind: dict[str, Any]) -> None:
    """Sizes and numbers of digits reach from end to end of what the layout says, and not beyond."""
    layout: Layout = kind.get("layout", LARGE)
    side = layout.side
    assert {scene.image.shape for scene in some} == {(side, side, 3)}
    most = layout.most_overlapping if kind["overlapping"] else 4
    assert {len(scene.digits) for scene in some} == set(range(2, most + 1))
    extents = np.concatenate([scene.boxes[:, 2:] - scene.boxes[:, :2] for scene in some]).max(1)
    assert extents.max() < layout.digit_sizes[1] and extents.max() > layout.digit_sizes[1] - 4


def test_boxes_are_the_masks_extents(some: list[Scene]) -> None:
    """As COCO's code sees them, which gives x, y, width and height."""
    for scene in some:
        assert scene.masks.shape == (len(scene.digits), *scene.image.shape[:2])
        expected = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), dtype=np.uint8)))
        np.testing.assert_array_equal(scene.boxes[:, :2], expected[:, :2])
        np.testing.assert_array_equal(scene.boxes[:, 2:] - scene.boxes[:, :2], expected[:, 2:])


def test_label_map(some: list[Scene]) -> None:
    """Each pixel is one digit's, or the background's."""
    for scene in some:
        covered = np.zeros(scene.image.shape[:2], dtype=bool)
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
        scene = digit_scenes.scene(
            generator, np.full((1, 8, 8), 16.0), np.array([7]), [photo], overlapping=True, layout=LARGE
        )
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


def test_the_seed_decides(some: list[Scene], kind: dict[str, Any]) -> None:
    again, others = (scenes(60, held_out=False, seed=seed, **kind) for seed in (0, 1))
    for scene, same, other in zip(some, again, others, strict=True):
        assert np.array_equal(scene.image, same.image) and np.array_equal(scene.masks, same.masks)
        assert not np.array_equal(scene.image, other.image)
