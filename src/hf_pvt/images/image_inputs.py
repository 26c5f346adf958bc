"""What people hand to an image processor, as what it works on, by one rule for training, evaluation and pipelines.

For models of three channels that is an RGB image of Pillow, for all others an array (H, W, C) of uint8, or of float32
in [0, 1]. Black and white are the least and the largest number of a type: 16 bits are 0 to 65535, floats 0 to 1.
"""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.utils import logging

from .image_files import SAMPLES_PER_PIXEL, extra_channels, open_image_file

logger = logging.get_logger(__name__)

# Modes of Pillow whose bands are channels; the others are converted first.
BANDS = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "I", "F")


def as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]


def flat_list(images: Any) -> list[Any]:
    """The images of a list, of lists in a list, or of a batch of four dimensions."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        return [image for some in images for image in flat_list(some)]
    return [images]


def image_size(image: Any) -> tuple[int, int]:
    """Height and width of what `readable` gives."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return height, width


def readable(
    image: Any, num_channels: int = 3, scaled: bool = False, channels: str | None = None, timeout: float | None = None
) -> Any:
    """A file, URL, Pillow image or array as the module says; tensors (C, H, W) keep their type, if it is a float.

    Args:
        num_channels: of the model.
        scaled: floats are what the model wants already: any number is left as it is.
        channels: "channels_first" or "channels_last" of arrays and tensors, where their shape leaves a choice.
        timeout: of a URL, in seconds.

    Raises:
        ValueError: another number of channels, or values that are no image's.
    """
    if isinstance(image, str | os.PathLike):
        image = open_image_file(image, num_channels, timeout)
    if isinstance(image, Image.Image):
        return as_rgb(image) if num_channels == 3 else as_array(bands(image), num_channels)
    if isinstance(image, Tensor):
        return as_tensor(image, num_channels, scaled, channels)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"got a {type(image).__name__}, expected an image: a file, a Pillow image, an array, a tensor.")
    image = channels_last(image, num_channels, channels)
    if scaled and image.dtype.kind == "f":
        return checked(image.repeat(3, axis=2) if num_channels == 3 == 3 * image.shape[2] else image, num_channels)
    if num_channels != 3:
        return as_array(image, num_channels)
    image = as_uint8(image)
    return as_rgb(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image))


def as_tensor(image: Tensor, num_channels: int, scaled: bool, channels: str | None) -> Tensor:
    """Of (H, W), (C, H, W) or (H, W, C): (C, H, W) of uint8, or of floats from 0 to 1, or any that are `scaled`."""
    if not image.is_floating_point():
        image = image.new_tensor(as_uint8(image.cpu().numpy()), dtype=torch.uint8)
    elif not scaled:
        check_unit(float(image.min()), float(image.max()))
    image = image[None] if image.ndim == 2 else image
    known = known_counts(num_channels)
    if image.ndim == 3 and (channels == "channels_last" or (channels is None and image.shape[0] not in known)):
        image = image.movedim(-1, 0)
    if image.ndim != 3 or image.shape[0] not in known:
        raise wrong_channels(image.shape, num_channels)
    if num_channels == 3 == image.shape[0] - 1:  # transparency, on white
        white = 1.0 if image.is_floating_point() else 255.0
        alpha = image[3:] / white
        blend = image[:3] * alpha + white * (1 - alpha)
        return blend if image.is_floating_point() else blend.round().to(torch.uint8)
    return image.expand(num_channels, -1, -1)


