"""A stage of Sparse R-CNN (arXiv 2011.12450, section 3.3): what a proposal is, and where, asked by its own feature.

Legend: see the folder's `__init__`; here P proposals of an image, D the width, H the width inside the dynamic
convolution, S the side of a pooled map.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...heads.initialized_layers import RARE_AT_FIRST, DrawnLayer, DrawnLinear


class ProposalAttention(nn.Module):
    """Attention between the proposals' features; queries, keys and values are one matrix, and are drawn as one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = DrawnLinear(width, 3 * width, draw=init.xavier_uniform_)
        self.out_proj = DrawnLinear(width, width, draw=init.xavier_uniform_)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, P, D) -> (B, P, D)."""
        of_heads = self.in_proj(features).unflatten(2, (3, self.heads, -1))  # (B, P, 3, heads, D / heads)
        attended = F.scaled_dot_product_attention(*of_heads.permute(2, 0, 3, 1, 4))  # (B, heads, P, D / heads)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class DrawnLayerNorm(DrawnLayer, nn.LayerNorm):
    """A norm that draws itself."""


LayerNorm = partial(DrawnLayerNorm, draw=init.ones_)
# As published: Xavier's weights, and the biases that PyTorch draws.
XavierLinear = partial(DrawnLinear, draw=init.xavier_uniform_, first_bias=None)


class DynamicConvolution(nn.Module):
    """Two 1x1 convolutions of a proposal's map with weights that its own feature makes ("dynamic instance interactive
    head")."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.shapes = (width, hidden), (hidden, width)
        self.dynamic_layer = XavierLinear(width, 2 * width * hidden)
        self.norm_in, self.norm_out = LayerNorm(hidden), LayerNorm(width)
        self.fc_layer, self.fc_norm = XavierLinear(width * side**2, width), LayerNorm(width)

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        """Features (n, D) and pooled maps (n, D, S, S) of all images' proposals -> (n, D)."""
        weights = self.dynamic_layer(features).chunk(2, dim=1)  # 2 x (n, D*H)
        hidden = pooled.flatten(2).transpose(1, 2)  # (n, S*S, D)
        for weight, shape, norm in zip(weights, self.shapes, (self.norm_in, self.norm_out), strict=True):
            hidden = norm(torch.bmm(hidden, weight.unflatten(1, shape))).relu()  # (n, S*S, H), then (n, S*S, D)
        return self.fc_norm(self.fc_layer(hidden.flatten(1))).relu()


class DynamicHead(nn.Module):
    """One stage: attention between the proposals, the dynamic convolution, a feed-forward; then labels and deltas."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.fpn_hidden_size
        self.attention = ProposalAttention(width, config.proposal_attention_heads)
        self.attention_norm = LayerNorm(width)
        self.instance_interactive_conv = DynamicConvolution(width, config.dynamic_hidden_size, config.box_pool_size)
        self.instance_interactive_conv_norm = LayerNorm(width)
        self.ffn = nn.Sequential(
            XavierLinear(width, config.feed_forward_size), nn.ReLU(), XavierLinear(config.feed_forward_size, width)
        )
        self.ffn_norm = LayerNorm(width)
        self.cls_fcs, self.reg_fcs = branch(width, config.num_cls_linears), branch(width, config.num_reg_linears)
        self.fc_cls = DrawnLinear(width, config.num_labels or 0, draw=init.xavier_uniform_, first_bias=RARE_AT_FIRST)
        self.fc_reg = XavierLinear(width, 4)

    def forward(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, P, D) and pooled maps (B*P, D, S, S) -> logits (B, P, K), deltas (B, P, 4), features."""
        features = self.attention_norm(features + self.attention(features))
        answers = self.instance_interactive_conv(features.flatten(0, 1), pooled).view_as(features)
        features = self.instance_interactive_conv_norm(features + answers)
        features = self.ffn_norm(features + self.ffn(features))
        return self.fc_cls(self.cls_fcs(features)), self.fc_reg(self.reg_fcs(features)), features


def branch(width: int, linears: int) -> nn.Sequential:
    """Linears without a bias, a norm and a ReLU after each."""
    layers = [(XavierLinear(width, width, bias=False), LayerNorm(width), nn.ReLU()) for _ in range(linears)]
    return nn.Sequential(*(layer for block in layers for layer in block))
