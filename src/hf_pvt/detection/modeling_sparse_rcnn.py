"""Sparse R-CNN (arXiv 2011.12450): a few learned boxes, corrected stage after stage; no anchors, no suppression.

Legend: see the folder's `__init__`; P proposals of an image, D the width, T stages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..heads.feature_pyramid import FeaturePyramid
from ..heads.initialized_layers import DrawnLayer
from .configuration_sparse_rcnn import SparseRcnnConfig
from .modeling_detector import Detector
from .parts.box_coder import decode
from .parts.dynamic_head import DynamicHead
from .parts.ground_truth import GroundTruth, Size
from .parts.loss_terms import LossTerm
from .parts.roi_pooling import at_least_float32, pool_boxes
from .parts.set_matching import SetMatcher
from .parts.suppression import Detections
from .parts.torchvision_ops import torchvision_ops

# At first every proposal is the whole image: centre x, centre y, width, height.
WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)
# Samples of a bin along each side when a box is pooled.
SAMPLING_RATIO = 2


class StageOutput(NamedTuple):
    """Of all images' proposals: logits (B, P, K), corrected boxes (B, P, 4), and features (B, P, D)."""

    logits: Tensor
    boxes: Tensor
    features: Tensor


class DrawnEmbedding(DrawnLayer, nn.Embedding):
    """A table that draws itself."""

    bias = None


class LearnedProposals(nn.Module):
    """The same boxes and features for every image (section 3.2)."""

    def __init__(self, config: SparseRcnnConfig) -> None:
        super().__init__()
        self.init_proposal_bboxes = DrawnEmbedding(
            config.num_proposals, 4, draw=lambda weight: init.copy_(weight, weight.new_tensor(WHOLE_IMAGE))
        )
        self.init_proposal_features = DrawnEmbedding(config.num_proposals, config.fpn_hidden_size, draw=init.normal_)

    def forward(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Width, height, width, height (B, 4) of images -> boxes (B, P, 4) in pixels, and features (B, P, D)."""
        shares = at_least_float32(self.init_proposal_bboxes.weight)
        boxes = torchvision_ops.box_convert(shares, "cxcywh", "xyxy") * scales[:, None]  # (B, P, 4)
        return boxes, self.init_proposal_features.weight.expand(len(scales), -1, -1)


class SparseRcnnForObjectDetection(Detector):
    """Sparse R-CNN on any backbone."""

    config: SparseRcnnConfig
    config_class = SparseRcnnConfig

    def build_neck(self, channels: Sequence[int]) -> FeaturePyramid:
        return FeaturePyramid(channels, self.config.fpn_hidden_size)

    def build_heads(self) -> None:
        config = self.config
        self.rpn_head = LearnedProposals(config)
        self.box_heads = nn.ModuleList(DynamicHead(config) for _ in range(config.num_stages))
        self.match = SetMatcher(
            config.focal_alpha, config.focal_gamma, config.cls_weight, config.l1_weight, config.giou_weight
        )

    def predict(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Nothing: all heads ask for places inside the images."""
        return {}

    def predict_inside(self, levels: list[Tensor], sizes: list[Size]) -> dict[str, Tensor]:
        """`stage_logits` (T, B, P, K) and `stage_boxes` (T, B, P, 4)."""
        stages = self.stages(levels, sizes)
        return {
            "stage_logits": torch.stack([stage.logits for stage in stages]),
            "stage_boxes": torch.stack([stage.boxes for stage in stages]),
        }

    def stages(self, levels: list[Tensor], sizes: list[Size]) -> list[StageOutput]:
        """What each stage makes of the boxes of the one before; no gradient goes through their coordinates."""
        config, outputs = self.config, []
        levels = [at_least_float32(level).contiguous() for level in levels]
        boxes, features = self.rpn_head(scales_of(sizes, levels[0]))
        for head in self.box_heads:
            pooled = pool_boxes(levels, config.strides, list(boxes), config.box_pool_size, SAMPLING_RATIO)
            logits, deltas, features = head(features, pooled.to(self.dtype))
            boxes = decode(boxes, at_least_float32(deltas), config.box_stds)  # outside the image, too, as published
            outputs.append(StageOutput(at_least_float32(logits), boxes, features))
            boxes = boxes.detach()
        return outputs

    def losses(
        self, levels: list[Tensor], predictions: dict[str, Tensor], objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        """Three terms of each stage, all over the number of matched pairs in the batch (section 3.4)."""
        losses: dict[str, LossTerm] = {}
        scales = scales_of(sizes, predictions["stage_boxes"])
        stages = zip(predictions["stage_logits"], predictions["stage_boxes"], strict=True)
        for number, (logits, boxes) in enumerate(stages):
            terms = self.stage_losses(logits, boxes, objects, scales)
            losses |= {f"stage{number}_{name}": term for name, term in terms.items()}
        return losses

    def stage_losses(
        self, logits: Tensor, boxes: Tensor, objects: list[GroundTruth], scales: Tensor
    ) -> dict[str, LossTerm]:
        """Focal loss of all proposals; of the matched ones L1 in shares of the image, and generalised overlap."""
        config, target, distances, overlaps, count = self.config, torch.zeros_like(logits), [], [], 0
        for image, (truth, scale) in enumerate(zip(objects, scales, strict=True)):
            proposals, learnt = self.match(logits[image], boxes[image], truth, scale)
            target[image, proposals, truth.labels[learnt]] = 1
            found, wanted = boxes[image, proposals], truth.boxes[learnt]
            distances.append(((found - wanted) / scale).abs().sum())
            overlaps.append(torchvision_ops.generalized_box_iou_loss(found, wanted, reduction="sum"))
            count += len(proposals)
        focal = torchvision_ops.sigmoid_focal_loss(logits, target, config.focal_alpha, config.focal_gamma).sum()
        return {
            "loss_cls": LossTerm(config.cls_weight * focal, count),
            "loss_bbox": LossTerm(config.l1_weight * torch.stack(distances).sum(), count),
            "loss_iou": LossTerm(config.giou_weight * torch.stack(overlaps).sum(), count),
        }

    def detect(
        self, levels: list[Tensor], predictions: dict[str, Tensor], sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        """The best pairs of a proposal and a label of the last stage, whatever their score: a box may come twice."""
        detections = []
        last = zip(predictions["stage_logits"][-1].sigmoid(), predictions["stage_boxes"][-1], strict=True)
        for scores, boxes in last:
            best = scores.flatten().topk(min(self.config.max_detections, scores.numel()))
            proposals, labels = best.indices // scores.shape[1], best.indices % scores.shape[1]
            detections.append(Detections(boxes[proposals], best.values, labels))
        return detections, None


def scales_of(sizes: list[Size], like: Tensor) -> Tensor:
    """Width, height, width, height (B, 4) of images of so many pixels."""
    return like.new_tensor([(width, height, width, height) for height, width in sizes])
