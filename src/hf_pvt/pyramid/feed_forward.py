"""The feed-forwards of the pyramid's blocks: plain in PVT, convolutional in PVTv2 and P2T.

On a CPU both are computed in bands of rows: see `row_bands` for inference, `banded_feed_forward` for training.

Legend: see `layers`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cpu.banded_feed_forward import feed_forward
from ..cpu.onednn_linear import linear
from ..cpu.packing import PackedLinear
from ..cpu.plain_calls import is_plain_inference, is_plain_training
from ..cpu.row_bands import activate_in_place, in_row_bands
from .layers import Grid, map_to_tokens, tokens_to_map

Activate = Callable[[nn.Module, Tensor], Tensor]


class FeedForward(nn.Module):
    """Linear, activation, linear: tokens (B, N, C) -> (B, N, E) -> (B, N, C)."""

    # How many rows apart `expand` mixes tokens.
    halo = 0

    def __init__(self, dim: int, expanded_dim: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.dense1 = nn.Linear(dim, expanded_dim)
        self.activation = activation
        self.dense2 = nn.Linear(expanded_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        if torch.is_grad_enabled() and self._is_plain_training(tokens):
            return feed_forward(self, tokens, grid)
        if self.is_banded(tokens):
            return self.in_bands(tokens, grid)
        return self.contract(self.expand(tokens, grid))

    def is_banded(self, tokens: Tensor) -> bool:
        """Whether tokens (B, N, C) are computed in bands of rows."""
        # A wrapped or quantised linear may look at all tokens at once, as for a common scale.
        linears = {type(self.dense1), type(self.dense2)}
        return linears <= {nn.Linear, PackedLinear} and is_plain_inference(tokens, self)

    def in_bands(self, tokens: Tensor, grid: Grid, onto: Tensor | None = None) -> Tensor:
        """As `forward`, for inference on a CPU; added in place to `onto` (B, N, C), a tensor that nobody else has."""
        expand = partial(self.expand, activate=activate_in_place)
        return in_row_bands(expand, self.contract, tokens, grid, self.dense1.out_features, self.halo, onto)

    def expand(self, tokens: Tensor, grid: Grid, activate: Activate = nn.Module.__call__) -> Tensor:
        """(B, N, C) -> (B, N, E); `activate(module, hidden)` applies an activation."""
        return activate(self.activation, linear(self.dense1, tokens))

    def contract(self, hidden: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, C)."""
        return self.dropout(linear(self.dense2, self.dropout(hidden)))

    def filters(self) -> tuple[Tensor, ...]:
        """The parameters between the linears."""
        return ()

    def spread(self, grid: Grid, hidden: Tensor, *filters: Tensor) -> Tensor:
        """What `expand` makes of the first linear's output (B, N, E), with these filters: for training."""
        return self.activation(hidden)

    def _is_plain_training(self, tokens: Tensor) -> bool:
        return (
            type(self.dense1) is type(self.dense2) is nn.Linear
            and not (self.training and self.dropout.p > 0)
            and len([*self.parameters()]) == 4 + len(self.filters())  # others, as of PReLU, would get no gradient
            and is_plain_training(tokens, self)
        )


class ConvFeedForward(FeedForward):
    """Linear, inner activation, depthwise 3x3, activation, linear (PVTv2, "Convolutional feed-forward")."""

    halo = 1

    def __init__(
        self, dim: int, expanded_dim: int, inner_activation: nn.Module, activation: nn.Module, dropout: float
    ) -> None:
        super().__init__(dim, expanded_dim, activation, dropout)
        self.inner_activation = inner_activation
        self.dwconv = DepthwiseConv(expanded_dim)

    def expand(self, tokens: Tensor, grid: Grid, activate: Activate = nn.Module.__call__) -> Tensor:
        hidden = activate(self.inner_activation, linear(self.dense1, tokens))  # (B, N, E)
        return activate(self.activation, self.dwconv(hidden, grid))  # (B, N, E)

    def filters(self) -> tuple[Tensor, ...]:
        return tuple(self.dwconv.dwconv.parameters())  # weight and bias

    def spread(self, grid: Grid, hidden: Tensor, *filters: Tensor) -> Tensor:
        weight, bias = filters
        feature_map = tokens_to_map(self.inner_activation(hidden), grid)
        if grid[0] < weight.shape[2]:
            # For the filters' gradient oneDNN has, of maps lower than the filters, code that is 20 to 100 times slower.
            # Rows of zeros below change nothing: the padding is zeros, too.
            feature_map = F.pad(feature_map, (0, 0, 0, weight.shape[2] - grid[0]))
        feature_map = F.conv2d(feature_map, weight, bias, padding=1, groups=len(weight))  # (B, E, H, W)
        feature_map = feature_map[:, :, : grid[0]]
        return self.activation(map_to_tokens(feature_map))  # (B, N, E)

    def _is_plain_training(self, tokens: Tensor) -> bool:
        return type(self.dwconv.dwconv) is nn.Conv2d and super()._is_plain_training(tokens)


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution of tokens (B, N, C), zero-padded: the padding tells the tokens where they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return map_to_tokens(self.dwconv(tokens_to_map(tokens, grid)))  # (B, N, C)
