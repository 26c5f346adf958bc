"""The second stage's box head (Fast R-CNN, arXiv 1504.08083, section 2): what a proposal is, and where exactly.

Legend: see the folder's `__init__`; here n proposals, C channels, S the side of a pooled map, K + 1 with background.
"""

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import initialization as init

from ...heads.initialized_layers import DrawnLinear
from ...heads.synchronized_batch_norm import ConvNormReLU


class BoxHead(nn.Module):
    """Two linears, then the label (the last one is background) and the deltas of each label.

    Drawn as meant. As run, MMDetection 2.13 draws Xavier normal over all linears, the last two as well.
    """

    linears: ClassVar[int] = 2

    def __init__(self, config: Any) -> None:
        super().__init__()
        labels, hidden = config.num_labels or 0, config.box_hidden_size
        widths = (config.fpn_hidden_size * config.box_pool_size**2, *[hidden] * self.linears)
        self.shared_fcs = nn.ModuleList(
            DrawnLinear(width, hidden, draw=init.xavier_normal_) for width in widths[: self.linears]
        )
        self.fc_cls = self.build_last(hidden, labels + 1, config.initializer_range)
        self.fc_reg = self.build_last(hidden, labels * 4, config.initializer_range / 10)

    def build_last(self, inputs: int, outputs: int, std: float) -> nn.Module:
        return DrawnLinear(inputs, outputs, draw=partial(init.normal_, std=std))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps (n, C, S, S) -> logits (n, K + 1) and deltas (n, K, 4)."""
        hidden = pooled.flatten(1)  # (n, C*S*S)
        for linear in self.shared_fcs:
            hidden = linear(hidden).relu_()
        return self.fc_cls(hidden), self.fc_reg(hidden).unflatten(1, (-1, 4))


class ConvolvedBoxHead(BoxHead):
    """3x3 convolutions with batch norm in front of a single linear (after arXiv 1803.08494, section 4.2).

    Drawn as run by MMDetection 2.13 for the published weights: Xavier normal over all linears.
    """

    linears = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.fpn_hidden_size
        self.shared_convs = nn.ModuleList(ConvNormReLU(width, width) for _ in range(config.num_box_convs))

    def build_last(self, inputs: int, outputs: int, std: float) -> nn.Module:
        return DrawnLinear(inputs, outputs, draw=init.xavier_normal_)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.shared_convs:
            pooled = conv(pooled)  # (n, C, S, S)
        return super().forward(pooled)
