"""Images at another size, as the published detection code resizes them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Size = tuple[int, int]


def between_neighbours(image: Any, size: Size) -> Any:
    """OpenCV's INTER_LINEAR, within one level: between the four nearest pixels, however much an image shrinks."""
    pixels = torch.from_numpy(np.array(image))  # (h, w, C)
    scaled = F.interpolate(pixels.movedim(2, 0)[None].float(), size, mode="bilinear", align_corners=False)[0]
    scaled = scaled.movedim(0, 2)  # (H, W, C)
    scaled = scaled if pixels.is_floating_point() else scaled.round().to(pixels.dtype)
    return Image.fromarray(scaled.numpy()) if isinstance(image, Image.Image) else scaled.numpy()
