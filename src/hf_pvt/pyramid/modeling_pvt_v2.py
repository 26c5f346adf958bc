"""PVTv2 (arXiv 2106.13797): overlapping patches, depthwise convolutions in the feed-forward, no position embedding.

Legend: see `layers`.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_pvt_v2 import PvtV2Config
from .feed_forward import ConvFeedForward
from .layers import (
    Grid,
    OverlapPatchEmbedding,
    PatchEmbedding,
    ReducedAttention,
    SpatialReductionAttention,
    adaptive_average_pool,
    map_to_tokens,
    tokens_to_map,
)
from .modeling_pyramid import (
    PyramidBackbone,
    PyramidForImageClassification,
    PyramidForSemanticSegmentation,
    PyramidModel,
    PyramidPreTrainedModel,
)
from .pyramid import PyramidStage


class PooledAttention(ReducedAttention):
    """PVTv2's "linear spatial reduction": keys and values from a 7x7 average pool, whatever the image's size."""

    pool_size = 7

    def __init__(self, config: PvtV2Config, stage: int) -> None:
        super().__init__(config, stage)
        dim = config.hidden_sizes[stage]
        self.spatial_reduction = nn.Conv2d(dim, dim, kernel_size=1)
        self.layer_norm = nn.LayerNorm(dim, eps=config.reduction_layer_norm_eps)

    def forward(self, tokens: Tensor, grid: Grid, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        pooled = adaptive_average_pool(tokens_to_map(tokens, grid), (self.pool_size, self.pool_size))
        reduced = F.gelu(self.layer_norm(map_to_tokens(self.spatial_reduction(pooled))))  # (B, 49, C)
        return self.attend(tokens, reduced, **kwargs)


class PvtV2Stage(PyramidStage):
    """Overlapping patches, convolutional feed-forward, a norm after every stage."""

    def build_patch_embedding(self, config: PvtV2Config, stage: int) -> PatchEmbedding:
        return OverlapPatchEmbedding(config, stage)

    def build_attention(self, config: PvtV2Config, stage: int) -> ReducedAttention:
        if config.linear_attention:
            return PooledAttention(config, stage)
        return SpatialReductionAttention(config, stage, config.sr_ratios[stage])

    def build_feed_forward(self, config: PvtV2Config, stage: int) -> ConvFeedForward:
        dim = config.hidden_sizes[stage]
        return ConvFeedForward(
            dim,
            dim * config.mlp_ratios[stage],
            inner_activation=nn.ReLU() if config.linear_attention else nn.Identity(),
            activation=ACT2FN[config.hidden_act],
            dropout=config.hidden_dropout_prob,
        )

    def build_norm(self, config: PvtV2Config, stage: int) -> nn.Module:
        return nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)


class PvtV2PreTrainedModel(PyramidPreTrainedModel):
    """PVTv2's configuration, stage and initialisation."""

    config: PvtV2Config
    config_class = PvtV2Config
    base_model_prefix = "pvt_v2"
    stage_class = PvtV2Stage

    def draw_convolution(self, convolution: nn.Conv2d) -> None:
        """Normal with variance 2 / fan out, zero biases."""
        fan_out = math.prod(convolution.kernel_size) * convolution.out_channels // convolution.groups
        init.normal_(convolution.weight, std=math.sqrt(2 / fan_out))
        if convolution.bias is not None:
            init.zeros_(convolution.bias)


class PvtV2Model(PvtV2PreTrainedModel, PyramidModel):
    """The bare PVTv2: `last_hidden_state` is the last stage's map (B, C, H/32, W/32)."""


class PvtV2Backbone(PvtV2PreTrainedModel, PyramidBackbone):
    """PVTv2 as a backbone: maps after each stage's norm."""


class PvtV2ForImageClassification(PvtV2PreTrainedModel, PyramidForImageClassification):
    """PVTv2 with a linear classifier on the mean of the last stage's tokens."""

    model_class = PvtV2Model


class PvtV2ForSemanticSegmentation(PvtV2PreTrainedModel, PyramidForSemanticSegmentation):
    """PVTv2 with a Semantic FPN."""

    model_class = PvtV2Model
