"""The drawn segmentation, pixel by pixel."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_pvt.drawing.segmentations import distinct_colour, draw_segmentation, side_by_side

NAMES = {label: f"label {label}" for label in range(150)} | {1: "sky", 2: "a rather long name of a label"}
Colours = set[tuple[int, ...]]


def photo(width: int, height: int) -> np.ndarray:
    return np.random.randint(0, 256, (height, width, 3), dtype=np.uint8)


def stripes(width: int, height: int, *labels: int) -> np.ndarray:
    """A mask of vertical stripes, each wider than the next."""
    edges = np.cumsum(np.arange(len(labels), 0, -1))
    return np.tile(np.array(labels)[np.searchsorted(edges, np.arange(width) * edges[-1] / width, "right")], (height, 1))


def legend_of(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """The picture with the photo painted white."""
    pixels = np.array(picture)
    pixels[:height, :width] = 255
    return pixels


def colours_of(pixels: np.ndarray) -> Colours:
    """Colours that are not grey: those of the legend's boxes."""
    flat = pixels.reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(flat[flat.min(1) != flat.max(1)], axis=0)}


@pytest.mark.parametrize(
    ("size", "alpha"), [((64, 64), 0.0), ((90, 200), 0.3), ((500, 400), 0.5), ((64, 64), 1.0)], ids=str
)
def test_overlay(size: tuple[int, int], alpha: float) -> None:
    """The blend inside, the colour itself on a border, ignored pixels as they were, the legend outside."""
    image, mask = photo(*size), stripes(*size, 1, 255, 2)
    picture = draw_segmentation(image, mask, NAMES, {1: (250, 10, 0), 2: (0, 9, 99)}, alpha)
    overlay = np.asarray(picture)[: size[1], : size[0]]
    for label, colour in ((1, (250, 10, 0)), (2, (0, 9, 99))):
        inside = (mask == label) & (mask == np.roll(mask, 1, 1)) & (mask == np.roll(mask, -1, 1))
        inside[:, [0, -1]] = (mask == label)[:, [0, -1]]  # the image's edges are no border
        expected = (1 - alpha) * image[inside] + alpha * np.array(colour)
        assert np.abs(overlay[inside] - expected).max() <= 0.5 + 1e-9
        assert (overlay[(mask == label) & ~inside] == colour).all() and (~inside & (mask == label)).any()
    assert np.array_equal(overlay[mask == 255], image[mask == 255])
    assert colours_of(legend_of(picture, *size)) == {(250, 10, 0), (0, 9, 99)}


@pytest.mark.parametrize("size", [(64, 64), (30, 300), (300, 20), (400, 300), (900, 900)], ids=str)
def test_legend_is_whole(size: tuple[int, int]) -> None:
    """It lies outside the image with an empty margin around it, and grows with the image."""
    picture = draw_segmentation(photo(*size), stripes(*size, *range(40)), NAMES)
    assert (picture.width > size[0]) != (picture.height > size[1]) or size[1] < 150
    drawn = np.argwhere((legend_of(picture, *size) < 255).any(axis=2))
    (top, left), (bottom, right) = drawn.min(axis=0), drawn.max(axis=0)
    assert bottom <= picture.height - 6 and right <= picture.width - 6
    assert left >= size[0] + 6 or top >= size[1] + 6
    widest = max(size[0], 9 * 18 if max(size) < 450 else 0)
    assert picture.width - size[0] * (size[1] > size[0]) <= widest, "no wider than the image, if that can be read"
    box = colours_of(legend_of(picture, *size)) & {distinct_colour(0)}
    assert box, "the largest label is named"
    height = int((legend_of(picture, *size) == distinct_colour(0)).all(axis=2).any(axis=1).sum())
    assert height >= max(10, 0.02 * sum(size) / 2 - 2)


def test_largest_labels_first() -> None:
    """Lines go by area; those without a place are counted."""
    picture = draw_segmentation(photo(64, 100), stripes(64, 100, 4, 3, 5), NAMES)
    rows = [np.argwhere((legend_of(picture, 64, 100) == distinct_colour(i)).all(axis=2))[0, 0] for i in (4, 3, 5)]
    assert rows == sorted(rows) and len(set(rows)) == 3
    crowded = draw_segmentation(photo(64, 64), stripes(64, 64, *range(10)), NAMES)
    assert colours_of(legend_of(crowded, 64, 64)) == {distinct_colour(label) for label in range(5)}


def test_shares_are_written() -> None:
    """The same label with another share draws another text, and the same share the same."""
    image, half, more = photo(200, 100), stripes(200, 100, 1, 255), stripes(200, 100, 1, 1, 255)
    legends = [legend_of(draw_segmentation(image, mask, NAMES), 200, 100) for mask in (half, half, more)]
    assert np.array_equal(legends[0], legends[1])
    assert not np.array_equal(legends[0], legends[2])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_kinds_of_images_and_masks(mode: str) -> None:
    image, mask = Image.fromarray(photo(80, 60)).convert(mode), stripes(80, 60, 1, 2).astype(np.uint8)
    expected = draw_segmentation(np.array(image.convert("RGB")), mask, NAMES)
    before = image.copy()
    for same in (mask.astype(np.int64), torch.from_numpy(mask), Image.fromarray(mask)):
        assert draw_segmentation(image, same, NAMES).tobytes() == expected.tobytes()
    assert image.tobytes() == before.tobytes()


