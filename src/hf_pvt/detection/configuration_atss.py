"""Configuration of ATSS (arXiv 1912.02424)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import AdaptiveDetectorConfig, check_stds


@strict
class AtssConfig(AdaptiveDetectorConfig):
    r"""
    Configuration of an ATSS, `model_type` "atss", on any backbone; the defaults are those of
    [org/atss-pvt-v2-b2](https://huggingface.co/org/atss-pvt-v2-b2) but for the backbone and the number of labels.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVTv2-B0's):
            Configuration of the backbone, whose last three maps are taken.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Width of the feature pyramid network and of the head.
        num_head_convs (`int`, *optional*, defaults to 4):
            3x3 convolutions of each of the head's two towers.
        num_groups (`int`, *optional*, defaults to 32):
            Groups of channels that are normalised together after each of them.
        strides (`list[int]`, *optional*, defaults to `[8, 16, 32, 64, 128]`):
            Pixels from one place of a level's map to the next; levels beyond the backbone's are convolved of the one
            before.
        anchor_scales (`list[float]`, *optional*, defaults to `[8]`):
            Side of a place's anchor, in strides: one.
        anchor_ratios (`list[float]`, *optional*, defaults to `[1]`):
            Height / width of a place's anchor, a square.
        assigner_candidates (`int`, *optional*, defaults to 9):
            Anchors of each level that may learn a box, those whose centres are nearest to its own.
        box_stds (`list[float]`, *optional*, defaults to `[0.1, 0.1, 0.2, 0.2]`):
            What the head's deltas are divided by.
        focal_alpha (`float`, *optional*, defaults to 0.25):
            Weight of an object in the focal loss, of the background 1 minus this.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            How much the focal loss leaves out what is easy.
        candidates_per_level (`int`, *optional*, defaults to 1000):
            Anchors of each level that may become detections.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded; anchors beyond it do not count in training.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Least score, without its centerness, of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.6):
            Of two boxes of a label that overlap by more, the better one stays.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections in an image.
        initializer_range (`float`, *optional*, defaults to 0.01):
            Standard deviation of the head's convolutions at first.

    Raises an error that says what is wrong when a number is out of its range or the backbone has too few maps.
    """

    model_type = "atss"
    shares: ClassVar[tuple[str, ...]] = (*AdaptiveDetectorConfig.shares, "focal_alpha")

    box_stds: list[float] | tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    focal_alpha: float | int = 0.25

    def validate_atss(self) -> None:
        """Four positive numbers to divide by."""
        check_stds("box_stds", self.box_stds)
