"""The second stage's box head (Fast R-CNN, arXiv 1504.08083, section 2): what a proposal is, and where exactly.

Legend: see the folder's `__init__`; here n proposals, C channels, S the side of a pooled map, K + 1 with background.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import initialization as init

from ..drawn_layers import DrawnLinear


class BoxHead(nn.Module):
    """Two linears, then the label (the last one is background) and the deltas of each label.

    Drawn as meant. As run, MMDetection 2.13 draws Xavier normal over all linears, the last two as well.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        labels, hidden = config.num_labels or 0, config.box_hidden_size
        pooled = config.fpn_hidden_size * config.box_pool_size**2
        shared = partial(DrawnLinear, out_features=hidden, draw=init.xavier_normal_)
        self.shared_fcs = nn.ModuleList((shared(pooled), shared(hidden)))
        std = config.initializer_range
        self.fc_cls = DrawnLinear(hidden, labels + 1, draw=partial(init.normal_, std=std))
        self.fc_reg = DrawnLinear(hidden, labels * 4, draw=partial(init.normal_, std=std / 10))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled maps (n, C, S, S) -> logits (n, K + 1) and deltas (n, K, 4)."""
        hidden = pooled.flatten(1)  # (n, C*S*S)
        for linear in self.shared_fcs:
            hidden = linear(hidden).relu_()
        return self.fc_cls(hidden), self.fc_reg(hidden).unflatten(1, (-1, 4))
