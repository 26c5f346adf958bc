"""Which of the assigned anchors or proposals the loss sees (Faster R-CNN, arXiv 1506.01497, section 3.1.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .assigners import NEGATIVE


@dataclass(frozen=True)
class RandomSampler:
    """`count` of an image, at most `positive_share` of them positive, the rest negative, by chance."""

    count: int
    positive_share: float

    def __call__(self, assigned: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the positive and of the negative ones, of an assignment (A,)."""
        positive = self.choose((assigned >= 0).nonzero().flatten(), int(self.count * self.positive_share))
        negative = self.choose((assigned == NEGATIVE).nonzero().flatten(), self.count - len(positive))
        return positive, negative

    def choose(self, indices: Tensor, count: int) -> Tensor:
        """At most `count` of the indices."""
        if len(indices) <= count:
            return indices
        return indices[torch.randperm(len(indices), device=indices.device)[:count]]
