"""Mask R-CNN (arXiv 1703.06870) and, without masks, Faster R-CNN (arXiv 1506.01497): proposals, then boxes, then masks.

Legend: see the folder's `__init__`; K + 1 labels with the background, which is the last one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .assigners import IoUAssigner
from .box_coder import decode, encode
from .box_head import BoxHead
from .configuration_mask_rcnn import MaskRcnnConfig
from .ground_truth import GroundTruth, Size
from .loss_terms import LossTerm
from .mask_head import MaskHead, mask_loss, mask_targets
from .modeling_detector import Detector
from .necks import PooledNeck
from .region_proposals import RegionProposalNetwork
from .roi_pooling import at_least_float32, pool_boxes
from .samplers import RandomSampler
from .suppression import Detections, detect


class Sampled(NamedTuple):
    """The proposals of one image in the loss: boxes (n, 4), positive ones first, and the objects (p,) they learn."""

    boxes: Tensor
    learnt: Tensor
    truth: GroundTruth

    @property
    def positive(self) -> Tensor:
        return self.boxes[: len(self.learnt)]

    @property
    def labels(self) -> Tensor:
        """The labels (p,) of the positive ones."""
        return self.truth.labels[self.learnt]


class MaskRcnnForInstanceSegmentation(Detector):
    """Mask R-CNN on any backbone; `config.with_masks=False` makes it Faster R-CNN."""

    config: MaskRcnnConfig
    config_class = MaskRcnnConfig
    # The segmentation pipeline opens a folder by the last one.
    auto_classes = ("AutoModelForInstanceSegmentation", "AutoModelForObjectDetection", "AutoModelForImageSegmentation")

    def build_neck(self, channels: Sequence[int]) -> PooledNeck:
        return PooledNeck(channels, self.config.fpn_hidden_size)

    def build_heads(self) -> None:
        config = self.config
        self.rpn_head = RegionProposalNetwork(config)
        self.box_head = BoxHead(config)
        if config.with_masks:
            self.mask_head = MaskHead(config)
        # A box whose best proposal is good enough takes it even from a better matching box, as published.
        self.assign = IoUAssigner(config.box_positive_iou, config.box_positive_iou, least=config.box_positive_iou)
        self.sample = RandomSampler(config.box_samples, positive_share=0.25)

    @property
    def has_masks(self) -> bool:
        return self.config.with_masks

    def predict(self, levels: list[Tensor]) -> dict[str, Tensor]:
        return self.rpn_head(levels)

    def losses(
        self, levels: list[Tensor], predictions: dict[str, Tensor], objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        """The terms of proposals, boxes and masks; no gradient goes through the coordinates of the proposals."""
        losses = self.rpn_head.losses(levels, predictions, objects, sizes)
        proposals = self.rpn_head.propose(levels, predictions, sizes, self.config.rpn_training_candidates)
        batch = [self.sampled(boxes, truth) for boxes, truth in zip(proposals, objects, strict=True)]
        levels = self.poolable(levels)
        losses |= self.box_losses(levels, batch)
        if self.config.with_masks:
            positive = [image.positive for image in batch]
            labels = torch.cat([image.labels for image in batch])
            logits = self.mask_logits(levels, positive, labels)
            targets = [
                mask_targets(image.positive, image.truth.masks, image.learnt, logits.shape[-1]) for image in batch
            ]
            losses["loss_mask"] = mask_loss(logits, torch.cat(targets))
        return losses

    def sampled(self, proposals: Tensor, truth: GroundTruth) -> Sampled:
        """Some of an image's proposals, in front of which its boxes are put, each learning itself."""
        assigned = self.assign(proposals, truth.boxes)
        assigned = torch.cat((torch.arange(len(truth.boxes), device=assigned.device), assigned))
        positive, negative = self.sample(assigned)
        boxes = torch.cat((truth.boxes, proposals))
        return Sampled(boxes[torch.cat((positive, negative))], assigned[positive], truth)

    def box_losses(self, levels: list[Tensor], batch: list[Sampled]) -> dict[str, LossTerm]:
        """Cross-entropy of all samples, L1 of the positive ones' deltas, both over the number of *all* samples."""
        logits, deltas = self.box_predictions(levels, [image.boxes for image in batch])
        background = self.num_labels
        target = torch.cat(
            [F.pad(image.labels, (0, len(image.boxes) - len(image.labels)), value=background) for image in batch]
        )
        positive = (target != background).nonzero().flatten()
        wanted = [encode(image.positive, image.truth.boxes[image.learnt], self.config.box_stds) for image in batch]
        distance = (deltas[positive, target[positive]] - torch.cat(wanted)).abs().sum()
        return {
            "loss_cls": LossTerm(F.cross_entropy(logits, target, reduction="sum"), len(target)),
            "loss_bbox": LossTerm(distance, len(target)),
        }

    def detect(
        self, levels: list[Tensor], predictions: dict[str, Tensor], sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        config = self.config
        proposals = self.rpn_head.propose(levels, predictions, sizes, config.rpn_candidates)
        levels = self.poolable(levels)
        logits, deltas = self.box_predictions(levels, proposals)
        counts = [len(boxes) for boxes in proposals]
        scores = logits.softmax(dim=1)[:, :-1].split(counts)
        detections = [
            detect(decode(boxes[:, None], own, config.box_stds, size), score, config)  # (n, K, 4)
            for boxes, own, score, size in zip(proposals, deltas.split(counts), scores, sizes, strict=True)
        ]
        if not config.with_masks:
            return detections, None
        labels = torch.cat([found.labels for found in detections])
        return detections, self.mask_logits(levels, [found.boxes for found in detections], labels).sigmoid()

    def box_predictions(self, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (n, K + 1) and deltas (n, K, 4) of all images' boxes, in float32."""
        pooled = self.pooled(levels, boxes, self.config.box_pool_size)
        logits, deltas = self.box_head(pooled)
        return at_least_float32(logits), at_least_float32(deltas)

    def mask_logits(self, levels: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Logits (n, 28, 28) of the masks of all images' boxes, in float32."""
        return at_least_float32(self.mask_head(self.pooled(levels, boxes, self.config.mask_pool_size), labels))

    def poolable(self, levels: list[Tensor]) -> list[Tensor]:
        """The levels that boxes are pooled from, as RoIAlign reads them: copied once for boxes and masks.

        The level beyond the backbone's is for proposals alone.
        """
        return [at_least_float32(level).contiguous() for level in levels[: self.config.backbone_levels]]

    def pooled(self, levels: list[Tensor], boxes: list[Tensor], side: int) -> Tensor:
        """(n, D, side, side) of all images' boxes, from poolable levels."""
        return pool_boxes(levels, self.config.strides[: len(levels)], boxes, side).to(self.dtype)
