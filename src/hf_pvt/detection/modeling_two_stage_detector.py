"""Detectors with two stages: proposals of where anything may be, then heads that look at each of them.

One differs from another in its proposals' training, how often boxes are corrected, the heads, and the loss of boxes.

Legend: see the folder's `__init__`; n boxes of all images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..heads.feature_pyramid import PooledNeck
from .configuration_detector import TwoStageConfig
from .modeling_detector import Detector
from .parts.assigners import IoUAssigner
from .parts.ground_truth import GroundTruth
from .parts.loss_terms import LossTerm
from .parts.mask_head import mask_loss, mask_targets
from .parts.region_proposals import RegionProposalNetwork
from .parts.region_samples import RegionSamples, sample_regions
from .parts.roi_pooling import at_least_float32, pool_boxes
from .parts.samplers import RandomSampler


class TwoStageDetector(Detector):
    """Proposals, and what is inside of boxes."""

    config: TwoStageConfig
    # The segmentation pipeline opens a folder by the last one.
    auto_classes = ("AutoModelForInstanceSegmentation", "AutoModelForObjectDetection", "AutoModelForImageSegmentation")

    def build_neck(self, channels: Sequence[int]) -> PooledNeck:
        return PooledNeck(channels, self.config.fpn_hidden_size)

    def build_heads(self) -> None:
        self.rpn_head = self.build_proposals()
        self.sample = RandomSampler(self.config.box_samples, positive_share=0.25)

    def build_proposals(self) -> RegionProposalNetwork:
        return RegionProposalNetwork(self.config)

    @property
    def has_masks(self) -> bool:
        return self.config.with_masks

    def predict(self, levels: list[Tensor]) -> dict[str, Tensor]:
        return self.rpn_head(levels)

    def sampled(self, boxes: list[Tensor], objects: list[GroundTruth], assign: IoUAssigner) -> list[RegionSamples]:
        """The boxes in the loss, of each image's (n, 4)."""
        return [sample_regions(some, truth, assign, self.sample) for some, truth in zip(boxes, objects, strict=True)]

    def box_predictions(self, head: nn.Module, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (n, K + 1), the last one the background's, and deltas (n, K, 4) of all images' boxes, in float32."""
        logits, deltas = head(self.pooled(levels, boxes, self.config.box_pool_size))
        return at_least_float32(logits), at_least_float32(deltas)

    def mask_logits(self, head: nn.Module, levels: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Logits (n, 28, 28) of the masks of all images' boxes, in float32."""
        return at_least_float32(head(self.pooled(levels, boxes, self.config.mask_pool_size), labels))

    def mask_loss(self, head: nn.Module, levels: list[Tensor], batch: list[RegionSamples]) -> LossTerm:
        """Of the masks inside the positive boxes."""
        labels = torch.cat([image.labels for image in batch])
        logits = self.mask_logits(head, levels, [image.positive for image in batch], labels)
        side = logits.shape[-1]
        targets = [mask_targets(image.positive, image.truth.masks, image.learnt, side) for image in batch]
        return mask_loss(logits, torch.cat(targets))

    def poolable(self, levels: list[Tensor]) -> list[Tensor]:
        """The levels that boxes are pooled from, as RoIAlign reads them: copied once for boxes and masks.

        The level beyond the backbone's is for proposals alone.
        """
        return [at_least_float32(level).contiguous() for level in levels[: self.config.backbone_levels]]

    def pooled(self, levels: list[Tensor], boxes: list[Tensor], side: int) -> Tensor:
        """(n, D, side, side) of all images' boxes, from poolable levels."""
        return pool_boxes(levels, self.config.strides[: len(levels)], boxes, side).to(self.dtype)
