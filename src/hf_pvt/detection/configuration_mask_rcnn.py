"""Configuration of Mask R-CNN (arXiv 1703.06870) and, without masks, Faster R-CNN (arXiv 1506.01497)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import TwoStageConfig, check_stds


@strict
class MaskRcnnConfig(TwoStageConfig):
    r"""
    Configuration of a Mask R-CNN, `model_type` "mask_rcnn", on any backbone; the defaults are those of
    [org/mask-rcnn-pvt-v2-b0](https://huggingface.co/org/mask-rcnn-pvt-v2-b0) but for the number of labels and the
    backbone's drop path.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVTv2-B0's):
            Configuration of the backbone, whose last four maps are taken.
        with_masks (`bool`, *optional*, defaults to `True`):
            Whether there is a mask head; without it this is Faster R-CNN.
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
        rpn_nms_threshold (`float`, *optional*, defaults to 0.7):
            Of two proposals of a level that overlap by more, the better one stays.
        rpn_candidates (`int`, *optional*, defaults to 1000):
            Anchors of each level that may become proposals.
        rpn_training_candidates (`int`, *optional*, defaults to 2000):
            The same for the loss.
        max_proposals (`int`, *optional*, defaults to 1000):
            Most proposals in an image.
        box_positive_iou (`float`, *optional*, defaults to 0.5):
            A proposal that overlaps a box by so much learns it; others are background.
        box_samples (`int`, *optional*, defaults to 512):
            Proposals of an image in the loss, at most a quarter of them positive.
        box_stds (`list[float]`, *optional*, defaults to `[0.1, 0.1, 0.2, 0.2]`):
            What the box head's deltas are divided by.
        box_pool_size (`int`, *optional*, defaults to 7):
            Side of a proposal's pooled map.
        box_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the box head's two linears.
        mask_pool_size (`int`, *optional*, defaults to 14):
            Side of a detection's pooled map; its mask has twice that.
        num_mask_convs (`int`, *optional*, defaults to 4):
            3x3 convolutions of the mask head.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded; anchors beyond it do not count in training.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Least score of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Of two boxes of a label that overlap by more, the better one stays.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections in an image.
        initializer_range (`float`, *optional*, defaults to 0.01):
            Standard deviation of the proposals' convolutions and of the box head's classifier at first.

    Raises an error that says what is wrong when a number is out of its range or the backbone has too few maps.
    """

    model_type = "mask_rcnn"
    shares: ClassVar[tuple[str, ...]] = (*TwoStageConfig.shares, "box_positive_iou")

    box_positive_iou: float | int = 0.5
    box_stds: list[float] | tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)

    def validate_mask_rcnn(self) -> None:
        """Four positive numbers to divide by."""
        check_stds("box_stds", self.box_stds)
