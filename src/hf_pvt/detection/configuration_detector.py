"""What the configurations of detectors share: all of them, those with anchors, the dense ones, those in two stages."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..pyramid.configuration_classes import CONFIG_CLASSES
from ..pyramid.configuration_pvt_v2 import PvtV2Config

# A dense detector's predictions, which its output and its exported file hold, as far as it has them.
RAW_OUTPUTS = ("logits", "box_deltas", "centerness", "box_distributions")


@strict
class DetectorConfig(PreTrainedConfig):
    """The fields that all detectors share."""

    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    # How many of the backbone's maps the neck takes, the last ones.
    backbone_levels: ClassVar[int] = 4

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    fpn_hidden_size: int = 256
    strides: list[int] | tuple[int, ...] = (4, 8, 16, 32, 64)
    size_divisor: int = 32
    max_detections: int = 100

    positive_numbers: ClassVar[tuple[str, ...]] = ("fpn_hidden_size", "size_divisor", "max_detections")
    positive_lists: ClassVar[tuple[str, ...]] = ("strides",)
    shares: ClassVar[tuple[str, ...]] = ()
    # Pairs of overlaps: below the first an anchor is background, from the second on it is positive.
    bounds: ClassVar[tuple[tuple[str, str], ...]] = ()

    # What the Trainer does not gather over a whole evaluation: the raw outputs of all anchors.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["loss_dict", *RAW_OUTPUTS]

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = self._with_levels(as_config(self.backbone_config))
        super().__post_init__(**kwargs)

    def _with_levels(self, backbone: PreTrainedConfig) -> PreTrainedConfig:
        """The backbone's configuration with the maps that the neck takes, where it does not choose several itself."""
        names = getattr(backbone, "stage_names", None)
        if not names:
            raise ValueError(
                f"`backbone_config` is a {type(backbone).__name__}, which is no backbone's: it has no stages."
            )
        backbone = copy.deepcopy(backbone)  # the caller's own stays as it is
        if len(backbone.out_features) == 1:
            backbone.set_output_features_output_indices(out_features=names[-self.backbone_levels :], out_indices=None)
        if len(backbone.out_features) != self.backbone_levels:
            raise ValueError(
                f"`backbone_config` gives {len(backbone.out_features)} maps ({', '.join(backbone.out_features)}), "
                f"{type(self).__name__} needs {self.backbone_levels}; leave out_features and out_indices out."
            )
        return backbone

    @property
    def num_channels(self) -> int:
        """Channels of the image, which are the backbone's."""
        return getattr(self.backbone_config, "num_channels", 3)

    @num_channels.setter
    def num_channels(self, num_channels: int) -> None:
        self.backbone_config.num_channels = num_channels  # type: ignore[union-attr]

    @property
    def minimum_image_size(self) -> int:
        """The smallest height and width in pixels."""
        return getattr(self.backbone_config, "minimum_image_size", 32)

    def validate_positive_lists(self) -> None:
        """Positive strides, scales and the like, at least one of each."""
        for name in self.positive_lists:
            values = getattr(self, name)
            if not values or not all(value > 0 and math.isfinite(value) for value in values):
                raise ValueError(f"`{name}` must be positive numbers, at least one, got {list(values)}.")

    def validate_detector_numbers(self) -> None:
        """Positive numbers, and shares in [0, 1]."""
        for name in self.positive_numbers:
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in self.shares:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        for negative, positive in self.bounds:
            if getattr(self, negative) > getattr(self, positive):
                raise ValueError(
                    f"`{negative}` must not exceed `{positive}`, got {getattr(self, negative)} and "
                    f"{getattr(self, positive)}."
                )


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


def check_stds(name: str, stds: Sequence[float]) -> None:
    """Four positive numbers that a box's deltas are divided by."""
    if len(stds) != 4 or not all(0 < std < math.inf for std in stds):
        raise ValueError(f"`{name}` must be four positive numbers, got {list(stds)}.")


def as_config(backbone: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    """A backbone's configuration from what config.json holds; by default PVTv2-B0's.

    Ours come first, whether they are registered or not: a folder's own code registers nothing. Transformers' own of the
    same model type become ours, or a saved detector would open with another backbone.
    """
    if backbone is None:
        return PvtV2Config()
    if isinstance(backbone, PreTrainedConfig):
        if isinstance(backbone, CONFIG_CLASSES.get(backbone.model_type, PreTrainedConfig)):
            return backbone
        backbone = backbone.to_dict()
    fields = dict(backbone)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_CLASSES and model_type not in CONFIG_MAPPING:
        raise ValueError(f"`backbone_config` has the model type {model_type!r}, which Transformers does not know.")
    config_class = CONFIG_CLASSES.get(model_type) or CONFIG_MAPPING[model_type]
    return config_class.from_dict(fields)


def divided(
    overrides: dict[str, Any], detector: type[PreTrainedConfig], backbone: type[PreTrainedConfig]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the detector, and those that only its backbone has."""
    of_backbone = {field.name for field in fields(backbone)} - {field.name for field in fields(detector)}
    return (
        {name: value for name, value in overrides.items() if name not in of_backbone},
        {name: value for name, value in overrides.items() if name in of_backbone},
    )
