"""Configuration of GFL (arXiv 2006.04388)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import AdaptiveDetectorConfig


@strict
class GflConfig(AdaptiveDetectorConfig):
    r"""
    Configuration of a GFL, `model_type` "gfl", on any backbone; the defaults are those of
    [org/gfl-pvt-v2-b2](https://huggingface.co/org/gfl-pvt-v2-b2) but for the backbone and the number of labels.

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
        reg_max (`int`, *optional*, defaults to 16):
            The largest distance, in strides, from a place to a side of its box; each whole one has a probability.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            How much the quality focal loss leaves out what is easy (the paper's beta).
        candidates_per_level (`int`, *optional*, defaults to 1000):
            Anchors of each level that may become detections.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded; anchors beyond it do not count in training.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Least score of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.6):
            Of two boxes of a label that overlap by more, the better one stays.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections in an image.
        initializer_range (`float`, *optional*, defaults to 0.01):
            Standard deviation of the head's convolutions at first.

    Raises an error that says what is wrong when a number is out of its range or the backbone has too few maps.
    """

    model_type = "gfl"
    positive_numbers: ClassVar[tuple[str, ...]] = (*AdaptiveDetectorConfig.positive_numbers, "reg_max")

    reg_max: int = 16
