"""What the published segmentation recipe does to an image and its label map, as in MMSegmentation.

Images are RGB of PIL, or arrays (H, W, C) of other channels; label maps (H, W) of int64. All
chance is PyTorch's CPU generator's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...images.image_inputs import image_size
from ...images.image_processing_pvt import nearest
from ...images.resampling import resized
from ..data.label_values import NO_LABEL

LabelMap = NDArray[np.int64]
TRIES = 10


def uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def chance(probability: float = 0.5) -> bool:
    return bool(torch.rand(()) < probability)


@dataclass(frozen=True)
class RandomScale:
    """The ratio is kept; `shorter` or `longer`, times a factor from [lowest, highest], is reached in one dimension.

    With `published_resampling` as OpenCV resizes, which the published runs used; else by PIL, with antialiasing.
    """

    shorter: int
    longer: int
    lowest: float
    highest: float
    published_resampling: bool = False

    def __call__(self, image: Any, labels: LabelMap) -> tuple[Any, LabelMap]:
        factor = uniform(self.lowest, self.highest)
        sides = image_size(image)
        scale = factor * min(self.shorter / min(sides), self.longer / max(sides))
        height, width = (max(1, int(side * scale + 0.5)) for side in sides)
        scaled = resized(image, (height, width), published=self.published_resampling)
        return scaled, nearest(labels, (height, width))


@dataclass(frozen=True)
class RandomCrop:
    """A square of `size`, drawn anew, up to ten times, while one label has more than `most` of its labelled pixels.

    An image that is smaller comes whole; `pad` fills it up.
    """

    size: int
    most: float
    ignored: int = NO_LABEL

    def __call__(self, image: Any, labels: LabelMap) -> tuple[Any, LabelMap]:
        for _ in range(TRIES):
            top, left = (int(torch.randint(max(0, side - self.size) + 1, ())) for side in labels.shape)
            crop = labels[top : top + self.size, left : left + self.size]
            if self.is_mixed(crop):
                break
        height, width = crop.shape
        if isinstance(image, Image.Image):
            return image.crop((left, top, left + width, top + height)), crop
        return image[top : top + height, left : left + width], crop

    def is_mixed(self, labels: LabelMap) -> bool:
        counts = np.unique(labels[labels != self.ignored], return_counts=True)[1]
        return len(counts) > 1 and counts.max() / counts.sum() < self.most


@dataclass(frozen=True)
class PhotometricDistortion:
    """Each with probability one half: brightness by up to 32 of 255, contrast and saturation times 0.5 to 1.5, and hue.

    Contrast is a factor of the pixels themselves, before saturation and hue or after them. (torchvision's keeps the
    mean brightness, and swaps channels.) The hue turns by up to a tenth of the circle.
    """

    brightness: float = 32.0
    lowest: float = 0.5
    highest: float = 1.5
    hue: float = 0.1

    def __call__(self, image: Image.Image) -> Image.Image:
        if chance():
            image = linear(image, 1.0, uniform(-self.brightness, self.brightness))
        contrast_first = chance()
        if contrast_first:
            image = self.contrast(image)
        if chance():
            image = in_hsv(image, saturation=uniform(self.lowest, self.highest))
        if chance():
            image = in_hsv(image, turns=uniform(-self.hue, self.hue))
        return image if contrast_first else self.contrast(image)

    def contrast(self, image: Image.Image) -> Image.Image:
        return linear(image, uniform(self.lowest, self.highest), 0.0) if chance() else image


def linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
    """Every value times the factor, plus the offset, within [0, 255]."""
    return image.point([min(255, max(0, round(factor * value + offset))) for value in range(256)] * 3)


def in_hsv(image: Image.Image, saturation: float = 1.0, turns: float = 0.0) -> Image.Image:
    """The saturation times a factor, the hue turned by a part of the circle."""
    hues, saturations, values = image.convert("HSV").split()
    hues = hues.point([round(hue + 256 * turns) % 256 for hue in range(256)])
    saturations = saturations.point([min(255, round(saturation * value)) for value in range(256)])
    return Image.merge("HSV", (hues, saturations, values)).convert("RGB")


def flip(image: Any, labels: LabelMap) -> tuple[Any, LabelMap]:
    mirrored = ImageOps.mirror(image) if isinstance(image, Image.Image) else image[:, ::-1].copy()
    return mirrored, labels[:, ::-1]


def pad(
    pixel_values: torch.Tensor, labels: torch.Tensor, size: int, ignored: int = NO_LABEL
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels (C, h, w) and labels (h, w) at the top left of a square: zeros, and `ignored`."""
    space = (0, size - labels.shape[1], 0, size - labels.shape[0])
    padded = torch.nn.functional.pad
    return padded(pixel_values, space), padded(labels, space, value=ignored)
