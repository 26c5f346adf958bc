"""The skeleton that PVT, PVTv2 and P2T share: Pyramid = 4 x Stage; Stage = patch embedding -> blocks -> norm.

A family overrides what its stages are built of, and nothing else.

Legend: see `layers`. The maps of the four stages are at 1/4, 1/8, 1/16 and 1/32 of the image's size.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..cpu.plain_calls import survey
from .feed_forward import FeedForward
from .layers import DropPath, Grid, PatchEmbedding, ReducedAttention, tokens_to_map


class PyramidBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block on tokens (B, N, C); the unit of gradient checkpointing and of sharding."""

    def __init__(
        self, dim: int, eps: float, attention: ReducedAttention, feed_forward: FeedForward, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(dim, eps=eps)
        self.attention = attention
        self.layer_norm_2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = feed_forward
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: Tensor, grid: Grid, **kwargs: Any) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.layer_norm_1(tokens), grid, **kwargs)[0])
        normed = self.layer_norm_2(tokens)
        if self.mlp.is_banded(normed) and normed is not tokens:  # as without a norm
            return self.mlp.in_bands(normed, grid, onto=tokens)
        return tokens + self.drop_path(self.mlp(normed, grid))


class PyramidStage(nn.Module):
    """Patch embedding -> blocks -> norm: a map (B, C_in, H_in, W_in) becomes a coarser one (B, C, H, W).

    A family's subclass builds the parts from its own configuration.
    """

    def __init__(self, config: Any, stage: int) -> None:
        super().__init__()
        dim, eps = config.hidden_sizes[stage], config.layer_norm_eps
        self.patch_embedding = self.build_patch_embedding(config, stage)
        self.blocks = nn.ModuleList(
            PyramidBlock(
                dim, eps, self.build_attention(config, stage), self.build_feed_forward(config, stage), drop_path_rate
            )
            for drop_path_rate in config.drop_path_rates(stage)
        )
        self.layer_norm = self.build_norm(config, stage)

    def build_patch_embedding(self, config: Any, stage: int) -> PatchEmbedding:
        raise NotImplementedError

    def build_attention(self, config: Any, stage: int) -> ReducedAttention:
        raise NotImplementedError

    def build_feed_forward(self, config: Any, stage: int) -> FeedForward:
        raise NotImplementedError

    def build_norm(self, config: Any, stage: int) -> nn.Module:
        """The norm at the stage's end: none, unless a family has one."""
        return nn.Identity()

    def forward(self, feature_map: Tensor, **kwargs: Any) -> Tensor:
        tokens, grid = self.encode(feature_map, **kwargs)
        return tokens_to_map(self.layer_norm(tokens), grid)  # (B, C, H, W)

    def encode(self, feature_map: Tensor, **kwargs: Any) -> tuple[Tensor, Grid]:
        """Tokens (B, N, C) after the last block, and their grid."""
        tokens, grid = self.patch_embedding(feature_map)
        for block in self.blocks:
            tokens = block(tokens, grid, **kwargs)
        return tokens, grid


class Pyramid(nn.Module):
    """Stages one after another: an image (B, C, H, W) becomes the last stage's map at 1/32 of its size."""

    def __init__(self, stages: Iterable[PyramidStage]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(stages)  # named as in Transformers' PVTv2 checkpoints

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return self.climb(pixel_values, **kwargs)
        with survey(self, pixel_values):
            return self.climb(pixel_values, **kwargs)

    def climb(self, feature_map: Tensor, **kwargs: Any) -> Any:
        """Stage by stage."""
        for stage in self.layers:
            feature_map = stage(feature_map, **kwargs)
        return feature_map
