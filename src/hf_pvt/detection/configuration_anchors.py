"""What the configurations of detectors with anchors share: the anchors, the two thresholds of what is kept."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import DetectorConfig


@strict
class AnchorDetectorConfig(DetectorConfig):
    """The fields of a detector that corrects anchors and suppresses what overlaps."""

    anchor_scales: list[float | int] | tuple[float | int, ...] = (8,)
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1, 2)
    score_threshold: float | int = 0.05
    nms_threshold: float | int = 0.5
    initializer_range: float = 0.01

    positive_numbers: ClassVar[tuple[str, ...]] = (*DetectorConfig.positive_numbers, "initializer_range")
    positive_lists: ClassVar[tuple[str, ...]] = (*DetectorConfig.positive_lists, "anchor_scales", "anchor_ratios")
    shares: ClassVar[tuple[str, ...]] = (*DetectorConfig.shares, "score_threshold", "nms_threshold")

    @property
    def anchors_per_place(self) -> int:
        return len(self.anchor_scales) * len(self.anchor_ratios)
