"""Region proposal network (Faster R-CNN, arXiv 1506.01497, section 3): where anything may be.

Legend: see the folder's `__init__`; P anchors per place, D the neck's width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ...heads.initialized_layers import DrawnConv2d
from .anchors import Anchors, per_anchor
from .assigners import IoUAssigner
from .box_coder import decode, encode
from .ground_truth import GroundTruth, Size
from .loss_terms import LossTerm
from .samplers import RandomSampler
from .suppression import best_candidates
from .torchvision_ops import torchvision_ops


class RegionProposalNetwork(nn.Module):
    """A convolution shared by the levels, then for each anchor whether it is an object, and its deltas."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, anchors = config.fpn_hidden_size, config.anchors_per_place
        self.nms_threshold = config.rpn_nms_threshold
        self.anchors = Anchors.of(config)
        convolution = partial(DrawnConv2d, draw=partial(init.normal_, std=config.initializer_range))
        self.rpn_conv = convolution(width, width, kernel_size=3, padding=1)
        self.rpn_cls = convolution(width, anchors, kernel_size=1)
        self.rpn_reg = convolution(width, anchors * 4, kernel_size=1)
        self.assign = IoUAssigner(config.rpn_positive_iou, config.rpn_negative_iou, least=config.rpn_negative_iou)
        self.sample = RandomSampler(config.rpn_samples, positive_share=0.5)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Levels (B, D, H_i, W_i) -> `objectness` (B, A) and `proposal_deltas` (B, A, 4), level after level."""
        hidden = [self.rpn_conv(level).relu_() for level in levels]
        objectness = [per_anchor(self.rpn_cls(level), 1) for level in hidden]
        deltas = [per_anchor(self.rpn_reg(level), 4) for level in hidden]
        return {"objectness": torch.cat(objectness, dim=1).squeeze(2), "proposal_deltas": torch.cat(deltas, dim=1)}

    def losses(
        self,
        levels: Sequence[Tensor],
        predictions: dict[str, Tensor],
        objects: Sequence[GroundTruth],
        sizes: Sequence[Size],
    ) -> dict[str, LossTerm]:
        """Cross-entropy and L1 of a sample of anchors, divided by its size over the batch.

        An image's positives, and negatives, count as one where there is none, as published.
        """
        anchors, count = torch.cat(self.anchors(levels)), 0
        entropies, distances = [], []
        for image, (truth, size) in enumerate(zip(objects, sizes, strict=True)):
            inside = self.trained(levels, anchors, size)
            candidates = anchors[inside]
            objectness, deltas = (predictions[name][image][inside] for name in ("objectness", "proposal_deltas"))
            assigned = self.assign(candidates, truth.boxes)
            positive, negative = self.sample(assigned)
            chosen = objectness[torch.cat((positive, negative))]
            target = (torch.arange(len(chosen), device=chosen.device) < len(positive)).to(chosen.dtype)
            entropies.append(F.binary_cross_entropy_with_logits(chosen, target, reduction="sum"))
            wanted = encode(candidates[positive], truth.boxes[assigned[positive]])
            distances.append(self.distance(deltas[positive], wanted))
            count += max(len(positive), 1) + max(len(negative), 1)
        return {
            "loss_rpn_cls": LossTerm(torch.stack(entropies).sum(), count),
            "loss_rpn_bbox": LossTerm(torch.stack(distances).sum(), count),
        }

    def trained(self, levels: Sequence[Tensor], anchors: Tensor, size: Size) -> Tensor:
        """Which of all anchors (A, 4) count in training, for an image of this size: (A,)."""
        return self.anchors.inside(levels, size)

    def distance(self, deltas: Tensor, wanted: Tensor) -> Tensor:
        """The sum of what deltas (n, 4) lack."""
        return F.l1_loss(deltas, wanted, reduction="sum")

    @torch.no_grad()
    def propose(
        self,
        levels: Sequence[Tensor],
        predictions: dict[str, Tensor],
        sizes: Sequence[Size],
        candidates: int,
        most: int,
    ) -> list[Tensor]:
        """At most `most` boxes (n, 4) of each image, the best first: `candidates` of each level, then NMS within it."""
        anchors = self.anchors(levels)
        counts = [len(level) for level in anchors]
        proposals = []
        for image, size in enumerate(sizes):
            by_level = [predictions[name][image].split(counts) for name in ("objectness", "proposal_deltas")]
            boxes, scores, level = [], [], []
            for index, (level_anchors, objectness, deltas) in enumerate(zip(anchors, *by_level, strict=True)):
                best = best_candidates(objectness, candidates)
                boxes.append(decode(level_anchors[best], deltas[best], size=size))
                scores.append(objectness[best].sigmoid())
                level.append(torch.full_like(best, index))
            proposals.append(self.without_overlaps(torch.cat(boxes), torch.cat(scores), torch.cat(level))[:most])
        return proposals

    def without_overlaps(self, boxes: Tensor, scores: Tensor, level: Tensor) -> Tensor:
        """Of boxes (n, 4) those with an area that overlap no better one of their level much, the best first."""
        large = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, scores, level = boxes[large], scores[large], level[large]
        kept = torchvision_ops.batched_nms(boxes, scores, level, self.nms_threshold)
        return boxes[kept]