def test_background_is_not_painted() -> None:
    """Only where asked for; it keeps its line in the legend, and the other labels their outline."""
    image, mask = photo(300, 100), stripes(300, 100, 0, 1)
    names = {0: "Background", 1: "lesion"}
    plain, painted = (draw_segmentation(image, mask, names, paint_background=paint) for paint in (False, True))
    assert np.array_equal(np.asarray(plain)[:100][mask == 0], image[mask == 0])
    assert not np.array_equal(np.asarray(painted)[:100][mask == 0], image[mask == 0])
    assert np.array_equal(np.asarray(plain)[:100][mask == 1], np.asarray(painted)[:100][mask == 1])
    assert colours_of(legend_of(plain, 300, 100)) == {distinct_colour(1)}
    assert colours_of(legend_of(painted, 300, 100)) == {distinct_colour(0), distinct_colour(1)}
    legends = [(legend_of(picture, 300, 100) == 32).all(axis=2) for picture in (plain, painted)]
    assert np.array_equal(*legends) and legends[0].any(), "the same text"


def test_outlines_grow_with_the_image() -> None:
    """One pixel on both sides of a border, three of a large image."""
    for side, width in ((100, 1), (1000, 3)):
        mask = np.zeros((side, side), int)
        mask[: side // 2] = 1
        picture = np.asarray(draw_segmentation(np.zeros((side, side, 3), np.uint8), mask, NAMES, alpha=0.0))
        rows = (picture[:side, 0] > 0).any(axis=1)
        assert np.flatnonzero(rows).tolist() == list(range(side // 2 - width, side // 2 + width))


def test_a_named_255_is_painted() -> None:
    """255 is ignored only where it has no name."""
    image, mask = photo(60, 50), np.full((50, 60), 255)
    assert np.array_equal(draw_segmentation(image, mask, {0: "sky"}), image)
    assert not np.array_equal(np.asarray(draw_segmentation(image, mask, {255: "lesion"}))[:50], image)


def test_long_names_are_cut() -> None:
    """So that the legend is no wider than the image, and the share is still read."""
    image, mask = photo(200, 100), stripes(200, 100, 1, 2)
    pictures = [draw_segmentation(image, mask, {1: "sky", 2: name}) for name in ("x" * 60, "x" * 90)]
    assert [picture.width for picture in pictures] == [200, 200]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_side_by_side() -> None:
    """Each picture whole, pixel for pixel, under its heading."""
    left, right = photo(60, 40), photo(50, 70)
    pictures = {"labelled": Image.fromarray(left), "predicted": Image.fromarray(right)}
    joined = np.asarray(side_by_side(pictures))
    top = joined.shape[0] - 70
    assert top >= 20
    assert np.array_equal(joined[top : top + 40, :60], left)
    start = next(x for x in range(60, joined.shape[1]) if np.array_equal(joined[top:, x : x + 50], right))
    heads = (joined[:top] < 255).any(axis=(0, 2))
    assert heads[:60].any() and heads[start:].any() and not heads[60 + 1 : start].any()


def test_rows() -> None:
    """Two to a row: the third stands under the first."""
    photos = [photo(60, 40), photo(50, 70), photo(55, 30)]
    joined = np.asarray(side_by_side({str(n): Image.fromarray(p) for n, p in enumerate(photos)}, columns=2))
    top = (joined.shape[0] - 70 - 30) // 2  # of a heading
    assert np.array_equal(joined[top : top + 40, :60], photos[0])
    assert np.array_equal(joined[top : top + 70, -50:], photos[1])
    assert np.array_equal(joined[-30:, :55], photos[2])


def test_nothing_but_ignored() -> None:
    image = photo(50, 40)
    assert np.array_equal(draw_segmentation(image, np.full((40, 50), 255), {}), image)


def test_distinct_colours() -> None:
    colours = np.array([distinct_colour(label) for label in range(256)])
    distances = np.abs(colours[:, None] - colours).sum(axis=2)
    assert distances[~np.eye(256, dtype=bool)].min() >= 20
    assert min(distinct_colour(10**6)) >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((40, 60), int)}, "the mask is 60x40 and the image 50x40"),
        ({"mask": np.zeros((40, 50))}, "the mask holds float64"),
        ({"mask": np.zeros((40, 50, 3), np.uint8)}, r"the mask holds uint8 of shape \(40, 50, 3\)"),
        ({"image": np.zeros((40, 50, 3))}, r"an array of float64 \(40, 50, 3\)"),
        ({"image": np.zeros((40, 50), np.uint8)}, r"an array of uint8 \(40, 50\)"),
        ({"mask": np.full((40, 50), 777)}, "label 777, which id2label does not name"),
        ({"mask": np.full((40, 50), -1)}, "label -1, which id2label does not name"),
        ({"mask": np.full((40, 50), 2), "palette": [(0, 0, 0)] * 2}, "palette of 2 colours has none for label 2"),
        ({"palette": {7: (0, 0, 0)}}, "palette of 1 colours has none for label 1"),
        ({"alpha": 1.5}, "alpha is 1.5"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"image": photo(50, 40), "mask": np.ones((40, 50), int), "id2label": NAMES} | changes
    with pytest.raises(ValueError, match=message):
        draw_segmentation(**arguments)
