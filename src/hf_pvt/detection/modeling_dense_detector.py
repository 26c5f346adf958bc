"""Dense detectors: every anchor is classified and corrected in one stage.

One differs from another in the head's branches, which anchors are positive, the loss, and how a score is made.

Legend: see the folder's `__init__`; P anchors per place.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .anchors import Anchors
from .box_coder import decode
from .configuration_anchors import AnchorDetectorConfig
from .ground_truth import GroundTruth, Size
from .loss_terms import LossTerm
from .modeling_detector import Detector
from .suppression import Detections, best_candidates, detect

Predictions = dict[str, Tensor]


class Matched(NamedTuple):
    """The anchors (A, 4) of one image that count, what the head says of them, and the box (A,) that each learns."""

    anchors: Tensor
    predictions: Predictions
    assigned: Tensor
    truth: GroundTruth


class DenseDetector(Detector):
    """Predictions of all anchors become losses and detections."""

    config: AnchorDetectorConfig

    def build_heads(self) -> None:
        self.anchors = Anchors.of(self.config)

    def assign(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """For each anchor the index of its box, `NEGATIVE` or `IGNORED`: (A,)."""
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

    def boxes(self, anchors: Tensor, predictions: Predictions, size: Size) -> Tensor:
        """The boxes (A, 4) that the anchors become, inside the image."""
        return decode(anchors, predictions["box_deltas"], size=size)

    def losses(
        self, levels: list[Tensor], predictions: Predictions, objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        anchors, batch = torch.cat(self.anchors(levels)), []
        for image, (truth, size) in enumerate(zip(objects, sizes, strict=True)):
            inside = self.anchors.inside(levels, size)
            own = {name: prediction[image][inside] for name, prediction in predictions.items()}
            batch.append(Matched(anchors[inside], own, self.assign(anchors[inside], truth.boxes), truth))
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
            boxes, scores = [], []
            for level, level_anchors in enumerate(anchors):
                own = {name: parts[level] for name, parts in by_level.items()}
                best = best_candidates(self.rank(own), config.candidates_per_level)
                own = {name: prediction[best] for name, prediction in own.items()}
                boxes.append(self.boxes(level_anchors[best], own, size))
                scores.append(self.scores(own))
            detections.append(detect(torch.cat(boxes), torch.cat(scores), config))
        return detections, None
