"""What ATSS (arXiv 1912.02424) and GFL (arXiv 2006.04388) share: levels, towers, and which anchors are positive.

Legend: see the folder's `__init__`; D the neck's width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..heads.feature_pyramid import ContinuedNeck
from ..heads.initialized_layers import RARE_AT_FIRST, Drawn, DrawnConv2d, DrawnGroupNorm
from .configuration_detector import AdaptiveDetectorConfig
from .modeling_dense_detector import DenseDetector, Matched
from .parts.anchors import per_anchor
from .parts.atss_assigner import AtssAssigner


class NormedConv(nn.Module):
    """A 3x3 convolution, a norm over groups of channels, and a ReLU."""

    def __init__(self, config: AdaptiveDetectorConfig) -> None:
        super().__init__()
        width, draw = config.fpn_hidden_size, partial(init.normal_, std=config.initializer_range)
        self.conv = DrawnConv2d(width, width, kernel_size=3, padding=1, bias=False, draw=draw)
        self.group_norm = DrawnGroupNorm(config.num_groups, width, draw=init.ones_)

    def forward(self, level: Tensor) -> Tensor:
        return self.group_norm(self.conv(level)).relu_()


class Scale(Drawn):
    """A learned factor, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.ones_(self.scale)

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale


class AdaptiveHead(nn.Module):
    """Two towers, shared by the levels, whose boxes are scaled for each: one for the labels, one for the boxes.

    Drawn normal, as RetinaNet's.
    """

    def __init__(self, config: AdaptiveDetectorConfig) -> None:
        super().__init__()
        self.cls_convs = nn.Sequential(*(NormedConv(config) for _ in range(config.num_head_convs)))
        self.reg_convs = nn.Sequential(*(NormedConv(config) for _ in range(config.num_head_convs)))
        self.scales = nn.ModuleList(Scale() for _ in config.strides)

    def scaled(self, branch: nn.Module, towers: Sequence[Tensor], values: int) -> Tensor:
        """What a branch says of all levels' (B, D, H_i, W_i) anchors (B, A, values), in each level's scale."""
        levels = [scale(branch(tower)) for scale, tower in zip(self.scales, towers, strict=True)]
        return every_anchor(levels, values)


def branch(config: AdaptiveDetectorConfig, outputs: int, **first: Any) -> DrawnConv2d:
    """The convolution at the end of a tower."""
    draw = partial(init.normal_, std=config.initializer_range)
    return DrawnConv2d(config.fpn_hidden_size, outputs, kernel_size=3, padding=1, draw=draw, **first)


def label_branch(config: AdaptiveDetectorConfig) -> DrawnConv2d:
    """The one of the labels, which are unlikely at first."""
    return branch(config, config.num_labels or 0, first_bias=RARE_AT_FIRST)


def every_anchor(levels: Sequence[Tensor], values: int) -> Tensor:
    """Maps (B, V, H_i, W_i) of all levels as (B, A, V)."""
    return torch.cat([per_anchor(level, values) for level in levels], dim=1)


class AdaptiveDetector(DenseDetector):
    """The neck, and the assigner."""

    config: AdaptiveDetectorConfig

    def build_neck(self, channels: Sequence[int]) -> ContinuedNeck:
        return ContinuedNeck(channels, self.config.fpn_hidden_size, further=len(self.config.strides) - len(channels))

    def assign(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return AtssAssigner(self.config.assigner_candidates)(anchors, boxes)


def positives_of(batch: Sequence[Matched]) -> int:
    """What the loss of the labels is divided by: an image without a positive anchor counts as one, as published."""
    return sum(max(len(image.positive), 1) for image in batch)
