"""Feed-forwards and linears for inference on a CPU: the same numbers, faster and in a fraction of the memory.

Two facts make the difference (`python -m benchmarks` measures it):

1. glibc maps and unmaps every large activation, and the page faults cost up to half of a forward. The expanded
   activation of the feed-forward is by far the largest, so it is computed in bands of rows that stay in the cache.
2. A linear over channels-last tokens is a 1x1 convolution, which PyTorch sends to oneDNN. In float32 that is faster
   than the BLAS behind `nn.Linear`: two to three times on AMD, a little on Intel.

Whatever is not plain inference (training, autocast, hooks, wrapped or quantised layers, compilation, export) is not
ours: `is_plain_inference` says so and the caller takes its ordinary path.

Legend: B batch, H x W grid, N = H*W tokens, C channels, E expanded channels, R rows of a band.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation

# Expanded activation of one band, in bytes: small enough for the cache, large enough to keep the calls few.
BAND_BYTES = 4 * 2**20
# What glibc's malloc still puts on the heap, less its own bookkeeping.
LARGEST_HEAP_BLOCK = 32 * 2**20 - 2**13
# Below this many tokens reordering the weight for oneDNN costs more than the product gains.
MIN_ONEDNN_TOKENS = 128
# PyTorch sends 1x1 convolutions of so many images to oneDNN; of fewer, with one thread or on a small map, it takes
# im2col instead, and copies. A linear does not mind which tokens make an image.
ONEDNN_IMAGES = 16

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    GELUActivation: torch.ops.aten.gelu_,
    nn.Hardswish: torch.ops.aten.hardswish_,
    nn.ReLU: torch.relu_,
}


# The modules, by their identity, that nobody watches or replaces in the forward that runs; None outside of one.
_plain_modules: ContextVar[frozenset[int] | None] = ContextVar("plain_modules", default=None)


@contextmanager
def survey(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Look at a model's parts once, for all questions of `is_plain_inference` inside."""
    plain: set[int] = set()
    if is_eager_inference(images):
        _collect_plain(model, plain)
    token = _plain_modules.set(frozenset(plain))
    try:
        yield
    finally:
        _plain_modules.reset(token)


def _collect_plain(module: nn.Module, plain: set[int]) -> bool:
    """Add the modules that are untouched with all of their parts; whether this one is."""
    is_plain = is_untouched(module)
    for part in module._modules.values():
        if part is not None and not _collect_plain(part, plain):
            is_plain = False
    if is_plain:
        plain.add(id(module))
    return is_plain


def is_eager(tokens: Tensor) -> bool:
    """Whether tensors on the CPU are computed with as they are: no compilation, tracing, hooks."""
    return (
        type(tokens) is Tensor
        and tokens.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch_module._has_any_global_hook()
    )


def is_eager_inference(tokens: Tensor) -> bool:
    """Whether that is all: no gradients, no autocast."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")) and is_eager(tokens)


def is_plain_inference(tokens: Tensor, module: nn.Module) -> bool:
    """Whether this is eager inference on the CPU, and nobody watches or replaces `module` or a part of it."""
    if torch.compiler.is_compiling():
        return False
    plain = _plain_modules.get()
    if plain is None:
        is_plain = is_eager_inference(tokens) and all(map(is_untouched, module.modules()))
    else:
        is_plain = id(module) in plain
    return is_plain and tokens.is_contiguous()


def linear(layer: nn.Module, tokens: Tensor) -> Tensor:
    """`layer(tokens)` for a linear layer and tokens (B, N, C), as a 1x1 convolution where that is faster."""
    if (
        type(layer) is nn.Linear
        and tokens.dtype == torch.float32 == layer.weight.dtype
        and is_plain_inference(tokens, layer)
        and has_enough_tokens(tokens)  # last: compilation would guard on it
    ):
        return as_convolution(tokens, layer.weight, layer.bias)
    return layer(tokens)


def has_enough_tokens(tokens: Tensor) -> bool:
    """Whether tokens (B, N, C) are worth the reordered weight of a convolution."""
    return tokens.shape[0] * tokens.shape[1] >= MIN_ONEDNN_TOKENS


@cache
def has_fast_blas() -> bool:
    """Whether the BLAS behind `nn.Linear` is as fast as oneDNN: MKL is, on processors of Intel's own."""
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in about


def as_convolution(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(tokens, weight, bias)` of contiguous tokens (B, N, C), as a 1x1 convolution."""
    output = torch.conv2d(column_map(tokens), weight[:, :, None, None], bias)  # (images, C_out, B*N/images, 1)
    return output.permute(0, 2, 3, 1).reshape(*tokens.shape[:2], -1)  # (B, N, C_out)


def column_map(tokens: Tensor) -> Tensor:
    """Contiguous tokens (B, N, C) as a channels-last map (images, C, B*N/images, 1): a view."""
    batch, count, channels = tokens.shape
    images = ONEDNN_IMAGES if batch * count % ONEDNN_IMAGES == 0 else batch
    return tokens.view(images, -1, 1, channels).permute(0, 3, 1, 2)


def activate_in_place(activation: nn.Module, hidden: Tensor) -> Tensor:
    """`activation(hidden)`, overwriting `hidden` where PyTorch can."""
    function = _IN_PLACE.get(type(activation))
    return activation(hidden) if function is None else function(hidden)


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


def is_untouched(module: nn.Module) -> bool:
    """Unwatched, and not in training mode (Monte Carlo dropout)."""
    return not module.training and is_unwatched(module)


def is_unwatched(module: nn.Module) -> bool:
    """No hooks, no replaced forward, no wrapped or quantised parameters."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    ):
        return False
    # A loop, not a generator: hundreds of modules are asked in each forward.
    for parameter in module._parameters.values():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return False
    return True
