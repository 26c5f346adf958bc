"""GFL (arXiv 2006.04388): a score says how good the box is, and a side of a box is a distribution.

Legend: see the folder's `__init__`; D the neck's width, M + 1 distances 0, 1, ..., M in strides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import initialization as init

from ..heads.initialized_layers import Drawn
from .configuration_gfl import GflConfig
from .modeling_adaptive_detector import (
    AdaptiveDetector,
    AdaptiveHead,
    branch,
    every_anchor,
    label_branch,
    positives_of,
)
from .modeling_dense_detector import Matched, Predictions
from .parts.atss_assigner import centres_of
from .parts.ground_truth import Size
from .parts.loss_terms import LossTerm
from .parts.torchvision_ops import torchvision_ops

# Of the terms of box and distribution; the labels' has 1.
BOX_WEIGHT, DISTRIBUTION_WEIGHT = 2.0, 0.25

# A distance that is learnt ends so far before the largest one, or it would lie between that and none.
MARGIN = 0.1


class Integral(Drawn):
    """The mean of a distribution over whole distances (section 3, equation 5)."""

    project: Tensor

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.register_buffer("project", torch.empty(reg_max + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.copy_(self.project, torch.arange(len(self.project)))

    def forward(self, distributions: Tensor) -> Tensor:
        """Logits (..., M + 1) -> distances (...)."""
        # No product of matrices, which autocast would round.
        return (distributions.softmax(dim=-1) * self.project.to(distributions.dtype)).sum(dim=-1)


class GflHead(AdaptiveHead):
    """The tower of the boxes ends in a distribution for each side."""

    def __init__(self, config: GflConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.gfl_cls = label_branch(config)
        self.gfl_reg = branch(config, 4 * (config.reg_max + 1))
        self.integral = Integral(config.reg_max)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels (B, D, H_i, W_i) -> logits (B, A, K) and those of distances (B, A, 4*(M + 1)), level after level."""
        logits = every_anchor([self.gfl_cls(self.cls_convs(level)) for level in levels], self.num_labels)
        towers = [self.reg_convs(level) for level in levels]
        return logits, self.scaled(self.gfl_reg, towers, self.gfl_reg.out_channels)


class GflForObjectDetection(AdaptiveDetector):
    """GFL on any backbone."""

    config: GflConfig
    config_class = GflConfig

    def build_heads(self) -> None:
        super().build_heads()
        self.bbox_head = GflHead(self.config)

    def predict(self, levels: list[Tensor]) -> Predictions:
        return dict(zip(("logits", "box_distributions"), self.bbox_head(levels), strict=True))

    def boxes(self, anchors: Tensor, predictions: Predictions, size: Size | None) -> Tensor:
        """From the anchors' centres (n, 2) a distance to each side."""
        distances = self.bbox_head.integral(by_side(predictions)) * self.strides_of(anchors)
        centres = centres_of(anchors)
        boxes = torch.cat((centres - distances[:, :2], centres + distances[:, 2:]), dim=1)
        return boxes if size is None else torchvision_ops.clip_boxes_to_image(boxes, size)

    def strides_of(self, anchors: Tensor) -> Tensor:
        """The stride (n, 1) of each anchor's (n, 4) level, of which its side is a multiple."""
        return (anchors[:, 2:3] - anchors[:, :1]) / self.config.anchor_scales[0]

    def losses_of(self, batch: list[Matched]) -> dict[str, LossTerm]:
        """Quality focal loss of all anchors; GIoU and distribution focal loss of the positive ones."""
        focal, distances, entropies, weights = [], [], [], []
        for image in batch:
            anchors, logits = image.anchors[image.positive], image.predictions["logits"]
            own = {name: prediction[image.positive] for name, prediction in image.predictions.items()}
            weight = own["logits"].detach().sigmoid().max(dim=1).values  # (p,)
            boxes = self.boxes(anchors, own, size=None)
            distances.append((torchvision_ops.generalized_box_iou_loss(boxes, image.boxes) * weight).sum())
            centres = centres_of(anchors)
            wanted = torch.cat((centres - image.boxes[:, :2], image.boxes[:, 2:] - centres), dim=1)  # (p, 4)
            cross = distribution_focal_loss(by_side(own), wanted / self.strides_of(anchors))
            entropies.append((cross.mean(dim=1) * weight).sum())
            weights.append(weight.sum())
            quality = torch.zeros_like(logits)  # (A, K)
            quality[image.positive, image.labels] = overlaps(boxes.detach(), image.boxes)
            focal.append(quality_focal_loss(logits, quality, self.config.focal_gamma).sum())
        sure = torch.stack(weights).sum().item()
        return {
            "loss_cls": LossTerm(torch.stack(focal).sum(), positives_of(batch)),
            "loss_bbox": LossTerm(BOX_WEIGHT * torch.stack(distances).sum(), sure, least=1),
            "loss_dfl": LossTerm(DISTRIBUTION_WEIGHT * torch.stack(entropies).sum(), sure, least=1),
        }


def by_side(predictions: Predictions) -> Tensor:
    """The logits (n, 4, M + 1) of distances to the left, the top, the right and the bottom."""
    return predictions["box_distributions"].unflatten(1, (4, -1))


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """The intersection over union of each box (n, 4) with the other one (n, 4): (n,)."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    return shared / (torchvision_ops.box_area(boxes) + torchvision_ops.box_area(others) - shared)


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Of logits and qualities in [0, 1], 0 of the background, both of one shape (section 3, equation 2)."""
    distance = (quality - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, quality, reduction="none") * distance**beta


def distribution_focal_loss(distributions: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy to the two whole distances around each of `distances` (n, 4), the nearer one first (equation 6).

    Args:
        distributions: logits (n, 4, M + 1).
    """
    distances = distances.clamp(0, distributions.shape[2] - 1 - MARGIN)
    below = distances.floor()
    logs = -distributions.log_softmax(dim=2)
    near, far = (logs.gather(2, (below + step).long()[..., None]).squeeze(2) for step in (0, 1))  # (n, 4)
    return near * (below + 1 - distances) + far * (distances - below)
