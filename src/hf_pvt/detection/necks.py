"""Feature pyramid networks with levels coarser than the backbone's maps.

Legend: see the folder's `__init__`; D the neck's width.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..drawn_layers import XavierConv2d
from ..feature_pyramid import FeaturePyramid


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
        levels, coarsest = super().forward(feature_maps), feature_maps[-1]
        for conv in self.further_convs:
            coarsest = conv(coarsest)
            levels.append(coarsest)
        return levels
