"""What the configurations of the dense detectors share."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_anchors import AnchorDetectorConfig


@strict
class DenseDetectorConfig(AnchorDetectorConfig):
    """The fields of detectors in one stage, on the backbone's last three maps."""

    backbone_levels: ClassVar[int] = 3
    positive_numbers: ClassVar[tuple[str, ...]] = (
        *AnchorDetectorConfig.positive_numbers,
        "num_head_convs",
        "candidates_per_level",
    )

    num_head_convs: int = 4
    strides: list[int] | tuple[int, ...] = (8, 16, 32, 64, 128)
    focal_gamma: float | int = 2.0
    candidates_per_level: int = 1000

    def validate_dense_detector(self) -> None:
        """A stride for each of the backbone's maps or more, and a focusing parameter that does not turn the loss."""
        if len(self.strides) < self.backbone_levels:
            raise ValueError(
                f"`strides` has {len(self.strides)} values, expected {self.backbone_levels} for the backbone's maps or "
                f"more: {list(self.strides)}."
            )
        if not 0 <= self.focal_gamma < math.inf:
            raise ValueError(f"`focal_gamma` must not be negative, got {self.focal_gamma}.")


@strict
class AdaptiveDetectorConfig(DenseDetectorConfig):
    """The fields of ATSS and of those that choose their positive anchors as it does: one square at each place."""

    positive_numbers: ClassVar[tuple[str, ...]] = (
        *DenseDetectorConfig.positive_numbers,
        "num_groups",
        "assigner_candidates",
    )

    num_groups: int = 32
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (1,)
    assigner_candidates: int = 9
    nms_threshold: float | int = 0.6

    def validate_adaptive_detector(self) -> None:
        """One anchor at each place, a square, and channels that fall into groups."""
        if len(self.anchor_scales) != 1 or list(self.anchor_ratios) != [1]:
            raise ValueError(
                f"{type(self).__name__} has one square anchor at each place, got `anchor_scales` "
                f"{list(self.anchor_scales)} and `anchor_ratios` {list(self.anchor_ratios)}."
            )
        if self.fpn_hidden_size % self.num_groups or self.fpn_hidden_size == self.num_groups:
            raise ValueError(  # a single channel at a single place would have nothing to be normalised by
                "`fpn_hidden_size` must be twice `num_groups` or another multiple of it, got "
                f"{self.fpn_hidden_size} and {self.num_groups}."
            )
