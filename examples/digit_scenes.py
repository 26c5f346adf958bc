"""Scenes of digits that somebody wrote, on pieces of photographs, with the exact pixels of each digit.

The digits are scikit-learn's (UCI's optical recognition of handwritten digits), the photographs its two. Nothing of the
held-out scenes, neither scan nor part of a photograph, is in those to train on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split

LEAST_INK = 0.4  # of a pixel that counts as the digit's
LEAST_VISIBLE = 0.85  # share of a digit's pixels that those over it leave
TRIES = 20  # places for a digit that would hide another


@dataclass(frozen=True)
class Layout:
    """How large scenes are, and the digits in them.

    Attributes:
        side: of the square scene, pixels.
        digit_sizes: of a scan with its margin, pixels: from, and below.
        most_overlapping: digits of a scene where they lie anywhere.
    """

    side: int
    digit_sizes: tuple[int, int]
    most_overlapping: int


SMALL = Layout(side=64, digit_sizes=(26, 33), most_overlapping=3)
LARGE = Layout(side=96, digit_sizes=(28, 49), most_overlapping=5)


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8; digits: (n,) from 0 to 9; masks: (n, H, W), the pixels that can be seen of each."""

    image: NDArray[np.uint8]
    digits: NDArray[np.int64]
    masks: NDArray[np.bool_]

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """(H, W): 0 is background, a digit has its value and one."""
        return np.sum(self.masks * (self.digits[:, None, None] + 1), axis=0, dtype=np.uint8)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """The masks' extents (n, 4): x1, y1, x2, y2, the last two outside."""
        return np.array([extent(mask) for mask in self.masks], dtype=np.float32).reshape(-1, 4)


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box x1, y1, x2, y2 around the pixels of a mask (H, W) that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scenes(count: int, held_out: bool, seed: int, overlapping: bool = False, layout: Layout = LARGE) -> list[Scene]:
    """Scenes of the training or of the held-out digits; each on its own side of the photographs.

    Args:
        overlapping: two or more digits anywhere, parts of which others may hide; else two to four, one per quarter.
    """
    generator = np.random.default_rng(seed)
    digits = load_digits()
    parts = train_test_split(digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    scans, labels = (parts[1], parts[3]) if held_out else (parts[0], parts[2])
    photos = [np.split(load_sample_image(name), [400], axis=1)[held_out] for name in ("china.jpg", "flower.jpg")]
    return [scene(generator, scans, labels, photos, overlapping, layout) for _ in range(count)]


def scene(
    generator: np.random.Generator,
    scans: np.ndarray,
    labels: np.ndarray,
    photos: list[np.ndarray],
    overlapping: bool,
    layout: Layout,
) -> Scene:
    """A piece of a photograph with digits in colours that stand out, the later ones over the earlier."""
    side = layout.side
    photo = photos[generator.integers(len(photos))]
    top, left = (generator.integers(length - side + 1) for length in photo.shape[:2])
    image = photo[top : top + side, left : left + side].astype(np.float32)
    digits: list[int] = []
    masks: list[NDArray[np.bool_]] = []  # what can be seen of each
    areas: list[int] = []  # pixels of each before others hid some
    for quarter in quarters(generator, layout.most_overlapping if overlapping else None):
        index = generator.integers(len(scans))
        size = int(generator.integers(*layout.digit_sizes))
        ink = inked(scans[index], size)
        for place in places(generator, side, size, quarter):
            mask = np.zeros((side, side), dtype=np.bool_)
            mask[place] = ink[..., 0] > LEAST_INK
            remaining = [other & ~mask for other in masks]
            if all(rest.sum() >= LEAST_VISIBLE * area for rest, area in zip(remaining, areas, strict=True)):
                break
        else:
            continue  # no room: a scene with one digit less
        bright = image[place].mean() < 128
        colour = generator.uniform(170, 255, 3) if bright else generator.uniform(0, 85, 3)
        image[place] += ink * (colour - image[place])
        masks = [*remaining, mask]
        areas.append(int(mask.sum()))
        digits.append(labels[index])
    return Scene(image.clip(0, 255).astype(np.uint8), np.array(digits), np.array(masks))


def quarters(generator: np.random.Generator, most_overlapping: int | None) -> list[int | None]:
    """Where each digit of a scene goes, None for anywhere."""
    if most_overlapping is not None:
        return [None] * int(generator.integers(2, most_overlapping + 1))
    return generator.permutation(4)[: generator.integers(2, 5)].tolist()


def places(generator: np.random.Generator, side: int, size: int, quarter: int | None) -> Iterator[tuple[slice, slice]]:
    """Squares for a digit of that size: one in its quarter of the scene, or several anywhere."""
    if quarter is None:
        corners = iter(generator.integers(side - size + 1, size=(TRIES, 2)).tolist())
    else:
        half, room = side // 2, max(side // 2 - size, 0) + 1
        corner = (part * half + int(generator.integers(room)) for part in divmod(quarter, 2))
        corners = iter([[min(start, side - size) for start in corner]])
    return (np.s_[y : y + size, x : x + size] for y, x in corners)


def inked(scan: np.ndarray, size: int) -> NDArray[np.float64]:
    """How much ink there is, from 0 to 1 (size, size, 1), of a scan (8, 8) with values up to 16."""
    picture = Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)[..., None] / 255
