"""What the published recipe adds to torchvision's augmentation of images for classification."""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

BICUBIC = InterpolationMode.BICUBIC
# ImageNet's mean colour, which fills what an operation leaves empty.
FILL = [124, 116, 104]

# An image, a level in [0, 1], and the same with a random sign.
Operation = Callable[[Image.Image, float, float], Image.Image]


def shear(image: Image.Image, x: float, y: float) -> Image.Image:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(image, 0.0, [0, 0], 1.0, degrees, interpolation=BICUBIC, fill=FILL, center=[0, 0])


def translate(image: Image.Image, x: float, y: float) -> Image.Image:
    """By shares of the width and height."""
    pixels = [round(x * image.width), round(y * image.height)]
    return F.affine(image, 0.0, pixels, 1.0, [0.0, 0.0], interpolation=BICUBIC, fill=FILL)


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Make the darker half of the values brighter."""
    return image.point([min(255, value + amount) if value < 128 else value for value in range(256)] * 3)


def factor(signed: float) -> float:
    """Of brightness, colour, contrast and sharpness: 1 changes nothing."""
    return max(0.1, 1 + 0.9 * signed)


# timm's "increasing" operations: the higher the level, the further from the image.
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, level, signed: F.autocontrast(image),
    "equalize": lambda image, level, signed: F.equalize(image),
    "invert": lambda image, level, signed: F.invert(image),
    "rotate": lambda image, level, signed: F.rotate(image, 30 * signed, interpolation=BICUBIC, fill=FILL),
    "posterize": lambda image, level, signed: F.posterize(image, bits=4 - int(4 * level)),
    "solarize": lambda image, level, signed: F.solarize(image, threshold=256 - int(256 * level)),
    "solarize_add": lambda image, level, signed: solarize_add(image, int(110 * level)),
    "colour": lambda image, level, signed: F.adjust_saturation(image, factor(signed)),
    "contrast": lambda image, level, signed: F.adjust_contrast(image, factor(signed)),
    "brightness": lambda image, level, signed: F.adjust_brightness(image, factor(signed)),
    "sharpness": lambda image, level, signed: F.adjust_sharpness(image, factor(signed)),
    "shear_x": lambda image, level, signed: shear(image, 0.3 * signed, 0.0),
    "shear_y": lambda image, level, signed: shear(image, 0.0, 0.3 * signed),
    "translate_x": lambda image, level, signed: translate(image, 0.45 * signed, 0.0),
    "translate_y": lambda image, level, signed: translate(image, 0.0, 0.45 * signed),
}


class RandAugment(nn.Module):
    """RandAugment (arXiv 1909.13719) as timm's `rand-m9-mstd0.5-inc1`, with which the papers trained.

    torchvision's has a fixed magnitude, applies every operation it draws, and lacks two of these.

    Args:
        magnitude: mean level of the operations, of at most 10.
        std: each operation's level is drawn from a normal distribution around it, within [0, 10].
        count: operations that are drawn; each is applied with `probability`.
    """

    def __init__(self, magnitude: float = 9.0, std: float = 0.5, count: int = 2, probability: float = 0.5) -> None:
        super().__init__()
        self.magnitude, self.std, self.count, self.probability = magnitude, std, count, probability

    def level(self) -> float:
        """Of one operation, in [0, 1]."""
        return float((self.magnitude + self.std * torch.randn(())).clamp(0, 10)) / 10

    def forward(self, image: Image.Image) -> Image.Image:
        operations = list(OPERATIONS.values())
        for index in torch.randint(len(operations), (self.count,)).tolist():
            if torch.rand(()) < self.probability:
                level = self.level()
                image = operations[index](image, level, level if torch.rand(()) < 0.5 else -level)
        return image


class Mixing:
    """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch, either one half of the time.

    Args:
        mixup, cutmix: parameters of their Beta distributions; 0 is without.
    """

    def __init__(self, mixup: float, cutmix: float, num_labels: int) -> None:
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        chosen = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in kinds if alpha]
        self.mix = v2.RandomChoice(chosen) if chosen else None

    def __call__(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) become mixed images and targets (B, num_labels) that sum to one."""
        if self.mix is None:
            return pixel_values, labels
        # torchvision mixes neighbours, which repeated augmentation would make copies of one image.
        order = torch.randperm(len(labels)).to(labels.device)
        return self.mix(pixel_values[order], labels[order])
