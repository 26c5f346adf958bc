"""The second stage's box head (Fast R-CNN, arXiv 1504.08083, section 2): what a proposal is, and where exactly.

Legend: see the folder's `__init__`; here n proposals, C channels, S the side of a pooled map, K + 1 with background.
"""

from typing import Any

from torch import Tensor, nn
from transformers import initialization as init

from .modeling_detector import Head, draw_normal


class BoxHead(Head):
    """Two linears, then the label (the last one is background) and the deltas of each label."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        labels, hidden = config.num_labels or 0, config.box_hidden_size
        pooled = config.fpn_hidden_size * config.box_pool_size**2
        self.shared_fcs = nn.ModuleList((nn.Linear(pooled, hidden), nn.Linear(hidden, hidden)))
        self.fc_cls = nn.Linear(hidden, labels + 1)
        self.fc_reg = nn.Linear(hidden, labels * 4)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps (n, C, S, S) -> logits (n, K + 1) and deltas (n, K, 4)."""
        hidden = pooled.flatten(1)  # (n, C*S*S)
        for linear in self.shared_fcs:
            hidden = linear(hidden).relu_()
        return self.fc_cls(hidden), self.fc_reg(hidden).unflatten(1, (-1, 4))

    def initialise(self, config: Any) -> None:
        """As meant. As run, MMDetection 2.13 draws Xavier normal over all linears, the last two as well."""
        linear: Any
        for linear in self.shared_fcs:
            init.xavier_normal_(linear.weight)
            init.zeros_(linear.bias)
        draw_normal(self.fc_cls, config.initializer_range)
        draw_normal(self.fc_reg, config.initializer_range / 10)
