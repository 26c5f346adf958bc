"""Configuration of Sparse R-CNN (arXiv 2011.12450)."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_detector import DetectorConfig


@strict
class SparseRcnnConfig(DetectorConfig):
    r"""
    Configuration of a Sparse R-CNN, `model_type` "sparse_rcnn", on any backbone; the defaults are those of
    [org/sparse-rcnn-pvt-v2-b2](https://huggingface.co/org/sparse-rcnn-pvt-v2-b2) but for the number of labels, the
    backbone and its drop path.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVTv2-B0's):
            Configuration of the backbone, whose last four maps are taken.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Width of the feature pyramid network and of the proposals' features.
        strides (`list[int]`, *optional*, defaults to `[4, 8, 16, 32]`):
            Pixels from one place of a level's map to the next.
        num_proposals (`int`, *optional*, defaults to 300):
            Learned boxes, each with a learned feature: the most objects that an image can teach.
        num_stages (`int`, *optional*, defaults to 6):
            How often the boxes are corrected, with weights of each stage.
        proposal_attention_heads (`int`, *optional*, defaults to 8):
            Heads of the attention between the proposals' features.
        box_pool_size (`int`, *optional*, defaults to 7):
            Side of a proposal's pooled map.
        dynamic_hidden_size (`int`, *optional*, defaults to 64):
            Width between the two products whose weights a proposal's feature makes.
        feed_forward_size (`int`, *optional*, defaults to 2048):
            Width of a stage's feed-forward.
        num_cls_linears (`int`, *optional*, defaults to 1):
            Linears before the labels' logits.
        num_reg_linears (`int`, *optional*, defaults to 3):
            Linears before the boxes' deltas.
        box_stds (`list[float]`, *optional*, defaults to `[0.5, 0.5, 1, 1]`):
            What the deltas are divided by.
        focal_alpha (`float`, *optional*, defaults to 0.25):
            Weight of an object in the focal loss and cost, of the background 1 minus this.
        focal_gamma (`float`, *optional*, defaults to 2.0):
            How much they leave out what is easy.
        cls_weight (`float`, *optional*, defaults to 2.0):
            Weight of the labels in the loss and in the cost of a match.
        l1_weight (`float`, *optional*, defaults to 5.0):
            Weight of the corners' distance, in shares of the image, in both.
        giou_weight (`float`, *optional*, defaults to 2.0):
            Weight of the generalised overlap in both.
        size_divisor (`int`, *optional*, defaults to 32):
            The multiple to which an image is padded.
        max_detections (`int`, *optional*, defaults to 300):
            Most detections in an image: pairs of a box and a label, whatever their score.

    Raises an error that says what is wrong when a number is out of its range or the backbone has too few maps.
    """

    model_type = "sparse_rcnn"
    positive_numbers: ClassVar[tuple[str, ...]] = (
        *DetectorConfig.positive_numbers,
        "num_proposals",
        "num_stages",
        "proposal_attention_heads",
        "box_pool_size",
        "dynamic_hidden_size",
        "feed_forward_size",
    )
    positive_lists: ClassVar[tuple[str, ...]] = (*DetectorConfig.positive_lists, "box_stds")
    not_negative: ClassVar[tuple[str, ...]] = (
        "num_cls_linears",
        "num_reg_linears",
        "focal_gamma",
        "cls_weight",
        "l1_weight",
        "giou_weight",
    )
    shares: ClassVar[tuple[str, ...]] = (*DetectorConfig.shares, "focal_alpha")

    strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    num_proposals: int = 300
    num_stages: int = 6
    proposal_attention_heads: int = 8
    box_pool_size: int = 7
    dynamic_hidden_size: int = 64
    feed_forward_size: int = 2048
    num_cls_linears: int = 1
    num_reg_linears: int = 3
    box_stds: list[float | int] | tuple[float | int, ...] = (0.5, 0.5, 1, 1)
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    cls_weight: float | int = 2.0
    l1_weight: float | int = 5.0
    giou_weight: float | int = 2.0
    max_detections: int = 300

    def validate_sparse_rcnn(self) -> None:
        """A stride for each map, four numbers to divide by, heads that share the width, and weights that are some."""
        if len(self.strides) != self.backbone_levels:
            raise ValueError(
                f"`strides` has {len(self.strides)} values, expected {self.backbone_levels} for the backbone's maps: "
                f"{list(self.strides)}."
            )
        if len(self.box_stds) != 4:
            raise ValueError(f"`box_stds` must be four positive numbers, got {list(self.box_stds)}.")
        if self.fpn_hidden_size % self.proposal_attention_heads:
            raise ValueError(
                f"`fpn_hidden_size` must be a multiple of `proposal_attention_heads`, got {self.fpn_hidden_size} and "
                f"{self.proposal_attention_heads}."
            )
        for name in self.not_negative:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
