"""From scored boxes to detections: thresholds and non-maximum suppression.

A box goes where it overlaps a kept one by more than the threshold. A box without area (clipped to the border) overlaps
nothing, 0/0, and stays, as in MMDetection 2.x.

Legend: see the folder's `__init__`.
"""

from typing import NamedTuple

from torch import Tensor

from ..configuration_detector import AnchorDetectorConfig
from .torchvision_ops import torchvision_ops


class Detections(NamedTuple):
    """What is found in one image, the best first: boxes (n, 4), scores (n,), labels (n,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def detect(boxes: Tensor, scores: Tensor, config: AnchorDetectorConfig, factors: Tensor | None = None) -> Detections:
    """Of all pairs of a box and a label over the threshold, those that survive NMS within their label: the best ones.

    Args:
        boxes: (n, 4), or (n, K, 4) where every label has its own.
        scores: (n, K).
        config: names the two thresholds, and how many detections an image has at most.
        factors: (n,), what the scores over the threshold are multiplied by.
    """
    box, label = (scores > config.score_threshold).nonzero(as_tuple=True)
    chosen = boxes[box] if boxes.dim() == 2 else boxes[box, label]  # (pairs, 4)
    pair_scores = scores[box, label] if factors is None else scores[box, label] * factors[box]
    kept = torchvision_ops.batched_nms(chosen, pair_scores, label, config.nms_threshold)[: config.max_detections]
    return Detections(chosen[kept], pair_scores[kept], label[kept])


def best_candidates(scores: Tensor, most: int) -> Tensor:
    """The indices of the best `most` of scores (n,)."""
    return scores.topk(min(most, len(scores))).indices
