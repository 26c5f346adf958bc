"""Layers of heads that know how they are drawn at first, whatever their model does with other layers of their kind.

`draw(weight)` is one of Transformers' `initialization`, which leave alone what was loaded.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import initialization as init


class Drawn(nn.Module):
    """A module that draws itself."""

    def reset_parameters(self) -> None:
        raise NotImplementedError


class DrawnLayer(Drawn):
    """Weights that `draw` draws, and a constant bias, or one that is drawn as PyTorch does (`first_bias=None`)."""

    weight: Any
    bias: Any

    def __init__(
        self, *args: Any, draw: Callable[[Tensor], Tensor], first_bias: float | None = 0.0, **kwargs: Any
    ) -> None:
        self.draw, self.first_bias = draw, first_bias  # the constructor draws already
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        self.draw(self.weight)
        if self.bias is None:
            return
        if self.first_bias is None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            init.uniform_(self.bias, -bound, bound)
        else:
            init.constant_(self.bias, self.first_bias)


class DrawnConv2d(DrawnLayer, nn.Conv2d):
    """A convolution that draws itself."""


class DrawnConvTranspose2d(DrawnLayer, nn.ConvTranspose2d):
    """A transposed convolution that draws itself."""


class DrawnLinear(DrawnLayer, nn.Linear):
    """A linear that draws itself."""


class DrawnGroupNorm(DrawnLayer, nn.GroupNorm):
    """A group norm (arXiv 1803.08494) that draws itself."""


# With this bias every anchor or proposal is at first an object with probability 0.01, or the many backgrounds would
# decide all (RetinaNet, arXiv 1708.02002, section 3.3).
RARE_AT_FIRST = -math.log((1 - 0.01) / 0.01)

kaiming = partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
KaimingConv2d = partial(DrawnConv2d, draw=kaiming)
# What PyTorch's own layers draw of their weights.
pytorch_draw = partial(init.kaiming_uniform_, a=math.sqrt(5))
XavierConv2d = partial(DrawnConv2d, draw=init.xavier_uniform_)
