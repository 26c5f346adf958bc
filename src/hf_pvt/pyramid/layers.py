"""The leaves of the pyramid: patch embedding, attention with reduced keys and values, drop path.

Legend, used in every file: B batch, H x W a stage's grid, N = H*W tokens, M reduced tokens (keys and values),
C channels, E expanded channels, D channels of a head. `grid` is (H, W). Tokens (B, N, C) lie in channels-last memory,
so that the map (B, C, H, W) is a view of them and neither direction copies.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..cpu.onednn_linear import linear
from ..cpu.packing import PackedLinear
from ..cpu.plain_calls import is_plain_inference
from ..cpu.query_bands import gains_written_out, in_query_bands, pays_off

Grid = tuple[int, int]


def tokens_to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) -> (B, C, H, W): a channels-last view.

    The order matters: `transpose(1, 2).view(...)` gives a batch of one image a wrong batch stride, convolutions then
    take it for NCHW and copy.
    """
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, N, C): a view of a channels-last map."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def adaptive_average_pool(feature_map: Tensor, size: Grid) -> Tensor:
    """`adaptive_avg_pool2d` of (B, C, H, W) to `size`, in a form that exports truly at dynamic sizes.

    Exporters bake the pooling windows of `adaptive_avg_pool2d` at the traced size: the file is silently wrong at any
    other. Two averaging matrices built from H and W are the same pooling; eager keeps the faster kernel.
    """
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
        return F.adaptive_avg_pool2d(feature_map, size)
    rows = _averaging_matrix(feature_map.shape[2], size[0], feature_map)  # (h, H)
    columns = _averaging_matrix(feature_map.shape[3], size[1], feature_map)  # (w, W)
    return rows @ feature_map @ columns.transpose(0, 1)  # (B, C, h, w)


def _averaging_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): row i averages the positions from floor(i*length/bins) to ceil((i+1)*length/bins)."""
    index = torch.arange(bins, device=like.device)[:, None]
    start = index * length // bins
    end = ((index + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)
    inside = (position >= start) & (position < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch per image with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, tokens: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return tokens
        keep = tokens.new_empty((tokens.shape[0], 1, 1)).bernoulli_(1.0 - self.rate)
        return tokens * keep.div_(1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class PatchEmbedding(nn.Module):
    """Strided convolution, then LayerNorm: a map (B, C_in, H_in, W_in) becomes tokens (B, N, C) and their grid."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, padding: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.layer_norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Grid]:
        feature_map = self.proj(feature_map)  # (B, C, H, W)
        height, width = feature_map.shape[-2:]
        return self.layer_norm(map_to_tokens(feature_map)), (height, width)  # (B, N, C)


class OverlapPatchEmbedding(PatchEmbedding):
    """Overlapping patches, zero-padded by half the kernel (PVTv2, "Overlapping patch embedding")."""

    def __init__(self, config: PreTrainedConfig, stage: int) -> None:
        kernel_size = config.patch_sizes[stage]
        super().__init__(
            config.in_channels(stage),
            config.hidden_sizes[stage],
            kernel_size,
            config.strides[stage],
            padding=kernel_size // 2,
            eps=config.reduction_layer_norm_eps,
        )


class ReducedAttention(nn.Module):
    """Multi-head attention of N tokens over M reduced ones; a family's subclass says how they are reduced.

    PVT, "Transformer encoder": softmax(Q K^T / sqrt(D)) V, which upstream writes out and we leave to Transformers'
    attention interface (`config._attn_implementation`).
    """

    is_causal = False

    def __init__(self, config: PreTrainedConfig, stage: int) -> None:
        super().__init__()
        dim = config.hidden_sizes[stage]
        self.config = config
        self.num_heads = config.num_attention_heads[stage]
        self.scaling = (dim // self.num_heads) ** -0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def attend(self, tokens: Tensor, reduced: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, C) and reduced tokens (B, M, C) -> (B, N, C) and, if computed, weights (B, heads, N, M)."""
        key = self._split_heads(linear(self.key, reduced))
        value = self._split_heads(linear(self.value, reduced))
        implementation = self._implementation(key, kwargs)
        if implementation == "sdpa" and self._is_banded(tokens, reduced):
            query, project = partial(linear, self.query), partial(linear, self.proj)
            return self.dropout(in_query_bands(tokens, key, value, query, project, self.scaling)), None
        output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)(
            self,
            self._split_heads(linear(self.query, tokens)),
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = linear(self.proj, output.flatten(2))  # (B, N, heads, D) -> (B, N, C)
        return self.dropout(output), weights

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, heads, N, D)

    def _implementation(self, key: Tensor, kwargs: dict[str, Any]) -> str:
        implementation: str = self.config._attn_implementation
        # Only the eager function returns weights: whoever asks for attentions gets them, whatever the default is.
        if kwargs.get("output_attentions") or (implementation == "sdpa" and gains_written_out(key)):
            return "eager"
        return implementation

    def _is_banded(self, tokens: Tensor, reduced: Tensor) -> bool:
        # A wrapped or quantised linear may look at all tokens at once, as for a common scale.
        linears = (self.query, self.proj)
        are_plain = all(
            type(part) in (nn.Linear, PackedLinear) and is_plain_inference(tokens, part) for part in linears
        )
        return are_plain and pays_off(tokens, reduced)


class SpatialReductionAttention(ReducedAttention):
    """PVT's "spatial reduction": a strided convolution of the map; at ratio 1 the tokens themselves."""

    def __init__(self, config: PreTrainedConfig, stage: int, ratio: int) -> None:
        super().__init__(config, stage)
        self.reduction_ratio = ratio
        if ratio > 1:
            dim = config.hidden_sizes[stage]
            self.spatial_reduction = nn.Conv2d(dim, dim, kernel_size=ratio, stride=ratio)
            self.layer_norm = nn.LayerNorm(dim, eps=config.reduction_layer_norm_eps)

    def forward(self, tokens: Tensor, grid: Grid, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return self.attend(tokens, self.reduce(tokens, grid), **kwargs)

    def reduce(self, tokens: Tensor, grid: Grid) -> Tensor:
        if self.reduction_ratio == 1:
            return tokens
        reduced = self.spatial_reduction(tokens_to_map(tokens, grid))  # (B, C, H/r, W/r)
        return self.layer_norm(map_to_tokens(reduced))  # (B, M, C)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, with Transformers' signature: output (B, N, heads, D) and weights (B, heads, N, M)."""
    weights = (query @ (key * scaling).transpose(2, 3)).softmax(dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights
