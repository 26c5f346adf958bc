"""Feature pyramid networks (arXiv 1612.03144, section 3): every map of a pyramid learns what the coarser ones see.

The detectors' have levels coarser than the backbone's maps.

Legend: see `layers`. Level i is the i-th map, the finest first; D is the network's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialized_layers import XavierConv2d


class FeaturePyramid(nn.Module):
    """1x1 convolutions to one width, the top-down path, a 3x3 convolution per level (drawn as MMSegmentation's)."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(XavierConv2d(channels, width, kernel_size=1) for channels in in_channels)
        self.fpn_convs = nn.ModuleList(XavierConv2d(width, width, kernel_size=3, padding=1) for _ in in_channels)

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i), the finest first, become as many of one width (B, D, H_i, W_i)."""
        return [conv(fused) for conv, fused in zip(self.fpn_convs, self.fuse(feature_maps), strict=True)]

    def fuse(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """The top-down path: every level (B, D, H_i, W_i) receives the coarser one, upsampled to nearest."""
        fused = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps, strict=True)]
        for level in range(len(fused) - 1, 0, -1):
            finer = fused[level - 1]
            fused[level - 1] = finer + F.interpolate(fused[level], size=finer.shape[-2:], mode="nearest")
        return fused


class PooledNeck(FeaturePyramid):
    """One level more, every second place of the coarsest one (FPN, arXiv 1612.03144, section 4.1)."""

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        levels = super().forward(feature_maps)
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]


class ConvolvedNeck(FeaturePyramid):
    """Further levels by 3x3 convolutions of stride 2, the first of the backbone's last map (RetinaNet, footnote 2).

    The paper and torchvision put a ReLU before the next one; the published detectors do not.
    """

    def __init__(self, in_channels: Sequence[int], width: int, further: int) -> None:
        super().__init__(in_channels, width)
        self.further_convs = nn.ModuleList(
            XavierConv2d(in_channels[-1] if index == 0 else width, width, kernel_size=3, stride=2, padding=1)
            for index in range(further)
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        return [*super().forward(feature_maps), *further_levels(self.further_convs, feature_maps[-1])]


class ContinuedNeck(FeaturePyramid):
    """Further levels by 3x3 convolutions of stride 2, each of the level before it, the first of the coarsest one."""

    def __init__(self, in_channels: Sequence[int], width: int, further: int) -> None:
        super().__init__(in_channels, width)
        self.further_convs = nn.ModuleList(
            XavierConv2d(width, width, kernel_size=3, stride=2, padding=1) for _ in range(further)
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        levels = super().forward(feature_maps)
        return [*levels, *further_levels(self.further_convs, levels[-1])]


def further_levels(convs: nn.ModuleList, coarsest: Tensor) -> list[Tensor]:
    """What each convolution makes of the level before it."""
    levels = []
    for conv in convs:
        coarsest = strided(conv, coarsest)
        levels.append(coarsest)
    return levels


def strided(conv: Any, level: Tensor) -> Tensor:
    """`conv(level)`; a single place is convolved with stride 1, which gives the same.

    With a stride, PyTorch on a CPU leaves the bfloat16 gradient of the weights that meet nothing but padding unwritten:
    whatever was in that memory, NaN too (seen with 2.14 and its oneDNN).
    """
    learns = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if learns and level.device.type == "cpu" and level.shape[-2:] == (1, 1):
        return F.conv2d(level, conv.weight, conv.bias, padding=1)
    return conv(level)
