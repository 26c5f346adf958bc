"""What the configurations of all detectors share: the backbone's, the neck, and how much is kept in the end."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..configuration_pvt_v2 import PvtV2Config
from ..variants import CONFIG_CLASSES

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
