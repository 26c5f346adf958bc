"""A picture of what a point of an image attends to."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from .attention_maps import AttentionMap, attention_maps
from .segmentations import OUTLINE_SHARE, rgb_pixels, side_by_side
from .whole_image import pyramid_of, whole_image

HEAT_ALPHA = 0.6  # the heat's share; the rest is the image, in grey
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # matplotlib's inferno, in five
TINY = float(np.finfo(np.float32).tiny)  # weights that softmax has rounded to 0 have no largest
RING_SHARE = 0.015  # of the image's mean side: the radius of the ring around the point


def draw_attention(
    model: nn.Module,
    image: Any,
    point: tuple[float, float],
    stage: int = -1,
    block: int = -1,
    head: int | None = None,
    image_processor: Any = None,
) -> Image.Image:
    """The attention of the token at a point, over the reduced keys, laid over the image in grey; a ring is the point.

    For P2T there is a picture for each pooling level, in rows of two. A heading says how many keys there are, what part
    of the attention they have, and the largest share of one key, which has the lightest colour; 0 is dark. A key is
    drawn as the rectangle that it was reduced from. PVT's class token has no place: its share is missing in the sum.

    Args:
        model: a classifier, segmenter, detector or backbone on PVT, PVTv2 or P2T, in evaluation mode.
        image: a PIL image of any mode, or an array (H, W, 3) of uint8.
        point: x and y in pixels of the image.
        stage: from 0 to 3, or from -4 to -1.
        block: of the stage, from 0 or, negative, from its end.
        head: of the block, likewise; None is the mean of all.
        image_processor: the model's: the image is resized as it does, but not cropped. Default: the image at its own
            size, with ImageNet's mean and deviation.

    Raises:
        ValueError: a model without a pyramid or in training mode, a point outside of the image, no such stage, block or
            head, or an image that the model cannot take.
    """
    pyramid, photo = pyramid_of(model), rgb_pixels(image)
    height, width = photo.shape[:2]
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"the point ({x:g}, {y:g}) is outside of the image of {width}x{height} pixels (width x height)."
        )
    pixel_values = whole_image(pyramid, image, image_processor)
    maps = attention_maps(pyramid, pixel_values, (x / width, y / height), stage, block, head)
    grey = np.asarray(Image.fromarray(photo).convert("L"), dtype=np.float32)[..., None]  # (H, W, 1)
    return side_by_side({_heading(*one): _overlay(grey, one[1], point) for one in enumerate(maps, start=1)}, columns=2)


def _heading(number: int, level: AttentionMap) -> str:
    rows, columns = level.weights.shape
    return f"{number}: {columns}x{rows} keys, {level.weights.sum():.0%} of all, each at most {level.weights.max():.2%}"


def _overlay(grey: NDArray[np.float32], level: AttentionMap, point: tuple[float, float]) -> Image.Image:
    largest = max(float(level.weights.max()), TINY)
    heat = _heat(_at_image_size(level, grey.shape[:2]) / largest)
    picture = Image.fromarray(np.rint((1 - HEAT_ALPHA) * grey + HEAT_ALPHA * heat).astype(np.uint8))
    mean_side = sum(picture.size) / 2
    radius, line = max(3, round(RING_SHARE * mean_side)), max(1, round(OUTLINE_SHARE * mean_side))
    (x, y), draw = point, ImageDraw.Draw(picture)
    for reach, colour in ((radius + line, "black"), (radius, "white")):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=line)
    return picture


def _at_image_size(level: AttentionMap, size: tuple[int, ...]) -> NDArray[np.float32]:
    """(H, W): each pixel has the weight of the key that it belongs to, 0 where none does."""
    weights = level.weights.numpy()  # (h, w)
    rows, columns = (
        np.floor((np.arange(length) + 0.5) / (length * covered) * keys).astype(np.int64)
        for length, covered, keys in zip(size, level.covered, weights.shape, strict=True)
    )
    return np.pad(weights, ((0, 1), (0, 1)))[
        np.minimum(rows, len(weights))[:, None], np.minimum(columns, weights.shape[1])
    ]


def _heat(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) in [0, 1] -> colours (H, W, 3), the lighter the more."""
    steps = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(shares, steps, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
