"""Which anchor or proposal learns which box (Faster R-CNN, arXiv 1506.01497, section 3.1.2).

Legend: see the folder's `__init__`; here A are the anchors or proposals of one image, n its boxes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops

NEGATIVE, IGNORED = -1, -2


@dataclass(frozen=True)
class IoUAssigner:
    """By overlap with the boxes: below `negative` background, from `positive` on the best box, between ignored.

    Afterwards each box whose best overlap is at least `least` takes all anchors that tie for it, even from a better
    matching box; of several such boxes the last one. (torchvision gives these anchors back to *their* best box, and
    knows no `least`.) A box that overlaps nothing takes nothing; MMDetection gives it every anchor.
    """

    positive: float
    negative: float
    least: float

    def __call__(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """For each anchor (A, 4) the index of its box (n, 4), `NEGATIVE` or `IGNORED`: (A,)."""
        if not len(boxes):
            return anchors.new_full((len(anchors),), NEGATIVE, dtype=torch.int64)
        overlaps = torchvision_ops.box_iou(boxes, anchors)  # (n, A)
        best, assigned = overlaps.max(dim=0)  # (A,)
        assigned[best < self.positive] = IGNORED
        assigned[best < self.negative] = NEGATIVE
        best_of_box = overlaps.max(dim=1, keepdim=True).values  # (n, 1)
        ties = (overlaps == best_of_box) & (best_of_box >= self.least) & (best_of_box > 0)
        order = torch.arange(1, len(boxes) + 1, device=boxes.device)[:, None]
        last = (ties * order).max(dim=0).values  # (A,), 0 where no box ties
        return torch.where(last > 0, last - 1, assigned)
