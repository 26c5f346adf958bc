"""A picture of detections: thin boxes, light masks, and names with scores that neither overlap nor leave the image.

Only Pillow and numpy are needed. The same input draws the same pixels with the same version of Pillow.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .segmentations import (
    FONT_SHARE,
    MIN_FONT_SIZE,
    OUTLINE_SHARE,
    PAINT_ALPHA,
    Colour,
    distinct_colour,
    label_name,
    rgb_pixels,
)

CROWD = 20  # detections; the names of more are smaller
PLACES_ALONG = 5  # where a name is tried along a side of its box
BRIGHT = 140  # of 255: names on brighter colours are black, on others white

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom: the last two are outside


def draw_detections(image: Any, detections: Mapping[str, Any], id2label: Mapping[int, str]) -> Image.Image:
    """The image with each detection in a colour of its own: its box, its mask where there is one, its name and score.

    The best are drawn last, over the others, and choose first where their names stand: at or inside their box. Where
    all these places are taken, the score is left out, and then the name.

    Args:
        image: a PIL image of any mode, or an array (H, W, 3) of uint8.
        detections: of one image, from post-processing with target_sizes: `scores` (n,), `labels` (n,), `boxes` (n, 4)
            x1, y1, x2, y2 in pixels and, for masks, `masks` (n, H, W) or a `segmentation` in one of its two forms, such
            or a map (H, W) with `segments_info`. Tensors or arrays.
        id2label: the name of each label.

    Raises:
        ValueError: the numbers of scores, labels, boxes or masks differ, sizes do, boxes are shares of the image or
            another image's, or a label has no name.
    """
    pixels = rgb_pixels(image).copy()
    boxes, scores, labels = (_array(detections[name]) for name in ("boxes", "scores", "labels"))
    _check(boxes, scores, labels, pixels.shape[:2])
    names = [label_name(id2label, int(label), "the detections hold", "add it") for label in labels]
    masks = _Masks(detections, len(boxes), pixels.shape[:2])
    best_first = np.argsort(-scores, kind="stable").tolist()
    colours = {index: distinct_colour(rank) for rank, index in enumerate(best_first)}
    mean_side = sum(pixels.shape[:2]) / 2
    line = max(1, round(OUTLINE_SHARE * mean_side))
    for index in reversed(best_first):
        masks.paint(pixels, index, colours[index], line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    rectangles = [_rectangle(box, picture.size) for box in boxes]
    for index in reversed(best_first):
        left, top, right, bottom = rectangles[index]
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colours[index], width=line)
    _write_names(draw, picture.size, best_first, rectangles, names, scores, colours)
    return picture


def _write_names(
    draw: ImageDraw.ImageDraw,
    image: tuple[int, int],
    best_first: list[int],
    rectangles: list[Rectangle],
    names: list[str],
    scores: NDArray[Any],
    colours: dict[int, Colour],
) -> None:
    share = FONT_SHARE * min(1, CROWD / max(len(names), 1)) ** 0.5
    font = ImageFont.load_default(size=max(MIN_FONT_SIZE, round(share * sum(image) / 2)))
    taken: list[Rectangle] = []
    for index in best_first:
        for text in (f"{names[index]} {scores[index]:.2f}", names[index]):
            places = _places(rectangles[index], _plate_size(text, font), image)
            free = [place for place in places if not _overlaps(place, taken).any()]
            if free:
                # Small boxes are not covered where there is another place; of equal ones the first is taken.
                taken.append(min(free, key=lambda place: round(_shares_covered(place, rectangles), 1)))
                _draw_plate(draw, taken[-1], text, colours[index], font)
                break


class _Masks:
    """The masks of detections, one at a time, whatever their form."""

    def __init__(self, detections: Mapping[str, Any], count: int, size: tuple[int, ...]) -> None:
        self.masks = detections.get("masks", detections.get("segmentation"))
        self.ids = None
        if self.masks is None:
            return
        self.masks = _array(self.masks)
        if self.masks.ndim == 2:
            self.ids = [segment["id"] for segment in detections["segments_info"]]
        found = self.masks.shape[0] if self.ids is None else len(self.ids)
        if self.masks.shape[-2:] != size or found != count:
            raise ValueError(
                f"got masks of shape {self.masks.shape} for {count} detections, expected {(count, *size)}, or a map "
                f"{tuple(size)} with as many segments_info; decode run-length encodings first."
            )

    def paint(self, pixels: NDArray[np.uint8], index: int, colour: Colour, line: int) -> None:
        """Blend the colour into the mask's pixels; those of its outline take it whole."""
        if self.masks is None:
            return
        mask = self.masks[index].astype(bool) if self.ids is None else self.masks == self.ids[index]  # (H, W)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        mask, place = mask[window], pixels[window]
        inside = _inside(mask, line)
        place[mask & ~inside] = colour
        place[inside] = np.rint((1 - PAINT_ALPHA) * place[inside] + PAINT_ALPHA * np.array(colour))


