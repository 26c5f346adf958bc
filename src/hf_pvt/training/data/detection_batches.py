"""Images of different sizes, with their objects, as one batch.

B images; (H, W) the largest sizes, rounded up; (h, w) an image's own; n its objects.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .samples import Sample


def padded_batch(samples: list[Sample], size_divisor: int) -> Sample:
    """`pixel_values` (B, C, H, W) with zeros at the right and at the bottom, `pixel_mask` (B, H, W), 1 on an image, and
    lists of everything else; masks are padded as their images. A sample that has padding says so in its `pixel_mask`.
    """
    sides = [sample["pixel_values"].shape[1:] for sample in samples]
    size = tuple(-(-max(side) // size_divisor) * size_divisor for side in zip(*sides, strict=True))
    fill = partial(filled_up, size=size)
    shown = [
        sample.get("pixel_mask", torch.ones(side, dtype=torch.int64))
        for sample, side in zip(samples, sides, strict=True)
    ]
    batch: Sample = {name: [sample[name] for sample in samples] for name in samples[0] if name != "pixel_values"}
    batch["pixel_values"] = torch.stack([fill(sample["pixel_values"]) for sample in samples])
    batch["pixel_mask"] = torch.stack([fill(mask) for mask in shown])
    if "labels" in batch:
        batch["labels"] = [_with_masks(target, fill) for target in batch["labels"]]
    if "counted" in batch:
        batch["counted"] = torch.tensor(batch["counted"])
    return batch


def filled_up(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """(..., h, w) -> (..., H, W)."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, size[1] - width, 0, size[0] - height))


def _with_masks(target: dict[str, Tensor], fill: Any) -> dict[str, Tensor]:
    return target | ({"masks": fill(target["masks"])} if "masks" in target else {})
