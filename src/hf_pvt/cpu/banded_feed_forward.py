"""Feed-forwards for training, in bands of rows: sooner and in less memory.

A feed-forward keeps two expanded activations for its backward, a convolutional one three, P2T's four: most of what a
step keeps. `feed_forward` keeps one, the first linear's output, and of large images none. It computes the rest anew in
bands of images or rows that stay in the cache, as in inference (`row_bands`). At 512 pixels with checkpointing the peak
beyond weights and optimizer falls by two fifths in float32, and the time rises by a twentieth. `python -m
benchmarks.training` measures the whole.

Legend: B batch, H x W grid, N = H*W tokens, C channels, E expanded channels, R rows of a band.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .onednn_linear import product, product_gradients
from .row_bands import BAND_BYTES, RowBand, row_bands

# Expanded activation of one image, in bytes, up to which it is kept for the backward.
KEPT_BYTES = 8 * 2**20

# What a feed-forward does between its linears, for a grid, (B, N, E) and its filters.
Spread = Callable[..., Tensor]


class FeedForward(Protocol):
    """Two linears, and what is between them."""

    halo: int
    dense1: nn.Linear
    dense2: nn.Linear

    def filters(self) -> tuple[Tensor, ...]:
        """The parameters between the linears."""

    def spread(self, grid: tuple[int, int], hidden: Tensor, *filters: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E), for the grid."""


def feed_forward(layer: FeedForward, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """`layer.dense2(layer.spread(grid, layer.dense1(tokens), *layer.filters()))`, (B, N, C) -> (B, N, C)."""
    linears = (layer.dense1.weight, layer.dense1.bias, layer.dense2.weight, layer.dense2.bias)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype
    if layer.halo == 0:  # as in inference, and PVT's class token has no place in a grid
        grid = tokens.shape[1], 1
    token_bytes = layer.dense1.out_features * dtype.itemsize
    keeps = tokens.shape[1] * token_bytes <= KEPT_BYTES
    bands = row_bands(len(tokens), grid, token_bytes, layer.halo, KEPT_BYTES if keeps else BAND_BYTES)
    return _FeedForward.apply(layer.spread, grid, bands, keeps, dtype, tokens, *linears, *layer.filters())


class _FeedForward(torch.autograd.Function):
    """Computed in `dtype`; the gradients have the tensors' own types."""

    @staticmethod
    def forward(
        ctx: Any,
        spread: Spread,
        grid: tuple[int, int],
        bands: list[RowBand],
        keeps: bool,
        dtype: torch.dtype,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.spread, ctx.grid, ctx.bands, ctx.dtype = spread, grid, bands, dtype
        tokens, weight1, bias1, weight2, bias2, *filters = _cast(tensors, dtype)
        maps = tokens.unflatten(1, grid)  # (B, H, W, C)
        output = torch.empty_like(maps)
        with torch.autocast("cpu", enabled=False):
            hidden = product(tokens, weight1, bias1) if keeps else None  # (B, N, E)
            for band in bands:
                expanded = band.keep(spread(band.grid, _expand(band, maps, hidden, weight1, bias1), *filters))
                output[band.images, band.rows] = product(expanded, weight2, bias2).unflatten(1, (-1, grid[1]))
        ctx.save_for_backward(*tensors, hidden)
        return output.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[5:]
        *tensors, hidden = ctx.saved_tensors  # once: checkpointing computes them for this one look
        with torch.autocast("cpu", enabled=False):
            # Weights are cast again: that takes less than keeping them would.
            cast = _cast(tensors, ctx.dtype)
            if torch.is_grad_enabled():  # for a second derivative
                spread = partial(ctx.spread, ctx.grid)
                found: Sequence[Tensor | None] = _differentiable_gradients(spread, tensors, cast, gradient, needed)
            else:
                found = _banded_gradients(ctx.spread, ctx.grid, ctx.bands, cast, hidden, gradient)
        given = (
            tensor.to(own.dtype) if need and tensor is not None else None
            for tensor, own, need in zip(found, tensors, needed, strict=True)
        )
        return None, None, None, None, None, *given


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]


def _banded_gradients(
    spread: Spread,
    grid: tuple[int, int],
    bands: Sequence[RowBand],
    tensors: Sequence[Tensor],
    hidden: Tensor | None,
    gradient: Tensor,
) -> list[Tensor]:
    """Those of all tensors: each band adds what its outputs make of its inputs, neighbours included."""
    tokens, *parameters = tensors
    maps, of_outputs = tokens.unflatten(1, grid), gradient.contiguous().unflatten(1, grid)  # (B, H, W, C)
    if len(bands) == 1:
        return _gradients(spread, bands[0], maps, hidden, parameters, of_outputs)
    of_inputs = torch.zeros_like(maps)
    # In float32 at least, as one product over all tokens would add.
    sums = [torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in parameters]
    for band in bands:
        of_outer, *others = _gradients(spread, band, maps, hidden, parameters, of_outputs)
        of_inputs[band.images, band.outer] += of_outer.unflatten(1, band.grid)
        for total, other in zip(sums, others, strict=True):
            total += other
    return [of_inputs.view_as(tokens), *sums]


def _gradients(
    spread: Spread, band: RowBand, maps: Tensor, hidden: Tensor | None, parameters: Sequence[Tensor], of_outputs: Tensor
) -> list[Tensor]:
    """Those of a band: of its tokens (b, R*W, C), neighbours included, of both linears and of the filters."""
    weight1, bias1, weight2, _, *filters = parameters
    with torch.enable_grad():
        expanded = _expand(band, maps, hidden, weight1, bias1)
        leaves = [tensor.detach().requires_grad_() for tensor in (expanded, *filters)]
        expanded = band.keep(spread(band.grid, *leaves))
    edge, expanded = get_gradient_edge(expanded), expanded.detach()
    of_output = of_outputs[band.images, band.rows].flatten(1, 2)
    of_expanded, *of_dense2 = product_gradients(of_output, expanded, weight2)
    del expanded  # before the others of its size come: the edge holds the graph without it
    of_hidden, *of_filters = torch.autograd.grad(edge, leaves, of_expanded)
    of_tokens, *of_dense1 = product_gradients(of_hidden, band.tokens(maps), weight1)
    return [of_tokens, *of_dense1, *of_dense2, *of_filters]


def _expand(band: RowBand, maps: Tensor, hidden: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """The first linear's output (b, R*W, E) of a band: out of that of all tokens (B, N, E) where this was kept."""
    if hidden is None:
        return product(band.tokens(maps), weight, bias)
    return band.tokens(hidden.view(*maps.shape[:3], -1))


def _differentiable_gradients(
    spread: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    cast: Sequence[Tensor],
    gradient: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The same for those that need one, by operations that have gradients themselves."""
    tokens, weight1, bias1, weight2, bias2, *filters = cast
    output = product(spread(product(tokens, weight1, bias1), *filters), weight2, bias2)
    chosen = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    found = iter(torch.autograd.grad(output, chosen, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]
