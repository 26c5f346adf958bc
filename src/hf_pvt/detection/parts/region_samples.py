"""Which proposals of an image a box head learns from (Fast R-CNN, arXiv 1504.08083, section 2.3).

Legend: see the folder's `__init__`; here n samples of an image, p of them positive.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .assigners import IoUAssigner
from .ground_truth import GroundTruth
from .samplers import RandomSampler


class RegionSamples(NamedTuple):
    """The proposals of one image in the loss: boxes (n, 4), positive ones first, and the objects (p,) they learn.

    `added` (n,) tells which are objects' own boxes.
    """

    boxes: Tensor
    learnt: Tensor
    added: Tensor
    truth: GroundTruth

    @property
    def positive(self) -> Tensor:
        return self.boxes[: len(self.learnt)]

    @property
    def labels(self) -> Tensor:
        """The labels (p,) of the positive ones."""
        return self.truth.labels[self.learnt]

    @property
    def objects(self) -> Tensor:
        """The boxes (p, 4) that the positive ones learn."""
        return self.truth.boxes[self.learnt]

    def target(self, background: int) -> Tensor:
        """The labels (n,) of all."""
        return F.pad(self.labels, (0, len(self.boxes) - len(self.labels)), value=background)


def sample_regions(proposals: Tensor, truth: GroundTruth, assign: IoUAssigner, sample: RandomSampler) -> RegionSamples:
    """Some of an image's proposals (m, 4), in front of which its boxes are put, each learning itself."""
    assigned = assign(proposals, truth.boxes)
    assigned = torch.cat((torch.arange(len(truth.boxes), device=assigned.device), assigned))
    positive, negative = sample(assigned)
    chosen = torch.cat((positive, negative))
    boxes = torch.cat((truth.boxes, proposals))[chosen]
    return RegionSamples(boxes, assigned[positive], chosen < len(truth.boxes), truth)
