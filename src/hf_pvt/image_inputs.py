"""What people hand to a segmenter's image processor, as what it works on: RGB images and label maps (H, W)."""

import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import get_image_size, load_image


def as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, list | tuple) else [images]


def readable(image: Any) -> Any:
    """A file or URL, PIL image, or integer array with the channels last as an RGB PIL image; others as they are."""
    if isinstance(image, str | os.PathLike):
        image = Image.open(image) if os.path.isfile(image) else load_image(str(image))
    if isinstance(image, np.ndarray) and image.dtype.kind in "biu":
        image = as_uint8(image)
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        if image.ndim == 2 or image.ndim == 3 and image.shape[-1] in (3, 4):
            image = Image.fromarray(image)
    return as_rgb(image) if isinstance(image, Image.Image) else image


def as_uint8(image: np.ndarray) -> np.ndarray:
    """Integers as 0 to 255: 16 bits become 8, as bits do; of other types they have to be 0 to 255 already."""
    if image.dtype == np.bool_:
        return image * np.uint8(255)
    if image.dtype == np.uint16:
        return (image // 256).astype(np.uint8)
    if image.dtype != np.uint8 and (image.min() < 0 or image.max() > 255):
        raise ValueError(
            f"an image array of {image.dtype} holds {image.min()} to {image.max()}, expected 0 to 255; save 16 bits "
            "as uint16."
        )
    return image.astype(np.uint8, copy=False)


def as_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: upright, 16 bits as 8 (PIL clips them), transparency on white (PIL drops it)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray(as_uint8(np.asarray(image).clip(0, 65535).astype(np.uint16)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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
        height, width = image.size[::-1] if isinstance(image, Image.Image) else get_image_size(np.asarray(image))
        if labels.shape != (height, width):
            raise ValueError(
                f"image {index} is {height}x{width} pixels (height x width), its label map {labels.shape[0]}x"
                f"{labels.shape[1]}; they must be the same picture."
            )
