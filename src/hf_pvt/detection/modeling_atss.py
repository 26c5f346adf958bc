"""ATSS (arXiv 1912.02424): which anchors are positive follows from the boxes' own statistics.

Legend: see the folder's `__init__`; D the neck's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_atss import AtssConfig
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
from .parts.box_coder import decode
from .parts.ground_truth import Size
from .parts.loss_terms import LossTerm
from .parts.torchvision_ops import torchvision_ops

# Of the box's term; the other two have 1.
BOX_WEIGHT = 2.0


class AtssHead(AdaptiveHead):
    """The tower of the boxes also says how near to its object's centre an anchor is (FCOS, arXiv 1904.01355)."""

    def __init__(self, config: AtssConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.atss_cls = label_branch(config)
        self.atss_reg = branch(config, 4)
        self.atss_centerness = branch(config, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Levels (B, D, H_i, W_i) -> logits (B, A, K), deltas (B, A, 4) and centerness (B, A), level after level."""
        logits = every_anchor([self.atss_cls(self.cls_convs(level)) for level in levels], self.num_labels)
        towers = [self.reg_convs(level) for level in levels]
        centerness = every_anchor([self.atss_centerness(tower) for tower in towers], 1).squeeze(2)
        return logits, self.scaled(self.atss_reg, towers, 4), centerness


class AtssForObjectDetection(AdaptiveDetector):
    """ATSS on any backbone."""

    config: AtssConfig
    config_class = AtssConfig

    def build_heads(self) -> None:
        super().build_heads()
        self.bbox_head = AtssHead(self.config)

    def predict(self, levels: list[Tensor]) -> Predictions:
        return dict(zip(("logits", "box_deltas", "centerness"), self.bbox_head(levels), strict=True))

    def rank(self, predictions: Predictions) -> Tensor:
        return super().rank(predictions).sigmoid() * self.factors(predictions)

    def factors(self, predictions: Predictions) -> Tensor:
        return predictions["centerness"].sigmoid()

    def boxes(self, anchors: Tensor, predictions: Predictions, size: Size | None) -> Tensor:
        return decode(anchors, predictions["box_deltas"], self.config.box_stds, size)

    def losses_of(self, batch: list[Matched]) -> dict[str, LossTerm]:
        """Focal loss of all anchors; GIoU of the positive ones' boxes, those at the centre first; their centerness.

        The boxes are neither clipped nor, as published, coded and decoded again.
        """
        focal, distances, entropies, weights = [], [], [], []
        for image in batch:
            focal.append(image.focal_loss(self.config.focal_alpha, self.config.focal_gamma))
            anchors = image.anchors[image.positive]
            own = {name: prediction[image.positive] for name, prediction in image.predictions.items()}
            weight = centerness_of(anchors, image.boxes)
            overlap = torchvision_ops.generalized_box_iou_loss(self.boxes(anchors, own, size=None), image.boxes)
            distances.append((overlap * weight).sum())
            entropies.append(F.binary_cross_entropy_with_logits(own["centerness"], weight, reduction="sum"))
            weights.append(weight.sum())
        count, central = positives_of(batch), torch.stack(weights).sum().item()
        return {
            "loss_cls": LossTerm(torch.stack(focal).sum(), count),
            "loss_bbox": LossTerm(BOX_WEIGHT * torch.stack(distances).sum(), central, least=1),
            "loss_centerness": LossTerm(torch.stack(entropies).sum(), count),
        }


def centerness_of(anchors: Tensor, boxes: Tensor) -> Tensor:
    """1 at the centre of a box (n, 4), 0 at its sides, where the anchor's (n, 4) centre is (FCOS, equation 3): (n,)."""
    centres = centres_of(anchors)
    before, after = centres - boxes[:, :2], boxes[:, 2:] - centres  # (n, 2): left and top, right and bottom
    shares = torch.minimum(before, after) / torch.maximum(before, after)
    return shares.prod(dim=1).sqrt()
