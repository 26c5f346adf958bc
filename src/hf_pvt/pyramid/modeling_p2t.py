"""P2T (arXiv 2106.12011): keys and values from a pyramid of pooled maps, inverted bottlenecks as feed-forward.

Legend: see `layers`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_p2t import P2tConfig
from .feed_forward import ConvFeedForward
from .layers import (
    Grid,
    OverlapPatchEmbedding,
    PatchEmbedding,
    ReducedAttention,
    adaptive_average_pool,
    map_to_tokens,
    tokens_to_map,
)
from .modeling_pyramid import (
    PyramidBackbone,
    PyramidForImageClassification,
    PyramidForSemanticSegmentation,
    PyramidModel,
    PyramidPreTrainedModel,
    draw_as_pytorch,
)
from .pyramid import PyramidStage


class PyramidPooling(nn.Module):
    """A map pooled to several coarser grids, each with its position from a depthwise convolution.

    One per stage: its convolutions are shared by all blocks of the stage.
    """

    def __init__(self, dim: int, ratios: list[int] | tuple[int, ...]) -> None:
        super().__init__()
        self.ratios = tuple(ratios)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim) for _ in ratios)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, H, W) -> the tokens of all pooled maps, (B, M, C)."""
        height, width = feature_map.shape[-2:]
        tokens = []
        for ratio, conv in zip(self.ratios, self.convs, strict=True):
            pooled = adaptive_average_pool(feature_map, (pooled_length(height, ratio), pooled_length(width, ratio)))
            tokens.append(map_to_tokens(pooled + conv(pooled)))
        return torch.cat(tokens, dim=1)


def pooled_length(length: int, ratio: int) -> Any:
    """round(length / ratio), halves to even as Python's, and at least 1.

    Upstream has no lower bound and crashes on images of up to 64 pixels. Integers only, and few operations: exporters
    keep the expression for sizes that are not known yet, and compilers reason about it.
    """
    is_odd = length // ratio % 2  # ties go up from there
    pooled = (2 * length + ratio - 1 + is_odd) // (2 * ratio)
    if isinstance(pooled, Tensor):  # `torch.jit.trace` makes sizes tensors
        return pooled.clamp(min=1)
    # `max` would pin a size that is not known yet; PyTorch 2.8 cannot compile `sym_max` of one that is.
    return torch.sym_max(pooled, 1) if isinstance(pooled, torch.SymInt) else max(pooled, 1)


class P2tAttention(ReducedAttention):
    """Keys and values from the stage's pyramid pooling ("Pooling-based MHSA")."""

    def __init__(self, config: P2tConfig, stage: int) -> None:
        super().__init__(config, stage)
        self.layer_norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.reduction_layer_norm_eps)

    def forward(
        self, tokens: Tensor, grid: Grid, pyramid_pooling: PyramidPooling, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        pooled = pyramid_pooling(tokens_to_map(tokens, grid))  # (B, M, C)
        return self.attend(tokens, self.layer_norm(pooled), **kwargs)


class P2tFeedForward(ConvFeedForward):
    """The inverted bottleneck; upstream's 1x1 convolutions are linears here, but initialised as convolutions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in (self.dense1, self.dense2):
            layer.is_pointwise_convolution = True  # type: ignore[assignment]


class P2tStage(PyramidStage):
    """Overlapping patches, pyramid pooling, inverted bottlenecks, no norm at the end."""

    def __init__(self, config: P2tConfig, stage: int) -> None:
        super().__init__(config, stage)
        self.pyramid_pooling = PyramidPooling(config.hidden_sizes[stage], config.pool_ratios[stage])

    def build_patch_embedding(self, config: P2tConfig, stage: int) -> PatchEmbedding:
        return OverlapPatchEmbedding(config, stage)

    def build_attention(self, config: P2tConfig, stage: int) -> P2tAttention:
        return P2tAttention(config, stage)

    def build_feed_forward(self, config: P2tConfig, stage: int) -> P2tFeedForward:
        dim = config.hidden_sizes[stage]
        return P2tFeedForward(
            dim,
            dim * config.mlp_ratios[stage],
            inner_activation=ACT2FN[config.hidden_act],
            activation=ACT2FN[config.hidden_act],
            dropout=config.hidden_dropout_prob,
        )

    def forward(self, feature_map: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(feature_map, pyramid_pooling=self.pyramid_pooling, **kwargs)


class P2tPreTrainedModel(PyramidPreTrainedModel):
    """P2T's configuration, stage and initialisation."""

    config: P2tConfig
    config_class = P2tConfig
    base_model_prefix = "p2t"
    stage_class = P2tStage
    needs_remote_code = True  # Transformers has no P2T

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the pyramids'; upstream's 1x1 convolutions as PyTorch draws convolutions."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "is_pointwise_convolution"):
            draw_as_pytorch(module)


class P2tModel(P2tPreTrainedModel, PyramidModel):
    """The bare P2T: `last_hidden_state` is the last stage's map (B, C, H/32, W/32)."""


class P2tBackbone(P2tPreTrainedModel, PyramidBackbone):
    """P2T as a backbone: maps of the stages as they are, P2T has no norm there."""


class P2tForImageClassification(P2tPreTrainedModel, PyramidForImageClassification):
    """P2T with a linear classifier on the mean of the last stage's tokens."""

    model_class = P2tModel


class P2tForSemanticSegmentation(P2tPreTrainedModel, PyramidForSemanticSegmentation):
    """P2T with a Semantic FPN."""

    model_class = P2tModel
