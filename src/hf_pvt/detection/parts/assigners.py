"""Which anchor or proposal learns which box (Faster R-CNN, arXiv 1506.01497, section 3.1.2).

Legend: see the folder's `__init__`; here A are the anchors or proposals of one image, n its boxes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops

NEGATIVE, IGNORED = -1, -2

# Boxes whose overlaps with all anchors are held at once: of a photograph with a thousand, all would take gigabytes.
BOXES_AT_ONCE = 32


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
        best = anchors.new_zeros(len(anchors))
        assigned = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        taken = assigned
        if not len(anchors):  # proposals of weights that are no numbers any more; the loss says so
            return assigned
        for first in range(0, len(boxes), BOXES_AT_ONCE):
            overlaps = torchvision_ops.box_iou(boxes[first : first + BOXES_AT_ONCE], anchors)  # (n, A)
            best_of_some, box = overlaps.max(dim=0)  # (A,)
            assigned = torch.where(best_of_some > best, first + box, assigned)
            best = torch.maximum(best, best_of_some)
            best_of_box = overlaps.max(dim=1, keepdim=True).values  # (n, 1)
            ties = (overlaps == best_of_box) & (best_of_box >= self.least) & (best_of_box > 0)
            order = torch.arange(first, first + len(overlaps), device=boxes.device)[:, None]
            taken = torch.maximum(taken, torch.where(ties, order, NEGATIVE).max(dim=0).values)  # the last box
        assigned[best < self.positive] = IGNORED
        assigned[best < self.negative] = NEGATIVE
        return torch.where(taken >= 0, taken, assigned)
