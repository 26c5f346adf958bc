"""What the configurations of detectors with proposals share: the region proposal network, pooling and mask heads."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_anchors import AnchorDetectorConfig


@strict
class TwoStageConfig(AnchorDetectorConfig):
    """The fields of `MaskRcnnConfig` that do not depend on how often boxes are corrected."""

    positive_numbers: ClassVar[tuple[str, ...]] = (
        *AnchorDetectorConfig.positive_numbers,
        "rpn_samples",
        "rpn_candidates",
        "rpn_training_candidates",
        "max_proposals",
        "box_samples",
        "box_pool_size",
        "box_hidden_size",
        "mask_pool_size",
        "num_mask_convs",
    )
    shares: ClassVar[tuple[str, ...]] = (
        *AnchorDetectorConfig.shares,
        "rpn_positive_iou",
        "rpn_negative_iou",
        "rpn_nms_threshold",
    )
    bounds: ClassVar[tuple[tuple[str, str], ...]] = (("rpn_negative_iou", "rpn_positive_iou"),)

    with_masks: bool = True
    rpn_positive_iou: float | int = 0.7
    rpn_negative_iou: float | int = 0.3
    rpn_samples: int = 256
    rpn_nms_threshold: float | int = 0.7
    rpn_candidates: int = 1000
    rpn_training_candidates: int = 2000
    max_proposals: int = 1000
    box_samples: int = 512
    box_pool_size: int = 7
    box_hidden_size: int = 1024
    mask_pool_size: int = 14
    num_mask_convs: int = 4

    def validate_two_stage(self) -> None:
        """A stride for each of the backbone's maps and the pooled one."""
        if len(self.strides) != self.backbone_levels + 1:
            raise ValueError(
                f"`strides` has {len(self.strides)} values, expected {self.backbone_levels} for the backbone's maps "
                f"and one more: {list(self.strides)}."
            )
