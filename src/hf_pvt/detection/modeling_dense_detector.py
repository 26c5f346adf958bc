"""Dense detectors: every anchor is classified and corrected in one stage.

One differs from another in the head's branches, which anchors are positive, the loss, and how a score is made.

Legend: see the folder's `__init__`; P anchors per place.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .configuration_detector import AnchorDetectorConfig
from .modeling_detector import Detector
from .parts.anchors import Anchors
from .parts.assigners import NEGATIVE
from .parts.box_coder import decode
from .parts.ground_truth import GroundTruth, Size
from .parts.loss_terms import LossTerm
from .parts.suppression import Detections, best_candidates, detect
from .parts.torchvision_ops import torchvision_ops

Predictions = dict[str, Tensor]


class Matched(NamedTuple):
    """The anchors (A, 4) of one image that count, what the head says of them, and the box (A,) that each learns."""

    anchors: Tensor
    predictions: Predictions
    assigned: Tensor
    truth: GroundTruth

    @property
    def positive(self) -> Tensor:
        """The indices (p,) of the anchors that learn a box."""
        return (self.assigned >= 0).nonzero().flatten()

    @property
    def labels(self) -> Tensor:
        """The labels (p,) that the positive anchors learn."""
        return self.truth.labels[self.assigned[self.positive]]

    @property
    def boxes(self) -> Tensor:
        """The boxes (p, 4) that the positive anchors learn."""
        return self.truth.boxes[self.assigned[self.positive]]

    def focal_loss(self, alpha: float, gamma: float) -> Tensor:
        """The sum over all anchors that are not ignored (RetinaNet, arXiv 1708.02002, section 3.2)."""
        logits = self.predictions["logits"]
        target = torch.zeros_like(logits)  # (A, K)
        target[self.positive, self.labels] = 1
        focal: Tensor = torchvision_ops.sigmoid_focal_loss(logits, target, alpha, gamma)
        return focal[self.assigned >= NEGATIVE].sum()


class DenseDetector(Detector):
    """Predictions of all anchors become losses and detections."""

    config: AnchorDetectorConfig

    def build_heads(self) -> None:
        self.anchors = Anchors.of(self.config)

    def assign(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """For each anchor (A_i, 4) of an image's levels the index of its box (n, 4), `NEGATIVE` or `IGNORED`: (A,)."""
        raise NotImplementedError

    def losses_of(self, batch: list[Matched]) -> dict[str, LossTerm]:
        """The terms of the loss."""
        raise NotImplementedError

    def rank(self, predictions: Predictions) -> Tensor:
        """What anchors of one level and image are chosen by: (A,)."""
        return predictions["logits"].max(dim=1).values

    def scores(self, predictions: Predictions) -> Tensor:
        """The score of each anchor and label: (A, K)."""
        return predictions["logits"].sigmoid()

    def factors(self, predictions: Predictions) -> Tensor:
        """What the scores over the threshold are multiplied by: (A,)."""
        logits = predictions["logits"]
        return logits.new_ones(len(logits))

    def boxes(self, anchors: Tensor, predictions: Predictions, size: Size) -> Tensor:
        """The boxes (A, 4) that the anchors become, inside the image."""
        return decode(anchors, predictions["box_deltas"], size=size)

    def losses(
        self, levels: list[Tensor], predictions: Predictions, objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        anchors, batch = self.anchors(levels), []
        counts = [len(level) for level in anchors]
        for image, (truth, size) in enumerate(zip(objects, sizes, strict=True)):
            inside = self.anchors.inside(levels, size)
            own = {name: prediction[image][inside] for name, prediction in predictions.items()}
            candidates = [level[some] for level, some in zip(anchors, inside.split(counts), strict=True)]
            batch.append(Matched(torch.cat(candidates), own, self.assign(candidates, truth.boxes), truth))
        return self.losses_of(batch)

    def detect(
        self, levels: list[Tensor], predictions: Predictions, sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        """Of each level the anchors with the best scores, then NMS.

        As MMDetection 2.x, which published the weights, this keeps the best *anchors* with all of their labels, and
        boxes without area; 3.x and torchvision keep the best pairs of anchor and label.
        """
        config, anchors = self.config, self.anchors(levels)
        counts = [len(level) for level in anchors]
        detections = []
        for image, size in enumerate(sizes):
            by_level = {name: prediction[image].split(counts) for name, prediction in predictions.items()}
            boxes, scores, factors = [], [], []
            for level, level_anchors in enumerate(anchors):
                own = {name: parts[level] for name, parts in by_level.items()}
                best = best_candidates(self.rank(own), config.candidates_per_level)
                own = {name: prediction[best] for name, prediction in own.items()}
                boxes.append(self.boxes(level_anchors[best], own, size))
                scores.append(self.scores(own))
                factors.append(self.factors(own))
            detections.append(detect(torch.cat(boxes), torch.cat(scores), config, torch.cat(factors)))
        return detections, None
