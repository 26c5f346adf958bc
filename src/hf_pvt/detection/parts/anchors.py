"""Anchors: the boxes that a detector corrects (Faster R-CNN, arXiv 1506.01497, section 3.1.1).

Centres lie at (column * stride, row * stride), without half a pixel, and nothing is rounded, as in the published
detectors; torchvision rounds.

Legend: see the folder's `__init__`; P anchors per place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

Size = tuple[int, int]


def base_anchors(
    stride: int, scales: Sequence[float], ratios: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The anchors (P, 4) around the origin: for each ratio height / width, one of each side `stride * scale`."""
    root = torch.tensor(ratios, dtype=dtype).sqrt()[:, None]
    sides = torch.tensor(scales, dtype=dtype)[None]
    widths = (stride * (1 / root) * sides).flatten()  # (P,), ratio outer, scale inner
    heights = (stride * root * sides).flatten()
    return 0.5 * torch.stack((-widths, -heights, widths, heights), dim=1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept serves training as well
def grid_anchors(
    sizes: tuple[Size, ...],
    strides: tuple[int, ...],
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """The anchors (H*W*P, 4) of each level's map (H, W), in the order row, column, anchor. Not to be written to.

    The stride is the nominal one even where a map's size is not the image's divided by it.
    """
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows = torch.arange(height, dtype=dtype) * stride
        columns = torch.arange(width, dtype=dtype) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack((x, y, x, y), dim=-1)[:, :, None]  # (H, W, 1, 4)
        levels.append((places + base_anchors(stride, scales, ratios, dtype)).view(-1, 4).to(device))  # (H*W*P, 4)
    return tuple(levels)


@dataclass(frozen=True)
class Anchors:
    """The anchors of a detector's levels."""

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    size_divisor: int

    @classmethod
    def of(cls, config: Any) -> Self:
        strides, scales, ratios = (
            tuple(values) for values in (config.strides, config.anchor_scales, config.anchor_ratios)
        )
        return cls(strides, scales, ratios, config.size_divisor)

    def __call__(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The anchors (H_i*W_i*P, 4) of each level's map (B, D, H_i, W_i)."""
        dtype = torch.promote_types(levels[0].dtype, torch.float32)
        return grid_anchors(_sizes(levels), self.strides, self.scales, self.ratios, dtype, levels[0].device)

    def inside(self, levels: Sequence[Tensor], image: Size) -> Tensor:
        """Which of all anchors (A,) count in training: those of the image padded to a multiple of `size_divisor`.

        What a batch has beyond belongs to larger images.
        """
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in image)
        per_place, device, inside = len(self.scales) * len(self.ratios), levels[0].device, []
        for (rows, columns), stride in zip(_sizes(levels), self.strides, strict=True):
            row = torch.arange(rows, device=device) * stride < height
            column = torch.arange(columns, device=device) * stride < width
            places = (row[:, None] & column)[..., None]  # (H, W, 1)
            inside.append(places.expand(-1, -1, per_place).flatten())  # (H*W*P,)
        return torch.cat(inside)


def _sizes(levels: Sequence[Tensor]) -> tuple[Size, ...]:
    return tuple((level.shape[-2], level.shape[-1]) for level in levels)


def per_anchor(output: Tensor, values: int) -> Tensor:
    """The map (B, P*V, H, W) of a convolution as V values of each anchor (B, H*W*P, V)."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, values)