def _inside(mask: NDArray[np.bool_], line: int) -> NDArray[np.bool_]:
    """The mask without an outline of `line` pixels."""
    inside = mask.copy()
    for rows, padded in ((inside, np.pad(mask, line)[:, line:-line]), (inside.T, np.pad(mask, line)[line:-line].T)):
        for shift in (*range(line), *range(line + 1, 2 * line + 1)):
            rows &= padded[shift : shift + len(rows)]
    return inside


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)


def _check(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], size: tuple[int, ...]) -> None:
    if boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
        raise ValueError(
            f"got boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape}, expected (n, 4), (n,) and (n,)."
        )
    if not len(boxes):
        return
    height, width = size
    if boxes.max() <= 1 < min(size):
        raise ValueError("the boxes are shares of the image; pass target_sizes to the post-processing.")
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # Sparse R-CNN's boxes may reach over the image
    if centres.min() < -1 or (centres > np.array([width, height]) + 1).any():
        raise ValueError(
            f"boxes reach from {boxes.min():.0f} to {boxes[:, 2].max():.0f}x{boxes[:, 3].max():.0f}, the image is "
            f"{width}x{height} (width x height); pass its size as target_sizes to the post-processing."
        )


def _rectangle(box: NDArray[Any], size: tuple[int, int]) -> Rectangle:
    """The box's whole pixels, at least one, inside the image."""
    left, top = (min(max(round(float(low)), 0), end - 1) for low, end in zip(box[:2], size, strict=True))
    right, bottom = (min(round(float(high)), end) for high, end in zip(box[2:], size, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _plate_size(text: str, font: Any) -> tuple[int, int]:
    return round(font.getlength(text) + 0.6 * font.size), round(1.3 * font.size)


def _places(box: Rectangle, size: tuple[int, int], image: tuple[int, int]) -> Iterator[Rectangle]:
    """Above the box, below its upper side, below it, above its lower side, and within: all inside the image."""
    (left, top, right, bottom), (width, height) = box, size
    if width > image[0] or height > image[1]:
        return
    columns = np.linspace(left, right - width, PLACES_ALONG).round().astype(int).tolist()
    for y in (top - height, top, bottom, bottom - height, *range(top + height, bottom - 2 * height, height)):
        for x in columns:
            corner = min(max(x, 0), image[0] - width), min(max(y, 0), image[1] - height)
            yield *corner, corner[0] + width, corner[1] + height


def _overlaps(one: Rectangle, others: list[Rectangle]) -> NDArray[np.int64]:
    """The pixels that a rectangle shares with each of the others."""
    corners = np.array(others, dtype=np.int64).reshape(-1, 4)
    sides = np.minimum(corners[:, 2:], one[2:]) - np.maximum(corners[:, :2], one[:2])  # (n, 2)
    return sides.clip(min=0).prod(axis=1)


def _shares_covered(plate: Rectangle, boxes: list[Rectangle]) -> float:
    """How much of each box a plate would cover, added up."""
    corners = np.array(boxes)
    return float((_overlaps(plate, boxes) / (corners[:, 2:] - corners[:, :2]).prod(axis=1)).sum())


def _draw_plate(draw: ImageDraw.ImageDraw, plate: Rectangle, text: str, colour: Colour, font: Any) -> None:
    left, top, right, bottom = plate
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    red, green, blue = colour
    ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > BRIGHT else (255, 255, 255)
    draw.text(((left + right) / 2, (top + bottom) / 2), text, fill=ink, font=font, anchor="mm")
