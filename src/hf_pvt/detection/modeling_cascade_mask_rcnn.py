"""Cascade Mask R-CNN and, without masks, Cascade R-CNN (arXiv 1906.09756): boxes are corrected several times.

Each stage looks at the boxes that the one before it has corrected, with heads of its own, and learns from boxes that
overlap their object by more.

Legend: see the folder's `__init__`; n boxes of all images, K + 1 labels with the background, which is the last one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..heads.initialized_layers import pytorch_draw
from .configuration_cascade_mask_rcnn import CascadeMaskRcnnConfig
from .modeling_two_stage_detector import TwoStageDetector
from .parts.assigners import IoUAssigner
from .parts.box_coder import decode
from .parts.box_head import ConvolvedBoxHead
from .parts.ground_truth import GroundTruth, Size
from .parts.loss_terms import LossTerm
from .parts.mask_head import MaskHead
from .parts.region_proposals import RegionProposalNetwork
from .parts.region_samples import RegionSamples
from .parts.roi_pooling import at_least_float32
from .parts.suppression import Detections, detect
from .parts.torchvision_ops import torchvision_ops


class CascadeRegionProposals(RegionProposalNetwork):
    """Trained on anchors that lie inside the image, with a smooth L1, as published."""

    def __init__(self, config: CascadeMaskRcnnConfig) -> None:
        super().__init__(config)
        self.beta = config.rpn_smooth_l1_beta

    def trained(self, levels: Sequence[Tensor], anchors: Tensor, size: Size) -> Tensor:
        height, width = size
        x1, y1, x2, y2 = anchors.unbind(1)
        return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)

    def distance(self, deltas: Tensor, wanted: Tensor) -> Tensor:
        return F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=self.beta)


class CascadeMaskRcnnForInstanceSegmentation(TwoStageDetector):
    """Cascade Mask R-CNN on any backbone; `config.with_masks=False` makes it Cascade R-CNN."""

    config: CascadeMaskRcnnConfig
    config_class = CascadeMaskRcnnConfig

    def build_heads(self) -> None:
        super().build_heads()
        config, stages = self.config, range(self.config.num_stages)
        self.box_heads = nn.ModuleList(ConvolvedBoxHead(config) for _ in stages)
        if config.with_masks:
            # As run by MMDetection 2.13, which meant to draw them as Mask R-CNN's.
            self.mask_heads = nn.ModuleList(MaskHead(config, draw=pytorch_draw, first_bias=None) for _ in stages)
        # Other than in Mask R-CNN no object takes a box that overlaps another one more.
        self.assigners = [IoUAssigner(overlap, overlap, least=float("inf")) for overlap in config.stage_positive_ious]

    def build_proposals(self) -> CascadeRegionProposals:
        return CascadeRegionProposals(self.config)

    def losses(
        self, levels: list[Tensor], predictions: dict[str, Tensor], objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        """The terms of proposals and of each stage; no gradient goes through the coordinates of boxes to a stage."""
        config = self.config
        losses = self.rpn_head.losses(levels, predictions, objects, sizes)
        boxes = self.rpn_head.propose(
            levels, predictions, sizes, config.rpn_training_candidates, config.max_training_proposals
        )
        levels = self.poolable(levels)
        for stage, weight in enumerate(config.stage_loss_weights):
            batch = self.sampled(boxes, objects, self.assigners[stage])
            logits, deltas = self.box_predictions(self.box_heads[stage], levels, [image.boxes for image in batch])
            terms = self.box_losses(stage, logits, deltas, batch)
            if config.with_masks:
                terms["loss_mask"] = self.mask_loss(self.mask_heads[stage], levels, batch)
            losses |= {f"s{stage}.{name}": LossTerm(weight * term.total, term.number) for name, term in terms.items()}
            boxes = self.next_proposals(stage, logits, deltas, batch, sizes)
        return losses

    def box_losses(self, stage: int, logits: Tensor, deltas: Tensor, batch: list[RegionSamples]) -> dict[str, LossTerm]:
        """Cross-entropy of all samples, and how the positive ones' boxes miss their objects (arXiv 1902.09630).

        Both over the number of *all* samples.
        """
        target = torch.cat([image.target(self.num_labels) for image in batch])
        positive = (target != self.num_labels).nonzero().flatten()
        reference = torch.cat([image.positive for image in batch])
        found = decode(reference, deltas[positive, target[positive]], self.config.stage_box_stds[stage])
        objects = torch.cat([image.objects for image in batch])
        missed = torchvision_ops.generalized_box_iou_loss(found, objects, reduction="sum")
        return {
            "loss_cls": LossTerm(F.cross_entropy(logits, target, reduction="sum"), len(target)),
            "loss_bbox": LossTerm(self.config.box_loss_weight * missed, len(target)),
        }

    @torch.no_grad()
    def next_proposals(
        self, stage: int, logits: Tensor, deltas: Tensor, batch: list[RegionSamples], sizes: list[Size]
    ) -> list[Tensor]:
        """The samples of each image, corrected, those of an object by its label.

        All but the objects' own boxes, which the next stage adds again.
        """
        target = torch.cat([image.target(self.num_labels) for image in batch])
        labels = torch.where(target == self.num_labels, likeliest(logits), target)
        boxes = self.corrected(stage, [image.boxes for image in batch], deltas, labels, sizes)
        return [some[~image.added] for some, image in zip(boxes, batch, strict=True)]

    def corrected(
        self, stage: int, boxes: list[Tensor], deltas: Tensor, labels: Tensor, sizes: list[Size]
    ) -> list[Tensor]:
        """The boxes of each image, moved by the deltas (n, K, 4) of their labels (n,), inside the image."""
        stds, counts = self.config.stage_box_stds[stage], [len(some) for some in boxes]
        own = deltas[torch.arange(len(labels), device=labels.device), labels].split(counts)  # (n_i, 4) each
        return [decode(some, delta, stds, size) for some, delta, size in zip(boxes, own, sizes, strict=True)]

    def detect(
        self, levels: list[Tensor], predictions: dict[str, Tensor], sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        config = self.config
        proposals = self.rpn_head.propose(levels, predictions, sizes, config.rpn_candidates, config.max_proposals)
        levels = self.poolable(levels)
        detections = self.detect_in(levels, proposals, sizes)
        return detections, self.mask_probabilities(levels, detections) if config.with_masks else None

    def detect_in(self, levels: list[Tensor], proposals: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """The last stage's boxes with the mean of all stages' logits, from poolable levels."""
        config, last = self.config, self.config.num_stages - 1
        boxes, counts, logits = proposals, [len(some) for some in proposals], []
        for stage, head in enumerate(self.box_heads):
            own_logits, deltas = self.box_predictions(head, levels, boxes)
            logits.append(own_logits)
            if stage < last:
                boxes = self.corrected(stage, boxes, deltas, likeliest(own_logits), sizes)
        scores = torch.stack(logits).mean(dim=0).softmax(dim=1)[:, :-1].split(counts)  # (n_i, K) each
        return [
            detect(decode(some[:, None], own, config.stage_box_stds[last], size), score, config)  # (n_i, K, 4)
            for some, own, score, size in zip(boxes, deltas.split(counts), scores, sizes, strict=True)
        ]

    def mask_probabilities(self, levels: list[Tensor], detections: list[Detections]) -> Tensor:
        """The mean of all stages' probabilities (detections, 28, 28), from poolable levels."""
        pooled = self.pooled(levels, [found.boxes for found in detections], self.config.mask_pool_size)
        labels = torch.cat([found.labels for found in detections])
        stages = [at_least_float32(head(pooled, labels)).sigmoid() for head in self.mask_heads]
        return torch.stack(stages).mean(dim=0)


def likeliest(logits: Tensor) -> Tensor:
    """The label (n,) of logits (n, K + 1), whatever the background's is."""
    return logits[:, :-1].argmax(dim=1)
