"""What the configurations of PVT, PVTv2 and P2T share: fields, validation, and values derived of them."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

PROBABILITIES = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
POSITIVE_NUMBERS = (
    "layer_norm_eps",
    "reduction_layer_norm_eps",
    "initializer_range",
    "num_channels",
    "fpn_hidden_size",
    "decoder_hidden_size",
)


@dataclass(kw_only=True, repr=False)
class PyramidConfigMixin(BackboneConfigMixin):
    """The fields that Transformers' PVTv2 lacks, validation, and derived values.

    The fields without a default are the inheriting configuration's.
    """

    num_channels: int
    num_encoder_blocks: int
    depths: list[int] | tuple[int, ...]
    hidden_sizes: list[int] | tuple[int, ...]
    strides: list[int] | tuple[int, ...]
    num_attention_heads: list[int] | tuple[int, ...]
    drop_path_rate: float | int
    hidden_act: str

    reduction_layer_norm_eps: float = 1e-5
    fpn_hidden_size: int = 256
    decoder_hidden_size: int = 128
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float] | tuple[float, ...] | None = None

    # `output_hidden_states=-1` counts stages.
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_encoder_blocks"}

    # The field that says how much keys and values are reduced on each side, where a convolution does it.
    reduction_field: ClassVar[str | None] = None

    per_stage_fields: ClassVar[tuple[str, ...]] = (
        "depths",
        "hidden_sizes",
        "patch_sizes",
        "strides",
        "num_attention_heads",
        "mlp_ratios",
    )

    def drop_path_rates(self, stage: int) -> list[float]:
        """The rates of one stage's blocks: linear from 0 at the first block of all to `drop_path_rate` at the last."""
        last = max(sum(self.depths) - 1, 1)
        first = sum(self.depths[:stage])
        return [self.drop_path_rate * (first + block) / last for block in range(self.depths[stage])]

    def in_channels(self, stage: int) -> int:
        """Channels of the map that a stage receives."""
        return self.num_channels if stage == 0 else self.hidden_sizes[stage - 1]

    @property
    def minimum_image_size(self) -> int:
        """The smallest height and width in pixels that leave every stage a token to attend to (published: 32)."""
        ratios = getattr(self, self.reduction_field) if self.reduction_field else [1] * self.num_encoder_blocks
        return max(math.prod(self.strides[: stage + 1]) * ratio for stage, ratio in enumerate(ratios))

    def set_output_features_output_indices(self, *args: Any, **kwargs: Any) -> None:
        """As Transformers', which fails without a word where there is no stage to choose."""
        if not self.depths:
            raise ValueError("`depths` is empty, expected the number of blocks of each stage.")
        super().set_output_features_output_indices(*args, **kwargs)

    def validate_activation(self) -> None:
        """An activation that Transformers knows."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"unknown `hidden_act` {self.hidden_act!r}, expected one of: {', '.join(sorted(ACT2FN))}.")

    def validate_stages(self) -> None:
        """One value per stage, all positive, and widths that the heads divide."""
        stages = self.num_encoder_blocks
        for name in self.per_stage_fields:
            values = getattr(self, name)
            if len(values) != stages:
                raise ValueError(
                    f"`{name}` has {len(values)} values, expected one for each of the {stages} stages "
                    f"(num_encoder_blocks={stages}): {list(values)}."
                )
            if not all(value > 0 for value in values):
                raise ValueError(f"`{name}` must be positive for every stage, got {list(values)}.")
        for dim, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"hidden size {dim} does not divide by its {heads} attention heads; choose `hidden_sizes` "
                    f"{list(self.hidden_sizes)} as multiples of `num_attention_heads` {list(self.num_attention_heads)}."
                )

    def validate_numbers(self) -> None:
        """Probabilities in [0, 1), positive finite epsilons and channels (NaN is neither)."""
        for name in PROBABILITIES:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")
        for name in POSITIVE_NUMBERS:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be positive and finite, got {value}.")

    def validate_semantic_segmentation(self) -> None:
        """One class weight per label, none negative, not all zero."""
        weights, labels = self.semantic_loss_class_weights, self.num_labels  # type: ignore[attr-defined]
        if weights is None:
            return
        if len(weights) != labels:
            raise ValueError(
                f"`semantic_loss_class_weights` has {len(weights)} values, expected one for each of {labels} labels."
            )
        if not (all(weight >= 0 and math.isfinite(weight) for weight in weights) and any(weights)):
            raise ValueError(
                f"`semantic_loss_class_weights` must be finite, not negative and not all 0, got {list(weights)}."
            )


@strict
class PyramidConfig(PyramidConfigMixin, PreTrainedConfig):
    """The fields that PVT and P2T share (PVTv2 inherits the same ones from Transformers)."""

    num_channels: int = 3
    num_encoder_blocks: int = 4
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    patch_sizes: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[int] | tuple[int, ...] = (8, 8, 4, 4)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"stage{index + 1}" for index in range(len(self.depths))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
