"""Feed-forwards for inference, in bands of rows: the same numbers, faster and in a fraction of the memory.

glibc maps and unmaps every large activation, and the page faults cost up to half of a forward. The expanded activation
of the feed-forward is by far the largest, so it is computed in bands of rows that stay in the cache. `python -m
benchmarks` measures it.

Legend: B batch, H x W grid, N = H*W tokens, C channels, E expanded channels, R rows of a band.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

# Expanded activation of one band, in bytes: small enough for the cache, large enough to keep the calls few.
BAND_BYTES = 4 * 2**20
# What glibc's malloc still puts on the heap, less its own bookkeeping.
LARGEST_HEAP_BLOCK = 32 * 2**20 - 2**13

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    GELUActivation: torch.ops.aten.gelu_,
    nn.Hardswish: torch.ops.aten.hardswish_,
    nn.ReLU: torch.relu_,
}


def in_row_bands(
    expand: Callable[[Tensor, tuple[int, int]], Tensor],
    contract: Callable[[Tensor], Tensor],
    tokens: Tensor,
    grid: tuple[int, int],
    expanded_dim: int,
    halo: int,
    onto: Tensor | None = None,
) -> Tensor:
    """`contract(expand(tokens, grid))` for tokens (B, N, C), never holding the whole expanded activation (B, N, E).

    With `onto` (B, N, C), a tensor that nobody else has, the result is added to it in place.

    `expand` may mix rows up to `halo` apart, zero-padding at the border of the grid it is given. A band therefore
    carries `halo` more rows on each inner side; what `expand` makes of those rows is wrong, and dropped.
    """
    batch, count, channels = tokens.shape
    height, width = grid if halo else (count, 1)  # without neighbours any split of the tokens will do
    bands = row_bands(batch, (height, width), expanded_dim * tokens.element_size(), halo, BAND_BYTES)
    keep_bands_on_the_heap()
    if len(bands) == 1:  # without the views that several take
        output = contract(expand(tokens, (height, width)))
        return output if onto is None else onto.add_(output)
    rows = tokens.view(batch, height, width, channels)  # (B, H, W, C)
    output = torch.zeros_like(rows) if onto is None else onto.view_as(rows)
    for band in bands:
        hidden = band.keep(expand(band.tokens(rows), band.grid))  # (b, R*W, E)
        output[band.images, band.rows] += contract(hidden).unflatten(1, (-1, width))  # (b, R, W, C)
    return output.view_as(tokens)  # (B, N, C)


class RowBand(NamedTuple):
    """Rows of some images, and `outer`, which are these and their neighbours."""

    images: slice
    rows: slice
    outer: slice
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.outer.stop - self.outer.start, self.width

    def tokens(self, maps: Tensor) -> Tensor:
        """Those of contiguous maps (B, H, W, C), with their neighbours: (b, R*W, C), a view."""
        return maps[self.images, self.outer].flatten(1, 2)

    def keep(self, hidden: Tensor) -> Tensor:
        """Of (b, R*W, E), without the neighbours."""
        if self.outer == self.rows:
            return hidden
        top = self.rows.start - self.outer.start
        return hidden.unflatten(1, self.grid)[:, top : top + self.rows.stop - self.rows.start].flatten(1, 2)


def row_bands(batch: int, grid: tuple[int, int], token_bytes: int, halo: int, band_bytes: int) -> list[RowBand]:
    """Groups of whole images where they fit into `band_bytes`, else the rows of one image after another."""
    height, width = grid
    rows = max(1, band_bytes // (width * token_bytes))
    images = max(1, rows // height)
    return [
        RowBand(
            slice(image, min(image + images, batch)),
            slice(top, min(top + rows, height)),
            slice(max(top - halo, 0), min(top + rows + halo, height)),
            width,
        )
        for image in range(0, batch, images)
        for top in range(0, height, rows)
    ]


@cache
def keep_bands_on_the_heap() -> None:
    """Allocate and free, untouched, the largest block that glibc may learn from.

    glibc maps blocks larger than the largest it has seen freed (up to 32 MiB), and gives memory beyond twice that back
    to the system: every band would pay the page faults of fresh buffers. After this block the buffers stay.
    """
    torch.empty(LARGEST_HEAP_BLOCK, dtype=torch.uint8)


def activate_in_place(activation: nn.Module, hidden: Tensor) -> Tensor:
    """`activation(hidden)`, overwriting `hidden` where PyTorch can."""
    function = _IN_PLACE.get(type(activation))
    return activation(hidden) if function is None else function(hidden)
