"""A picture of a segmentation: the image, its labels as outlines and light paint, and a legend.

Only Pillow and numpy are needed. The same input draws the same pixels with the same version of Pillow.
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..images.image_inputs import as_rgb

Colour = tuple[int, int, int]
Palette = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]
Entry = tuple[Colour | None, str, str]  # a line of the legend: the box's colour, None for no box, a name and a share

MIN_FONT_SIZE = 11  # pixels; smaller text cannot be read
LEAST_LINES = 6  # of the legend, even where the image is lower
FONT_SHARE = 0.024  # of the image's mean side
OUTLINE_SHARE = 0.003  # of the same: the width of a label's outline, at least a pixel
PAINT_ALPHA = 0.35  # the colour's share inside the outlines
LEAST_LEGEND = 9  # heights of a line: the width that a legend takes beside or below an image that is narrower
BACKGROUND = "background"  # the name of what is not painted, in any case
PAPER, INK, FRAME = (255, 255, 255), (32, 32, 32), (128, 128, 128)
STEPS = tuple(1.2207440846057596**-i for i in (1, 2, 3))  # the root of x**4 = x + 1


def draw_segmentation(
    image: Any,
    mask: Any,
    id2label: Mapping[int, str],
    palette: Palette | None = None,
    alpha: float = PAINT_ALPHA,
    ignore_index: int | None = None,
    paint_background: bool = False,
) -> Image.Image:
    """The image with its labels outlined and lightly painted, and a legend beside a tall image, below a wide one.

    The overlay is the top left corner of the picture, pixel for pixel. The legend names the labels by area, the largest
    first, each with its share of all pixels, ignored ones included; it is no wider than the image (but a very narrow
    one): names are cut, and it ends in "and n more" where there is no space.

    Args:
        image: a PIL image of any mode, or an array (H, W, 3) of uint8.
        mask: the label map (H, W), integers: an array, a tensor or a PIL image.
        id2label: the name of each label in the mask.
        palette: RGB colours in [0, 255], one for each label: a sequence or a dict. Default: `distinct_colour`.
        alpha: the colours' share inside the outlines, in [0, 1]; the outlines have all of it.
        ignore_index: the label of pixels that keep the image's colour and have no line in the legend. Default: 255,
            where `id2label` does not name it.
        paint_background: also paint the label whose name is "background"; without it, its pixels keep their colour.

    Raises:
        ValueError: sizes differ, mask or image are of another kind, or a label has no name or no colour.
    """
    photo, label_map = rgb_pixels(image), _label_map(mask)
    if label_map.shape != photo.shape[:2]:
        raise ValueError(
            f"the mask is {_size(label_map)} and the image {_size(photo)} (width x height), expected the same size; "
            "resize the logits to the image before their argmax."
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected a number in [0, 1].")
    if ignore_index is None and 255 not in id2label:
        ignore_index = 255
    labels, areas = np.unique(label_map[label_map != ignore_index], return_counts=True)
    remedy = "add it, or set ignore_index"
    names = {int(label): label_name(id2label, int(label), "the mask holds", remedy) for label in labels}
    painted = [label for label, name in names.items() if paint_background or name.lower() != BACKGROUND]
    colours = {label: _colour(palette, label) for label in painted}
    overlay = Image.fromarray(_paint(photo, label_map, colours, alpha))
    shares = dict(zip(names, 100 * areas / label_map.size, strict=True))
    by_area = sorted(names, key=lambda label: -shares[label])
    return _with_legend(overlay, [(colours.get(label), names[label], f"{shares[label]:.1f} %") for label in by_area])


def side_by_side(pictures: Mapping[str, Image.Image], columns: int | None = None) -> Image.Image:
    """RGB pictures beside each other on white paper, each under its heading; in rows of `columns`, or all in one."""
    font: Any = ImageFont.load_default(size=max(map(_font_size, pictures.values())))
    headed = [_headed(heading, picture, font) for heading, picture in pictures.items()]
    columns = columns or len(headed)
    rows = [headed[first : first + columns] for first in range(0, len(headed), columns)]
    margin = round(font.size)
    width = max(sum(one.width for one in row) + margin * (len(row) - 1) for row in rows)
    paper = Image.new("RGB", (width, sum(max(one.height for one in row) for row in rows)), PAPER)
    top = 0
    for row in rows:
        left = 0
        for one in row:
            paper.paste(one, (left, top))
            left += one.width + margin
        top += max(one.height for one in row)
    return paper


def _headed(heading: str, picture: Image.Image, font: Any) -> Image.Image:
    """The picture under its heading, as wide as the wider of both."""
    top = round(2.6 * font.size)
    paper = Image.new("RGB", (max(picture.width, round(font.getlength(heading))), top + picture.height), PAPER)
    ImageDraw.Draw(paper).text((0, top / 2), heading, fill=INK, font=font, anchor="lm")
    paper.paste(picture, (0, top))
    return paper


def distinct_colour(label: int) -> Colour:
    """A colour for each of any number of labels, no two of the first 256 alike.

    Hue, saturation and value each walk by an irrational step, so that no two labels come close in all three:
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/
    """
    hue, saturation, value = (label * step % 1 for step in STEPS)
    rgb = colorsys.hsv_to_rgb(hue, 0.4 + 0.6 * (1 - saturation), 0.5 + 0.5 * (1 - value))
    red, green, blue = (round(255 * share) for share in rgb)
    return red, green, blue


def rgb_pixels(image: Any) -> NDArray[np.uint8]:
    """The image's pixels (H, W, 3)."""
    if isinstance(image, Image.Image):
        return np.asarray(as_rgb(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"the image is an array of {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 3) or a PIL image."
        )
    return pixels


def label_name(id2label: Mapping[int, str], label: int, found: str, remedy: str) -> str:
    """The label's name; where there is none, a ValueError says where it was found, and the remedy."""
    if label not in id2label:
        raise ValueError(f"{found} label {label}, which id2label does not name; {remedy}.")
    return id2label[label]


def _label_map(mask: Any) -> NDArray[np.integer[Any]]:
    label_map = np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask)
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise ValueError(
            f"the mask holds {label_map.dtype} of shape {label_map.shape}, expected integers (height, width)."
        )
    return label_map


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _colour(palette: Palette | None, label: int) -> Colour:
    if palette is None:
        return distinct_colour(label)
    if label not in (palette if isinstance(palette, Mapping) else range(len(palette))):
        raise ValueError(f"the palette of {len(palette)} colours has none for label {label}; add it.")
    red, green, blue = palette[label]
    return int(red), int(green), int(blue)


