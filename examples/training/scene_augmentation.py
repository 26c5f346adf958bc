"""What the published segmentation recipe does to an image and its label map, as in MMSegmentation.

Images are RGB of PIL, label maps (H, W) of int64. All chance is PyTorch's CPU generator's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hf_pvt.image_processing_pvt import nearest

from .label_values import NO_LABEL

LabelMap = NDArray[np.int64]
TRIES = 10


def uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def chance(probability: float = 0.5) -> bool:
    return bool(torch.rand(()) < probability)


@dataclass(frozen=True)
class RandomScale:
    """The ratio is kept; `shorter` or `longer`, times a factor from [lowest, highest], is reached in one dimension."""

    shorter: int
    longer: int
    lowest: float
    highest: float

    def __call__(self, image: Image.Image, labels: LabelMap) -> tuple[Image.Image, LabelMap]:
        factor = uniform(self.lowest, self.highest)
        scale = factor * min(self.shorter / min(image.size), self.longer / max(image.size))
        width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BILINEAR), nearest(labels, (height, width))


@dataclass(frozen=True)
class RandomCrop:
    """A square of `size`, drawn anew, up to ten times, while one label has more than `most` of its labelled pixels.

    An image that is smaller comes whole; `pad` fills it up.
    """

    size: int
    most: float
    ignored: int = NO_LABEL

    def __call__(self, image: Image.Image, labels: LabelMap) -> tuple[Image.Image, LabelMap]:
        for _ in range(TRIES):
            top, left = (int(torch.randint(max(0, side - self.size) + 1, ())) for side in labels.shape)
            crop = labels[top : top + self.size, left : left + self.size]
            if self.is_mixed(crop):
                break
        height, width = crop.shape
        return image.crop((left, top, left + width, top + height)), crop

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


def flip(image: Image.Image, labels: LabelMap) -> tuple[Image.Image, LabelMap]:
    return ImageOps.mirror(image), labels[:, ::-1]


def pad(
    pixel_values: torch.Tensor, labels: torch.Tensor, size: int, ignored: int = NO_LABEL
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels (3, h, w) and labels (h, w) at the top left of a square: zeros, and `ignored`."""
    space = (0, size - labels.shape[1], 0, size - labels.shape[0])
    padded = torch.nn.functional.pad
    return padded(pixel_values, space), padded(labels, space, value=ignored)
