"""Mask R-CNN (arXiv 1703.06870) and, without masks, Faster R-CNN (arXiv 1506.01497): proposals, then boxes, then masks.

Legend: see the folder's `__init__`; K + 1 labels with the background, which is the last one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_mask_rcnn import MaskRcnnConfig
from .modeling_two_stage_detector import TwoStageDetector
from .parts.assigners import IoUAssigner
from .parts.box_coder import decode, encode
from .parts.box_head import BoxHead
from .parts.ground_truth import GroundTruth, Size
from .parts.loss_terms import LossTerm
from .parts.mask_head import MaskHead
from .parts.region_samples import RegionSamples
from .parts.suppression import Detections, detect


class MaskRcnnForInstanceSegmentation(TwoStageDetector):
    """Mask R-CNN on any backbone; `config.with_masks=False` makes it Faster R-CNN."""

    config: MaskRcnnConfig
    config_class = MaskRcnnConfig

    def build_heads(self) -> None:
        super().build_heads()
        config = self.config
        self.box_head = BoxHead(config)
        if config.with_masks:
            self.mask_head = MaskHead(config)
        # A box whose best proposal is good enough takes it even from a better matching box, as published.
        self.assign = IoUAssigner(config.box_positive_iou, config.box_positive_iou, least=config.box_positive_iou)

    def losses(
        self, levels: list[Tensor], predictions: dict[str, Tensor], objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        """The terms of proposals, boxes and masks; no gradient goes through the coordinates of the proposals."""
        config = self.config
        losses = self.rpn_head.losses(levels, predictions, objects, sizes)
        proposals = self.rpn_head.propose(
            levels, predictions, sizes, config.rpn_training_candidates, config.max_proposals
        )
        batch = self.sampled(proposals, objects, self.assign)
        levels = self.poolable(levels)
        losses |= self.box_losses(levels, batch)
        if config.with_masks:
            losses["loss_mask"] = self.mask_loss(self.mask_head, levels, batch)
        return losses

    def box_losses(self, levels: list[Tensor], batch: list[RegionSamples]) -> dict[str, LossTerm]:
        """Cross-entropy of all samples, L1 of the positive ones' deltas, both over the number of *all* samples."""
        logits, deltas = self.box_predictions(self.box_head, levels, [image.boxes for image in batch])
        target = torch.cat([image.target(self.num_labels) for image in batch])
        positive = (target != self.num_labels).nonzero().flatten()
        wanted = [encode(image.positive, image.objects, self.config.box_stds) for image in batch]
        distance = (deltas[positive, target[positive]] - torch.cat(wanted)).abs().sum()
        return {
            "loss_cls": LossTerm(F.cross_entropy(logits, target, reduction="sum"), len(target)),
            "loss_bbox": LossTerm(distance, len(target)),
        }

    def detect(
        self, levels: list[Tensor], predictions: dict[str, Tensor], sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        config = self.config
        proposals = self.rpn_head.propose(levels, predictions, sizes, config.rpn_candidates, config.max_proposals)
        levels = self.poolable(levels)
        logits, deltas = self.box_predictions(self.box_head, levels, proposals)
        counts = [len(boxes) for boxes in proposals]
        scores = logits.softmax(dim=1)[:, :-1].split(counts)
        detections = [
            detect(decode(boxes[:, None], own, config.box_stds, size), score, config)  # (n, K, 4)
            for boxes, own, score, size in zip(proposals, deltas.split(counts), scores, sizes, strict=True)
        ]
        if not config.with_masks:
            return detections, None
        boxes, labels = [found.boxes for found in detections], torch.cat([found.labels for found in detections])
        return detections, self.mask_logits(self.mask_head, levels, boxes, labels).sigmoid()