def _paint(
    photo: NDArray[np.uint8], label_map: NDArray[np.integer[Any]], colours: Mapping[int, Colour], alpha: float
) -> NDArray[np.uint8]:
    """Each label's pixels as (1 - alpha) of the photo and alpha of the label's colour, those of its outline in it."""
    overlay = photo.copy()
    outline = outline_of(label_map, max(1, round(OUTLINE_SHARE * sum(label_map.shape) / 2)))
    for label, colour in colours.items():
        place = label_map == label
        overlay[place] = np.rint((1 - alpha) * photo[place] + alpha * np.array(colour))
        overlay[place & outline] = colour
    return overlay


def outline_of(label_map: NDArray[np.integer[Any]], width: int) -> NDArray[np.bool_]:
    """Pixels of (H, W) that are nearer than `width` to another label, along rows or columns."""
    outline = np.zeros(label_map.shape, dtype=np.bool_)
    for rows, edges in ((label_map, outline), (label_map.T, outline.T)):
        for step in range(1, width + 1):
            different = rows[step:] != rows[:-step]
            edges[step:] |= different
            edges[:-step] |= different
    return outline


def _font_size(picture: Image.Image) -> int:
    return max(MIN_FONT_SIZE, round(FONT_SHARE * (picture.width + picture.height) / 2))


def _with_legend(overlay: Image.Image, entries: list[Entry]) -> Image.Image:
    """The overlay on white paper, with the legend in columns below it, or in one column beside a tall one."""
    if not entries:
        return overlay
    font_size = _font_size(overlay)
    font = ImageFont.load_default(size=font_size)
    line, margin = round(1.6 * font_size), font_size
    most = max(overlay.width, LEAST_LEGEND * line) - 2 * margin
    entries = [(colour, _cut(name, share, most - 2 * margin, font), share) for colour, name, share in entries]
    widest = max(font.getlength(text) for text in [*map(_text, entries), "and 999 more"])
    column = min(most, round(widest) + 3 * margin)
    beside = overlay.height > overlay.width
    if beside:
        columns, lines = 1, max(LEAST_LINES, (overlay.height - 2 * margin) // line)
    else:
        columns = max(1, (overlay.width - margin) // column)
        lines = min(-(-len(entries) // columns), max(LEAST_LINES, overlay.height // 3 // line))
    shown = _as_many_as_fit(entries, columns * lines)
    lines = min(lines, len(shown))
    width, height = margin + columns * column, 2 * margin + lines * line
    corner = (overlay.width, 0) if beside else (0, overlay.height)
    size = (
        (overlay.width + width, max(overlay.height, height))
        if beside
        else (max(overlay.width, width), overlay.height + height)
    )
    picture = Image.new("RGB", size, PAPER)
    picture.paste(overlay)
    draw = ImageDraw.Draw(picture)
    for i, entry in enumerate(shown):
        x, y = corner[0] + margin + i // lines * column, corner[1] + margin + i % lines * line
        _draw_entry(draw, (x, y), entry, font)
    return picture


def _text(entry: Entry) -> str:
    return "  ".join(filter(None, entry[1:]))


def _cut(name: str, share: str, width: int, font: Any) -> str:
    """The name, or as much of its beginning as leaves place for the share."""
    if font.getlength(_text((None, name, share))) <= width:
        return name
    while name and font.getlength(_text((None, f"{name}…", share))) > width:
        name = name[:-1]
    return f"{name}…"


def _as_many_as_fit(entries: list[Entry], places: int) -> list[Entry]:
    """The first entries; the last place tells how many are left out."""
    if len(entries) <= places:
        return entries
    return [*entries[: places - 1], (None, f"and {len(entries) - places + 1} more", "")]


def _draw_entry(draw: ImageDraw.ImageDraw, corner: tuple[int, int], entry: Entry, font: Any) -> None:
    """A line of the legend with its top left corner at `corner`."""
    (x, y), side = corner, round(font.size)
    if entry[0] is not None:
        draw.rectangle((x, y, x + side, y + side), fill=entry[0], outline=FRAME)
    draw.text((x + side + side // 2, y + side / 2), _text(entry), fill=INK, font=font, anchor="lm")
