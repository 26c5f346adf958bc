"""A picture of the four feature maps of an image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from .segmentations import rgb_pixels, side_by_side
from .whole_image import pyramid_of, whole_image

PANEL = 240  # pixels of the longer side of each map's picture
OUTLIERS = 0.01  # share of the vectors that have the least and the most of a colour
ROUNDING = 1e-6  # of a map's largest number: no smaller difference is drawn


def draw_features(model: nn.Module, image: Any, image_processor: Any = None) -> Image.Image:
    """The image beside the maps of the four stages, whose three main directions are red, green and blue.

    Vectors of similar colours are similar; colours of different maps, or of different images, have nothing in common.
    A pixel of a map is drawn as the rectangle of the image that it stands for, on panels of the image's shape, 240
    pixels long.

    Args:
        model: a classifier, segmenter, detector or backbone on PVT, PVTv2 or P2T, in evaluation mode.
        image: a PIL image of any mode, or an array (H, W, 3) of uint8.
        image_processor: the model's: the image is resized as it does, but not cropped. Default: the image at its own
            size, with ImageNet's mean and deviation.

    Raises:
        ValueError: a model without a pyramid or in training mode, or an image that it cannot take.
    """
    pyramid, photo = pyramid_of(model), Image.fromarray(rgb_pixels(image))
    pixel_values = whole_image(pyramid, image, image_processor)
    with torch.inference_mode():
        maps = pyramid(pixel_values, output_hidden_states=True).hidden_states
    scale = PANEL / max(photo.size)
    size = max(1, round(scale * photo.width)), max(1, round(scale * photo.height))
    panels = {f"{photo.width}x{photo.height} pixels": photo.resize(size)}
    for number, feature_map in enumerate(maps, start=1):
        channels, height, width = feature_map.shape[1:]
        colours = Image.fromarray(as_colours(feature_map[0]))
        panels[f"stage {number}: {width}x{height}, {channels} channels"] = colours.resize(
            size, Image.Resampling.NEAREST
        )
    return side_by_side(panels)


def as_colours(feature_map: Tensor) -> NDArray[np.uint8]:
    """The main directions of a map (C, H, W) as colours (H, W, 3): of each the least is 0 and the most is 255.

    A hundredth of the vectors at either end is cut off. A direction in which all vectors are equal is 128 throughout.
    """
    scores = principal_components(feature_map)  # (H, W, 3)
    low, high = np.quantile(scores, (OUTLIERS, 1 - OUTLIERS), axis=(0, 1))  # (3,)
    spread = high - low
    differ = spread > ROUNDING * float(feature_map.abs().max())
    shares = np.divide(scores - low, spread, out=np.full_like(scores, 128 / 255), where=differ)
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def principal_components(feature_map: Tensor, count: int = 3) -> NDArray[np.float64]:
    """The vectors of a map (C, H, W) along their `count` main directions: (H, W, count), as scikit-learn's PCA.

    The largest entry of each direction is positive, so that the same map has the same colours everywhere. Directions
    that there are not, for want of vectors or channels, are 0.
    """
    channels, height, width = feature_map.shape
    vectors = feature_map.flatten(1).T.double().cpu().numpy()  # (H*W, C)
    vectors = vectors - vectors.mean(axis=0)
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :count]  # (C, count), the main one first
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)  # (1, count)
    scores = vectors @ (directions * np.sign(largest))
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1]))).reshape(height, width, count)
