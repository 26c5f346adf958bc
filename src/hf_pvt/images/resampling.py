"""Images at another size: by Pillow, or as the published segmentation code resizes them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.image_utils import torch_pil_interpolation_mapping

Size = tuple[int, int]


def resized(image: Any, size: Size, resample: Any = Image.Resampling.BILINEAR, published: bool = False) -> Any:
    """A Pillow image, or an array (H, W, C) of uint8 or floats, as the same at `size` (height, width).

    Args:
        resample: Pillow's filter, or torchvision's name of it, which is widened where an image shrinks (antialiasing).
        published: `between_neighbours` instead.
    """
    if published:
        return between_neighbours(image, size)
    resample = torch_pil_interpolation_mapping.get(resample, resample)
    if isinstance(image, Image.Image):
        return image.resize(size[::-1], resample)
    # Channel by channel: Pillow weights the colours of four by the last one, which it takes for transparency.
    channels = (Image.fromarray(np.ascontiguousarray(image[..., index])) for index in range(image.shape[2]))
    return np.stack([np.asarray(channel.resize(size[::-1], resample)) for channel in channels], axis=2)  # (H, W, C)


def between_neighbours(image: Any, size: Size) -> Any:
    """OpenCV's INTER_LINEAR, within one level: between the four nearest pixels, however much an image shrinks."""
    pixels = torch.from_numpy(np.array(image))  # (h, w, C)
    scaled = F.interpolate(pixels.movedim(2, 0)[None].float(), size, mode="bilinear", align_corners=False)[0]
    scaled = scaled.movedim(0, 2)  # (H, W, C)
    scaled = scaled if pixels.is_floating_point() else scaled.round().to(pixels.dtype)
    return Image.fromarray(scaled.numpy()) if isinstance(image, Image.Image) else scaled.numpy()
