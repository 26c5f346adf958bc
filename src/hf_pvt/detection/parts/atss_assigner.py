"""Which anchor learns which box, by statistics of the box itself (ATSS, arXiv 1912.02424, section 4).

Legend: see the folder's `__init__`; C candidates of a box, at most `candidates` of each level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .assigners import BOXES_AT_ONCE, NEGATIVE
from .torchvision_ops import torchvision_ops

# In pixels, how far the centre of a positive anchor is inside its box.
LEAST_DISTANCE = 0.01


@dataclass(frozen=True)
class AtssAssigner:
    """Of each level the anchors with the nearest centres, where they overlap the box enough and lie inside it.

    Enough is the mean of the candidates' overlaps plus their standard deviation. An anchor that several boxes claim
    learns the one that it overlaps most. Nothing is ignored.
    """

    candidates: int

    def __call__(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """For each anchor (A_i, 4) of the levels the index of its box (n, 4), or `NEGATIVE`: (A,)."""
        every = torch.cat(list(anchors))
        best = every.new_zeros(len(every))
        assigned = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        for first in range(0, len(boxes), BOXES_AT_ONCE):
            overlaps = self.claims(anchors, boxes[first : first + BOXES_AT_ONCE])  # (n, A)
            best_of_some, box = overlaps.max(dim=0)  # (A,)
            assigned = torch.where(best_of_some > best, first + box, assigned)
            best = torch.maximum(best, best_of_some)
        return assigned

    def claims(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The overlap of each box with the anchors that it claims, 0 with all others: (n, A)."""
        every, candidates = torch.cat(list(anchors)), self.nearest(anchors, boxes)  # (n, C)
        overlaps = torchvision_ops.box_iou(boxes, every)  # (n, A)
        of_candidates = overlaps.gather(1, candidates)
        enough = of_candidates.mean(dim=1) + of_candidates.std(dim=1)  # of a sample: divided by C - 1
        centres = centres_of(every)[candidates]  # (n, C, 2)
        inside = torch.cat((centres - boxes[:, None, :2], boxes[:, None, 2:] - centres), dim=2)  # (n, C, 4)
        positive = (of_candidates >= enough[:, None]) & (inside.min(dim=2).values > LEAST_DISTANCE)
        return torch.zeros_like(overlaps).scatter(1, candidates, of_candidates * positive)

    def nearest(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The indices of each box's candidates among the anchors of all levels: (n, C)."""
        nearest, first = [], 0
        for level in anchors:
            distances = torch.cdist(centres_of(boxes), centres_of(level), compute_mode="donot_use_mm_for_euclid_dist")
            some = min(self.candidates, len(level))
            nearest.append(first + distances.topk(some, dim=1, largest=False).indices)  # (n, some)
            first += len(level)
        return torch.cat(nearest, dim=1)


def centres_of(boxes: Tensor) -> Tensor:
    """The centres (n, 2) of boxes (n, 4)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2
