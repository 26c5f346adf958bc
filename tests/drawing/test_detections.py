"""Drawn detections: boxes and masks pixel by pixel, names inside the image and apart from each other."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hf_pvt.drawing import detections as drawing_detections
from hf_pvt.drawing.detections import draw_detections
from hf_pvt.drawing.segmentations import PAINT_ALPHA, distinct_colour

NAMES = {0: "person", 1: "a rather long name of a label", 2: "dog"}
HEIGHT, WIDTH = 240, 320
Plates = list[tuple[tuple[int, int, int, int], str]]


def photo(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


def some(count: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """Detections in no order of scores, of all sizes, many at the border."""
    random = np.random.RandomState(seed)
    centre, side = random.rand(count, 2) * [width, height], random.rand(count, 2) * min(height, width) / 2 + 1
    corners = np.concatenate([centre - side / 2, centre + side / 2], axis=1).clip(0, [width, height] * 2)
    return {
        "boxes": torch.tensor(corners, dtype=torch.float32),
        "scores": torch.tensor(random.rand(count), dtype=torch.float32),
        "labels": torch.tensor(random.randint(0, 3, count)),
    }


def overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.fixture
def plates(monkeypatch: pytest.MonkeyPatch) -> Plates:
    """Every name that is written, with its rectangle."""
    written: Plates = []
    draw_plate = drawing_detections._draw_plate

    def record(draw: ImageDraw.ImageDraw, plate: Any, text: str, colour: Any, font: Any) -> None:
        written.append((plate, text))
        draw_plate(draw, plate, text, colour, font)

    monkeypatch.setattr(drawing_detections, "_draw_plate", record)
    return written


def test_box() -> None:
    """Its outline is one pixel wide, inside the box; between it and the name nothing changes."""
    image = photo()
    found = {"boxes": np.array([[100.0, 80.0, 200.0, 160.0]]), "scores": np.array([0.5]), "labels": np.array([0])}
    picture = np.asarray(draw_detections(image, found, NAMES))
    frame = np.zeros((HEIGHT, WIDTH), dtype=bool)
    frame[80:160, 100:200] = True
    frame[81:159, 101:199] = False
    assert (picture[frame] == distinct_colour(0)).all()
    frame[66:80, 100:200] = True  # the name
    assert np.array_equal(picture[~frame], image[~frame])
    assert (picture != image)[66:80, 100:180].any()


@pytest.mark.parametrize("form", ["masks", "segmentation", "map"])
def test_masks(form: str) -> None:
    """An outline in the colour, and the blend within; the better one is above. Tensors and arrays."""
    image = photo()
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 60:110, 50:100] = masks[1, 140:200, 180:300] = True
    found: dict[str, Any] = {
        "boxes": torch.tensor([[40.0, 50, 110, 115], [170, 130, 310, 210]]),
        "scores": torch.tensor([0.3, 0.8]),
        "labels": torch.tensor([0, 2]),
    }
    if form == "map":
        found["segmentation"] = (masks * torch.tensor([7, 9])[:, None, None]).sum(0).int()
        found["segments_info"] = [{"id": 7}, {"id": 9}]
    else:
        found[form] = masks
    picture = np.asarray(draw_detections(image, found, NAMES))
    for rank, (rows, columns) in ((1, (slice(60, 110), slice(50, 100))), (0, (slice(140, 200), slice(180, 300)))):
        colour, inside = np.array(distinct_colour(rank)), (slice(1, -1), slice(1, -1))
        part, original = picture[rows, columns], image[rows, columns]
        expected = (1 - PAINT_ALPHA) * original[inside] + PAINT_ALPHA * colour
        assert np.abs(part[inside] - expected).max() <= 0.5 + 1e-9
        assert (part[[0, -1]] == colour).all() and (part[:, [0, -1]] == colour).all()


def test_box_at_the_end() -> None:
    """What rounding would push out of the image is drawn on its last pixel."""
    found = {"boxes": np.array([[319.6, 239.6, 320.4, 240.4]]), "scores": np.array([0.5]), "labels": np.array([0])}
    assert draw_detections(photo(), found, NAMES).getpixel((WIDTH - 1, HEIGHT - 1)) == distinct_colour(0)


def test_order() -> None:
    """Of two equal boxes the better one is seen, and has the first colour, wherever it stands in the list."""
    box = torch.tensor([[50.0, 50.0, 150.0, 150.0]]).expand(2, 4)
    for scores in ([0.2, 0.9], [0.9, 0.2]):
        found = {"boxes": box, "scores": torch.tensor(scores), "labels": torch.tensor([0, 0])}
        picture = draw_detections(photo(), found, NAMES)
        assert picture.getpixel((100, 149)) == distinct_colour(0)


@pytest.mark.parametrize(
    ("size", "count"),
    [((240, 320), 3), ((240, 320), 100), ((900, 1200), 30), ((900, 1200), 100), ((64, 64), 100), ((40, 300), 30)],
    ids=str,
)
def test_names(plates: Plates, count: int, size: tuple[int, int]) -> None:
    """Inside the image, apart from each other, at their boxes; the better ones come first."""
    found = some(count, *size)
    draw_detections(photo(*size), found, NAMES)
    height, width = size
    assert plates or width < 70
    boxes = found["boxes"].round().int().tolist()
    owners = zip(boxes, found["labels"].tolist(), found["scores"].tolist(), strict=True)
    named = [(box, (NAMES[label], f"{NAMES[label]} {score:.2f}")) for box, label, score in owners]
    for i, (plate, text) in enumerate(plates):
        left, top, right, bottom = plate
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert not any(overlap(plate, other) for other, _ in plates[:i])
        reach = bottom - top + 2
        assert any(
            overlap(plate, (x1 - 2, y1 - reach, x2 + 2, y2 + reach))
            for (x1, y1, x2, y2), texts in named
            if text in texts
        )
    if size == (900, 1200):
        assert len(plates) >= 0.9 * count
        scores = [float(text.rpartition(" ")[2]) for _, text in plates if text[-1].isdigit()]
        assert scores == sorted(scores, reverse=True)


def test_same_pixels_twice() -> None:
    found, image = some(40), photo()
    before = image.copy()
    pictures = [draw_detections(image, found, NAMES).tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1] and np.array_equal(image, before)
    assert draw_detections(Image.fromarray(image), found, NAMES).tobytes() == pictures[0]


def test_nothing_found() -> None:
    image = photo()
    assert np.array_equal(draw_detections(image, some(0), NAMES), image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 1, 5])}, "label 5, which id2label does not name"),
        ({"scores": torch.tensor([0.5])}, r"got boxes \(3, 4\), scores \(1,\) and labels \(3,\)"),
        ({"boxes": torch.rand(3, 4)}, "boxes are shares of the image; pass target_sizes"),
        ({"boxes": torch.rand(3, 4) + 400}, "the image is 320x240"),
        ({"masks": torch.zeros(2, HEIGHT, WIDTH)}, r"masks of shape \(2, 240, 320\) for 3 detections"),
        ({"masks": torch.zeros(3, WIDTH, HEIGHT)}, r"masks of shape \(3, 320, 240\) for 3 detections"),
        ({"segmentation": [{"size": [HEIGHT, WIDTH], "counts": "x"}] * 3}, "decode run-length encodings first"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(photo(), some(3) | changes, NAMES)
