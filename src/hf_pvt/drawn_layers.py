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


class DrawnConv2d(Drawn, nn.Conv2d):
    """A convolution that draws itself."""


class DrawnConvTranspose2d(Drawn, nn.ConvTranspose2d):
    """A transposed convolution that draws itself."""


class DrawnLinear(Drawn, nn.Linear):
    """A linear that draws itself."""


kaiming = partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
KaimingConv2d = partial(DrawnConv2d, draw=kaiming)
# What PyTorch's own layers draw of their weights.
pytorch_draw = partial(init.kaiming_uniform_, a=math.sqrt(5))
XavierConv2d = partial(DrawnConv2d, draw=init.xavier_uniform_)
