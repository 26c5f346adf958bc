"""A box as its difference to another one (R-CNN, arXiv 1311.2524, appendix C): deltas dx, dy, dw, dh.

Legend: see the folder's `__init__`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops

# Widths and heights change at most by this factor, on both sides (torchvision: on one).
LARGEST_LOG_RATIO = math.log(1000 / 16)

UNIT_STDS = (1.0, 1.0, 1.0, 1.0)


def encode(reference: Tensor, boxes: Tensor, stds: Sequence[float] = UNIT_STDS) -> Tensor:
    """The deltas (n, 4), divided by `stds`, that lead from the reference boxes (n, 4) to `boxes` (n, 4)."""
    width, height, x, y = _sides_and_centre(reference)
    box_width, box_height, box_x, box_y = _sides_and_centre(boxes)
    deltas = torch.stack(
        ((box_x - x) / width, (box_y - y) / height, (box_width / width).log(), (box_height / height).log()), dim=-1
    )
    return deltas / deltas.new_tensor(stds)


def decode(
    reference: Tensor, deltas: Tensor, stds: Sequence[float] = UNIT_STDS, size: tuple[int, int] | None = None
) -> Tensor:
    """The boxes (..., 4) that deltas (..., 4) make of reference boxes (..., 4), clipped to an image of `size`."""
    width, height, x, y = _sides_and_centre(reference)
    dx, dy, dw, dh = (deltas * deltas.new_tensor(stds)).unbind(-1)
    x, y = x + width * dx, y + height * dy
    width = width * dw.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    height = height * dh.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    boxes = torch.stack((x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height), dim=-1)
    return boxes if size is None else torchvision_ops.clip_boxes_to_image(boxes, size)


def _sides_and_centre(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x2 - x1, y2 - y1, (x1 + x2) * 0.5, (y1 + y2) * 0.5
