"""Configuration of Cascade Mask R-CNN and, without masks, Cascade R-CNN (arXiv 1906.09756)."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import TwoStageConfig


@strict
class CascadeMaskRcnnConfig(TwoStageConfig):
    r"""
    Configuration of a Cascade Mask R-CNN, `model_type` "cascade_mask_rcnn", on any backbone; the defaults are those of
    [org/cascade-mask-rcnn-pvt-v2-b2](https://huggingface.co/org/cascade-mask-rcnn-pvt-v2-b2) but for the backbone and
    the number of labels.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVTv2-B0's):
            Configuration of the backbone, whose last four maps are taken.
        with_masks (`bool`, *optional*, defaults to `True`):
            Whether there are mask heads; without them this is Cascade R-CNN.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Width of the feature pyramid network and of the convolutions in the heads.
        strides (`list[int]`, *optional*, defaults to `[4, 8, 16, 32, 64]`):
            Pixels from one place of a level's map to the next; the last level, pooled, is for proposals alone.
        anchor_scales (`list[float]`, *optional*, defaults to `[8]`):
            Sides of a place's anchors, in strides.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1, 2]`):
            Height / width of a place's anchors.
        rpn_positive_iou (`float`, *optional*, defaults to 0.7):
            An anchor that overlaps a box by so much learns it.
        rpn_negative_iou (`float`, *optional*, defaults to 0.3):
            An anchor that overlaps no box by so much is background; a box takes its best anchor from here on.
        rpn_samples (`int`, *optional*, defaults to 256):
            Anchors of an image in the loss, at most half of them positive.
        rpn_smooth_l1_beta (`float`, *optional*, defaults to 1 / 9):
            Below this difference of a delta, its loss is quadratic.
        rpn_nms_threshold (`float`, *optional*, defaults to 0.7):
            Of two proposals of a level that overlap by more, the better one stays.
        rpn_candidates (`int`, *optional*, defaults to 1000):
            Anchors of each level that may become proposals.
        rpn_training_candidates (`int`, *optional*, defaults to 2000):
            The same for the loss.
        max_proposals (`int`, *optional*, defaults to 1000):
            Most proposals in an image.
        max_training_proposals (`int`, *optional*, defaults to 2000):
            The same for the loss.
        stage_positive_ious (`list[float]`, *optional*, defaults to `[0.5, 0.6, 0.7]`):
            A box that overlaps an object by so much learns it in this stage; others are background. As many as stages.
        stage_box_stds (`list[list[float]]`, *optional*):
            What each stage's deltas are divided by; defaults to 0.1, 0.1, 0.2, 0.2 in the first one, about a half in
            the second and a third in the last.
        stage_loss_weights (`list[float]`, *optional*, defaults to `[1, 0.5, 0.25]`):
            Weight of each stage's losses.
        box_loss_weight (`float`, *optional*, defaults to 10):
            Weight of the generalised intersection over union beside the cross-entropy.
        box_samples (`int`, *optional*, defaults to 512):
            Boxes of an image in each stage's loss, at most a quarter of them positive.
        box_pool_size (`int`, *optional*, defaults to 7):
            Side of a box's pooled map.
        num_box_convs (`int`, *optional*, defaults to 4):
            3x3 convolutions of each box head.
        box_hidden_size (`int`, *optional*, defaults to 1024):
            Width of each box head's linear.
        mask_pool_size (`int`, *optional*, defaults to 14):
            Side of a detection's pooled map; its mask has twice that.
        num_mask_convs (`int`, *optional*, defaults to 4):
            3x3 convolutions of each mask head.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Least score of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Of two boxes of a label that overlap by more, the better one stays.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections in an image.
        initializer_range (`float`, *optional*, defaults to 0.01):
            Standard deviation of the proposals' convolutions at first.

    Raises an error that says what is wrong when a number is out of its range, the stages' numbers are not as many, or
    the backbone has too few maps.
    """

    model_type = "cascade_mask_rcnn"
    positive_numbers: ClassVar[tuple[str, ...]] = (
        *TwoStageConfig.positive_numbers,
        "rpn_smooth_l1_beta",
        "max_training_proposals",
        "box_loss_weight",
        "num_box_convs",
    )

    rpn_smooth_l1_beta: float | int = 1 / 9
    max_training_proposals: int = 2000
    stage_positive_ious: list[float | int] | tuple[float | int, ...] = (0.5, 0.6, 0.7)
    stage_box_stds: list[list[float | int]] | tuple[tuple[float | int, ...], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    )
    stage_loss_weights: list[float | int] | tuple[float | int, ...] = (1, 0.5, 0.25)
    box_loss_weight: float | int = 10
    num_box_convs: int = 4

    @property
    def num_stages(self) -> int:
        return len(self.stage_positive_ious)

    def validate_stages(self) -> None:
        """One overlap, four positive numbers to divide by and one weight for each stage, at least one."""
        counts = (self.num_stages, len(self.stage_box_stds), len(self.stage_loss_weights))
        if min(counts) < 1 or max(counts) != min(counts):
            raise ValueError(
                "`stage_positive_ious`, `stage_box_stds` and `stage_loss_weights` must have one value for each stage, "
                f"got {counts[0]}, {counts[1]} and {counts[2]}."
            )
        if not all(0 < overlap <= 1 for overlap in self.stage_positive_ious):
            raise ValueError(f"`stage_positive_ious` must lie in (0, 1], got {list(self.stage_positive_ious)}.")
        for stds in self.stage_box_stds:
            if len(stds) != 4 or not all(0 < std < math.inf for std in stds):
                raise ValueError(f"`stage_box_stds` must be four positive numbers for each stage, got {list(stds)}.")
        if not all(0 < weight < math.inf for weight in self.stage_loss_weights):
            raise ValueError(f"`stage_loss_weights` must be positive, got {list(self.stage_loss_weights)}.")
