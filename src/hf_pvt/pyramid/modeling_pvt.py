"""PVT (arXiv 2102.12122): patches, attention with reduced keys and values, position embeddings, a class token.

For classification a class token joins the last stage and a norm follows it; dense prediction has neither.

Legend: see `layers`.
"""

import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_pvt import PvtConfig
from .feed_forward import FeedForward
from .layers import Grid, PatchEmbedding, SpatialReductionAttention, map_to_tokens, tokens_to_map
from .modeling_pyramid import (
    PyramidBackbone,
    PyramidForImageClassification,
    PyramidForSemanticSegmentation,
    PyramidModel,
    PyramidPreTrainedModel,
)
from .pyramid import Pyramid, PyramidStage
from .weight_names_pvt import FILE_TO_MEMORY, MEMORY_TO_FILE, rename


class PvtPatchEmbedding(PatchEmbedding):
    """Non-overlapping patches, plus a learned position embedding per token of the grid at `config.image_size`.

    At any other grid the table is resized bilinearly. Upstream compares the number of tokens with the first stage's
    instead: it crashes at 448x448 and adds the wrong embeddings at 112x448.
    """

    def __init__(self, config: PvtConfig, stage: int) -> None:
        super().__init__(
            config.in_channels(stage),
            config.hidden_sizes[stage],
            config.patch_sizes[stage],
            config.strides[stage],
            padding=0,
            eps=config.reduction_layer_norm_eps,
        )
        self.grid = config.grid(stage)
        # The last stage's table begins with the class token's entry, which dense prediction keeps and skips.
        self.class_entries = 1 if stage == config.num_encoder_blocks - 1 else 0
        entries = self.class_entries + self.grid[0] * self.grid[1]
        self.position_embeddings = nn.Parameter(torch.zeros(1, entries, config.hidden_sizes[stage]))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Grid]:
        tokens, grid = super().forward(feature_map)
        return self.dropout(tokens + self.positions(grid)), grid  # (B, N, C)

    def positions(self, grid: Grid) -> Tensor:
        """The position embeddings (1, N, C) of a grid, without the class token's."""
        table = self.position_embeddings[:, self.class_entries :]  # (1, N at image_size, C)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and grid == self.grid:
            return table  # compiled and exported code, where the comparison would pin the size, resizes always
        resized = F.interpolate(tokens_to_map(table, self.grid), size=grid, mode="bilinear", align_corners=False)
        return map_to_tokens(resized)


class PvtClassTokenPatchEmbedding(PvtPatchEmbedding):
    """The last stage's patch embedding for classification: tokens (B, 1 + N, C), the class token first."""

    def __init__(self, config: PvtConfig, stage: int) -> None:
        super().__init__(config, stage)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_sizes[stage]))

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Grid]:
        tokens, grid = super().forward(feature_map)
        class_token = self.dropout(self.cls_token + self.position_embeddings[:, :1])  # (1, 1, C)
        return torch.cat((class_token.expand(tokens.shape[0], -1, -1), tokens), dim=1), grid  # (B, 1 + N, C)


class PvtStage(PyramidStage):
    """Patches with position embeddings and a plain feed-forward."""

    def build_patch_embedding(self, config: PvtConfig, stage: int) -> PatchEmbedding:
        return PvtPatchEmbedding(config, stage)

    def build_attention(self, config: PvtConfig, stage: int) -> SpatialReductionAttention:
        return SpatialReductionAttention(config, stage, config.sequence_reduction_ratios[stage])

    def build_feed_forward(self, config: PvtConfig, stage: int) -> FeedForward:
        dim = config.hidden_sizes[stage]
        activation = ACT2FN[config.hidden_act]
        return FeedForward(dim, dim * config.mlp_ratios[stage], activation, config.hidden_dropout_prob)


class PvtClassTokenStage(PvtStage):
    """The last stage for classification."""

    def build_patch_embedding(self, config: PvtConfig, stage: int) -> PatchEmbedding:
        return PvtClassTokenPatchEmbedding(config, stage)

    def forward(self, feature_map: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The stage's map (B, C, H, W), and the tokens (B, 1 + N, C) with the class token."""
        tokens, grid = self.encode(feature_map, **kwargs)
        return tokens_to_map(tokens[:, 1:], grid), tokens


class PvtClassificationPyramid(Pyramid):
    """Three stages, one with a class token, and a norm: an image (B, C, H, W) becomes tokens (B, 1 + N, C)."""

    def __init__(self, config: PvtConfig) -> None:
        last = config.num_encoder_blocks - 1
        super().__init__([*(PvtStage(config, stage) for stage in range(last)), PvtClassTokenStage(config, last)])
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[last], eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        _, tokens = super().forward(pixel_values, **kwargs)
        return self.layer_norm(tokens)


class PvtPreTrainedModel(PyramidPreTrainedModel):
    """PVT's configuration, stage and initialisation; its files carry Transformers' names (see `weight_names_pvt`)."""

    config: PvtConfig
    config_class = PvtConfig
    base_model_prefix = "pvt"
    stage_class = PvtStage

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Self:
        """As Transformers', from files of either package."""
        return super().from_pretrained(*args, key_mapping={**FILE_TO_MEMORY, **(key_mapping or {})}, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[Any],
        is_main_process: bool = True,
        state_dict: dict[Any, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As Transformers', under the names that its own PVT reads; adapters alone keep the names in memory."""
        if not getattr(self, "_hf_peft_config_loaded", False):
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {rename(name, MEMORY_TO_FILE): weight for name, weight in weights.items()}
            # Transformers would otherwise revert the renaming of `from_pretrained` on top of ours.
            kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the pyramids'; position embeddings and class token truncated normal as well."""
        super()._init_weights(module)
        if isinstance(module, PvtPatchEmbedding):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        if isinstance(module, PvtClassTokenPatchEmbedding):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)


class PvtModel(PvtPreTrainedModel, PyramidModel):
    """The bare PVT: `last_hidden_state` is the last stage's normalised tokens (B, 1 + N, C), the class token first."""

    def build_encoder(self) -> Pyramid:
        return PvtClassificationPyramid(self.config)

    def pool(self, last_hidden_state: Tensor) -> Tensor:
        """The class token: (B, 1 + N, C) -> (B, C)."""
        return last_hidden_state[:, 0]


# What a classification checkpoint has, and dense prediction does not use.
CLASSIFICATION_ONLY = [r"^classifier\.", r"cls_token$", r"encoder\.layer_norm\."]


class PvtDenseModel(PvtPreTrainedModel, PyramidModel):
    """The bare PVT of the paper's dense prediction: `last_hidden_state` is the last stage's map (B, C, H/32, W/32)."""

    _keys_to_ignore_on_load_unexpected = [*CLASSIFICATION_ONLY, r"^decode_head\."]


class PvtBackbone(PvtPreTrainedModel, PyramidBackbone):
    """PVT as a backbone: as the paper's dense prediction, without class token and final norm."""

    _keys_to_ignore_on_load_unexpected = [*CLASSIFICATION_ONLY, r"^decode_head\."]


class PvtForImageClassification(PvtPreTrainedModel, PyramidForImageClassification):
    """PVT with a linear classifier on the class token."""

    model_class = PvtModel


class PvtForSemanticSegmentation(PvtPreTrainedModel, PyramidForSemanticSegmentation):
    """PVT with a Semantic FPN; class token and final norm of a classification checkpoint are dropped."""

    model_class = PvtDenseModel