def channels_last(image: np.ndarray, num_channels: int, channels: str | None = None) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W, C); where either could be meant, channels are last."""
    known = known_counts(num_channels)
    if image.ndim == 2:
        return image[..., None]
    if image.ndim != 3:
        raise wrong_channels(image.shape, num_channels)
    first = channels == "channels_first" or (channels is None and image.shape[2] not in known)
    image = np.moveaxis(image, 0, 2) if first else image
    if image.shape[2] not in known:
        raise wrong_channels(image.shape if not first or channels else np.moveaxis(image, 2, 0).shape, num_channels)
    return image


def known_counts(num_channels: int) -> tuple[int, ...]:
    """Channels that can be told: for RGB grey and transparency too."""
    return (1, 3, 4) if num_channels == 3 else (num_channels,)


def wrong_channels(shape: tuple[int, ...], num_channels: int) -> ValueError:
    return ValueError(
        f"an image of shape {tuple(shape)} has not the {num_channels} channels that are expected; choose the channels, "
        "or train a model of as many (num_channels)."
    )


def checked(image: np.ndarray, num_channels: int) -> np.ndarray:
    """The array itself, which has to have `num_channels`."""
    if image.ndim != 3 or image.shape[2] != num_channels:
        raise wrong_channels(image.shape, num_channels)
    return image


def bands(image: Image.Image) -> np.ndarray:
    """(H, W, C) of an upright image with its own channels: transparency is one of them, a palette becomes colours."""
    upright = ImageOps.exif_transpose(image)
    if not upright.mode.startswith("I;16") and upright.mode not in BANDS:
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    array = np.asarray(upright)
    array = array.astype(np.uint16) if is_16_bit(image) else array
    return array if array.ndim == 3 else array[..., None]


def as_array(image: np.ndarray, num_channels: int) -> np.ndarray:
    """(H, W, C) as uint8, or as float32 in [0, 1] where it has more bits."""
    image = checked(image, num_channels)
    if image.dtype.kind == "f":
        check_unit(image.min(), image.max())
        return image.astype(np.float32)
    if is_uint16(image):
        warn_of_few_bits(image)
        return image.astype(np.float32) / 65535
    return np.require(as_uint8(image), requirements="W")


def check_unit(low: float, high: float) -> None:
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(
            f"an image of floats holds {low:g} to {high:g}, expected 0 to 1; scale it, or save it as integers (or, for "
            "values that are as the model wants them, call the processor with do_rescale=False)."
        )


def is_uint16(image: np.ndarray) -> bool:
    return image.dtype.kind == "u" and image.dtype.itemsize == 2  # in either order of the bytes


def warn_of_few_bits(image: np.ndarray) -> None:
    """Cameras and scanners write 10 or 12 bits into 16."""
    if 255 < image.max() < 4096:
        logger.warning_once(
            "an image of 16 bits holds numbers below 4096 only, of 65535, and comes out nearly black; if it has 12 "
            "bits, multiply it by 16 first."
        )


def is_16_bit(image: Image.Image) -> bool:
    """Of grey; older Pillow opens such PNG files as 32 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def as_uint8(image: np.ndarray) -> np.ndarray:
    """Numbers as 0 to 255: 16 bits become 8, as bits and floats do; other integers have to be 0 to 255 already."""
    if image.dtype.kind == "f":
        check_unit(image.min(), image.max())
        return (255 * image.astype(np.float32)).round().astype(np.uint8)
    if image.dtype == np.bool_:
        return image * np.uint8(255)
    if is_uint16(image):
        warn_of_few_bits(image)
        return (image // 256).astype(np.uint8)
    if image.dtype.kind not in "iu" or image.min() < 0 or image.max() > 255:
        raise ValueError(
            f"an image of {image.dtype} holds {image.min()} to {image.max()}, expected 0 to 255; save 16 bits as "
            "uint16."
        )
    return image.astype(np.uint8, copy=False)


def as_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: upright, 16 bits and floats as 8 bits (PIL clips them), transparency on white.

    Raises:
        ValueError: a TIFF with a fourth channel that is not opaque: libraries call any fourth one transparency.
    """
    if image.format == "TIFF" and image.tag_v2.get(SAMPLES_PER_PIXEL, 1) > len(image.getbands()):  # type: ignore[attr-defined]
        raise extra_channels(image.tag_v2[SAMPLES_PER_PIXEL])  # type: ignore[attr-defined]
    grey = image.mode.startswith("I;16") or image.mode in ("I", "F")
    upright = Image.fromarray(as_uint8(bands(image)[..., 0])) if grey else ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    upright = upright.convert("RGBA")
    if image.format == "TIFF" and upright.getchannel(3).getextrema() != (255, 255):
        raise extra_channels(len(image.getbands()))
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def as_label_map(label_map: Any) -> np.ndarray:
    """A label map (H, W) of int64; of a palette image the indices are the labels.

    Of three dimensions the first is the channel where it is 1, otherwise the last.
    """
    if isinstance(label_map, str | os.PathLike):
        label_map = Image.open(label_map)
    if isinstance(label_map, Image.Image):
        label_map = ImageOps.exif_transpose(label_map)
    labels = np.asarray(label_map)
    if labels.ndim == 3 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels[0] if labels.shape[0] == 1 else labels[..., 0]  # (H, W)
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
        raise ValueError(
            f"a label map must hold one integer label per pixel (H, W), got shape {labels.shape} of {labels.dtype}; "
            "save colour-coded masks as single-channel label indices first."
        )
    return labels.astype(np.int64)


def check_sizes(images: list[Any], label_maps: list[np.ndarray]) -> None:
    if len(images) != len(label_maps):
        raise ValueError(f"got {len(label_maps)} label maps for {len(images)} images; pass one for each.")
    for index, (image, labels) in enumerate(zip(images, label_maps, strict=True)):
        height, width = image_size(image)
        if labels.shape != (height, width):
            raise ValueError(
                f"image {index} is {height}x{width} pixels (height x width), its label map {labels.shape[0]}x"
                f"{labels.shape[1]}; they must be the same picture."
            )
