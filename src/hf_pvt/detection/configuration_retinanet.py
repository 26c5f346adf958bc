"""Configuration of RetinaNet (arXiv 1708.02002)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import DenseDetectorConfig


@strict
class RetinaNetConfig(DenseDetectorConfig):
    r"""
    Configuration of a RetinaNet, `model_type` "retinanet", on any backbone; the defaults are those of
    [org/retinanet-pvt-v2-b0](https://huggingface.co/org/retinanet-pvt-v2-b0) but for the number of labels and the
    backbone's drop path.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVTv2-B0's):
            Configuration of the backbone, whose last three maps are taken.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Width of the feature pyramid network and of the head.
        num_head_convs (`int`, *optional*, defaults to 4):
            3x3 convolutions of each of the head's two towers.
        strides (`list[int]`, *optional*, defaults to `[8, 16, 32, 64, 128]`):
            Pixels from one place of a level's map to the next; levels beyond the backbone's are convolved of its last.
        anchor_scales (`list[float]`, *optional*, defaults to `[4, 5.04, 6.35]`):
            Sides of a place's anchors, in strides: an octave in three steps.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1, 2]`):
            Height / width of a place's anchors.
        positive_iou (`float`, *optional*, defaults to 0.5):
            An anchor that overlaps a box by so much learns it.
        negative_iou (`float`, *optional*, defaults to 0.4):
            An anchor that overlaps no box by so much is background; between both it is ignored.
        focal_alpha (`float`, *optional*, defaults to 0.25):
            Weight of an object in the focal loss, of the background 1 minus this.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            How much the focal loss leaves out what is easy.
        candidates_per_level (`int`, *optional*, defaults to 1000):
            Anchors of each level that may become detections.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded; anchors beyond it do not count in training.
        score_threshold (`float`, *optional*, defaults to 0.05):
            Least score of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Of two boxes of a label that overlap by more, the better one stays.
        max_detections (`int`, *optional*, defaults to 100):
            Most detections in an image.
        initializer_range (`float`, *optional*, defaults to 0.01):
            Standard deviation of the head's convolutions at first.

    Raises an error that says what is wrong when a number is out of its range or the backbone has too few maps.
    """

    model_type = "retinanet"
    shares: ClassVar[tuple[str, ...]] = (*DenseDetectorConfig.shares, "positive_iou", "negative_iou", "focal_alpha")

    bounds: ClassVar[tuple[tuple[str, str], ...]] = (("negative_iou", "positive_iou"),)

    anchor_scales: list[float | int] | tuple[float | int, ...] = tuple(4 * 2 ** (third / 3) for third in range(3))
    positive_iou: float | int = 0.5
    negative_iou: float | int = 0.4
    focal_alpha: float | int = 0.25
