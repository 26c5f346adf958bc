"""What one token attends to, laid out as the grids of the reduced keys.

Legend: see `layers`; h x w a grid of keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pyramid.layers import Grid, ReducedAttention, SpatialReductionAttention, eager_attention
from ..pyramid.modeling_p2t import P2tAttention, pooled_length
from ..pyramid.modeling_pvt_v2 import PooledAttention
from ..pyramid.modeling_pyramid import PyramidModel


class AttentionMap(NamedTuple):
    """The weights of a grid of keys (h, w), and the shares of the image's height and width that the grid covers.

    A strided convolution leaves out the last rows and columns of a map that its stride does not divide.
    """

    weights: Tensor
    covered: tuple[float, float]


@torch.inference_mode()
def attention_maps(
    pyramid: PyramidModel,
    pixel_values: Tensor,
    place: tuple[float, float],
    stage: int = -1,
    block: int = -1,
    head: int | None = None,
) -> list[AttentionMap]:
    """The attention of the token at `place` over the keys of its block: a map, or, for P2T, one per pooling level.

    All weights add up to 1, but for that of PVT's class token, which has no place. These are the weights of
    `output_attentions`; only the row of the token is computed.

    Args:
        pyramid: in evaluation mode.
        pixel_values: an image (1, C, H, W).
        place: x and y as shares of the image's width and height, in [0, 1).
        stage, block, head: counted from 0; negative ones from the end. `head=None`: the mean of all.

    Raises:
        ValueError: no such stage, block or head.
    """
    stages: Any = pyramid.encoder.layers
    _check("stage", stage, len(stages))
    blocks = stages[stage].blocks
    _check("block", block, len(blocks))
    attention = blocks[block].attention
    if head is not None:
        _check("head", head, attention.num_heads)
    with _watched(attention) as seen:
        pyramid(pixel_values)
    (height, width), query, key = seen["grid"], seen["query"], seen["key"]
    without_place = query.shape[1] - height * width  # the class token, first of tokens and of keys
    token = without_place + int(place[1] * height) * width + int(place[0] * width)
    rows, keys = (attention._split_heads(tokens) for tokens in (query[:, token : token + 1], key))
    weights = eager_attention(attention, rows, keys, keys, None, attention.scaling)[1][0, :, 0]  # (heads, M)
    weights = (weights.mean(0) if head is None else weights[head])[without_place:]
    grids = key_grids(attention, (height, width), stage)
    levels = weights.split([grid.rows * grid.columns for grid in grids])
    return [
        AttentionMap(level.view(grid.rows, grid.columns).float().cpu(), grid.covered)
        for level, grid in zip(levels, grids, strict=True)
    ]


class KeyGrid(NamedTuple):
    """How many rows and columns of keys, and the shares of the height and width of the tokens' grid that they cover."""

    rows: int
    columns: int
    covered: tuple[float, float] = (1.0, 1.0)


@singledispatch
def key_grids(attention: ReducedAttention, grid: Grid, stage: int) -> list[KeyGrid]:
    """The grids, one after another, of the keys that an attention of a stage makes of tokens on a grid."""
    raise NotImplementedError(f"the keys of {type(attention).__name__} have no known grid.")


@key_grids.register
def _(attention: SpatialReductionAttention, grid: Grid, stage: int) -> list[KeyGrid]:
    ratio = attention.reduction_ratio
    rows, columns = (length // ratio for length in grid)
    return [KeyGrid(rows, columns, (rows * ratio / grid[0], columns * ratio / grid[1]))]


@key_grids.register
def _(attention: PooledAttention, grid: Grid, stage: int) -> list[KeyGrid]:
    return [KeyGrid(attention.pool_size, attention.pool_size)]


@key_grids.register
def _(attention: P2tAttention, grid: Grid, stage: int) -> list[KeyGrid]:
    ratios = attention.config.pool_ratios[stage]
    return [KeyGrid(*(pooled_length(length, ratio) for length in grid)) for ratio in ratios]


@contextmanager
def _watched(attention: ReducedAttention) -> Iterator[dict[str, Any]]:
    """What passes through an attention in the next forward: `grid`, `query` (B, N, C) and `key` (B, M, C)."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = [
        attention.register_forward_pre_hook(lambda _, arguments: seen.update(grid=arguments[1])),
        attention.query.register_forward_hook(keep("query")),
        attention.key.register_forward_hook(keep("key")),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _check(name: str, index: int, count: int) -> None:
    if not -count <= index < count:
        raise ValueError(f"{name} is {index}, expected 0 to {count - 1}, or -{count} to -1 from the end.")
