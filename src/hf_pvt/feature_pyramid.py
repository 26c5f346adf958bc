"""Feature pyramid network (arXiv 1612.03144, section 3): every map of a pyramid learns what the coarser ones see.

Legend: see `layers`. Level i is the i-th map, the finest first; D is the network's width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .drawn_layers import XavierConv2d


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
