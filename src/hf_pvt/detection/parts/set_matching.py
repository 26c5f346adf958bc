"""Which proposal learns which object: one for each, at the least cost of all (DETR, arXiv 2005.12872, section 3.1).

Legend: see the folder's `__init__`; here P proposals of an image, n its objects.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ground_truth import GroundTruth
from .torchvision_ops import torchvision_ops

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # detections need no scipy, and a loss says so
    linear_sum_assignment = None

# Under the logarithms of the cost, as published; the loss itself needs none.
EPSILON = 1e-12

# What no cost reaches: of weights that are no numbers any more, which the loss says.
HOPELESS = 1e9


@dataclass(frozen=True)
class SetMatcher:
    """By the focal cost of the labels, the distance of the corners in shares of the image, and the overlap.

    DETR's own matcher takes probabilities, and centres and sizes (Sparse R-CNN, arXiv 2011.12450, section 3.4).
    """

    focal_alpha: float
    focal_gamma: float
    cls_weight: float
    l1_weight: float
    giou_weight: float

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, truth: GroundTruth, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The proposals (m,), ascending, and the objects (m,) that they learn, of one image; m is min(P, n).

        Args:
            logits: (P, K).
            boxes: (P, 4) in pixels.
            scale: width, height, width, height (4,) of the image inside its padding.

        Raises:
            ImportError: scipy is not installed.
        """
        if linear_sum_assignment is None:
            raise ImportError(
                "the loss of a Sparse R-CNN needs scipy, which is not there; install it with pip install "
                '"hf_pvt[detection]".'
            )
        cost = self.cls_weight * self.focal_cost(logits)[:, truth.labels]
        cost = cost + self.l1_weight * torch.cdist(boxes / scale, truth.boxes / scale, p=1)
        cost = cost - self.giou_weight * torchvision_ops.generalized_box_iou(boxes, truth.boxes)  # (P, n)
        cost = cost.nan_to_num(HOPELESS, HOPELESS, -HOPELESS)
        proposals, objects = (torch.from_numpy(indices) for indices in linear_sum_assignment(cost.cpu().numpy()))
        return proposals.to(boxes.device), objects.to(boxes.device)

    def focal_cost(self, logits: Tensor) -> Tensor:
        """What the focal loss (arXiv 1708.02002) of each label (P, K) would be more if it were there than if not."""
        probability = logits.sigmoid()
        there = -(probability + EPSILON).log() * self.focal_alpha * (1 - probability) ** self.focal_gamma
        absent = -(1 - probability + EPSILON).log() * (1 - self.focal_alpha) * probability**self.focal_gamma
        return there - absent
