"""What a model says of a photograph: scores, labels of pixels, or objects."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from opened_models import OpenedModel
from PIL import Image

import hf_pvt
from hf_pvt.drawing.segmentations import BACKGROUND, PAINT_ALPHA, distinct_colour, outline_of

MOST_LABELS = 24  # in a legend; the smaller ones have a line together
OUTLINE = 2  # pixels

Section = tuple[NDArray[np.float32], str]  # how much of a line's colour each pixel (H, W) takes, and the line


@torch.inference_mode()
def scores_of(opened: OpenedModel, photograph: Image.Image) -> dict[str, float]:
    """The probability of each label; independent ones for models of several labels per image."""
    logits = opened.model(**opened.processor(photograph, return_tensors="pt")).logits[0].float()
    several = opened.model.config.problem_type == "multi_label_classification"
    scores = logits.sigmoid() if several else logits.softmax(0)
    return {opened.names[label]: score for label, score in enumerate(scores.tolist())}


@dataclass(frozen=True)
class Segmentation:
    """Labels (H, W) of a photograph at the screen's size; `alone` is the line of the legend that is shown, or all."""

    photograph: Image.Image
    labels: NDArray[np.int64]
    names: dict[int, str]
    alone: int | None = None

    def toggled(self, line: int) -> "Segmentation":
        """With this line alone, or with all where it was alone already."""
        return replace(self, alone=None if line == self.alone else line)

    def lines(self) -> list[tuple[str, list[int]]]:
        """The legend, the largest label first: each line with its labels and their share of all pixels."""
        labels, areas = np.unique(self.labels, return_counts=True)
        order = sorted(
            zip(labels.tolist(), (100 * areas / self.labels.size).tolist(), strict=True), key=lambda x: -x[1]
        )
        shown, rest = order[:MOST_LABELS], order[MOST_LABELS:]
        lines = [(f"{self.names[label]}  {share:.1f} %", [label]) for label, share in shown]
        if rest:
            lines.append((f"{len(rest)} others  {sum(share for _, share in rest):.1f} %", [label for label, _ in rest]))
        return lines

    def sections(self) -> list[Section]:
        """The pixels of each line: outlined and lightly painted, the background only where it is alone."""
        outline = outline_of(self.labels, OUTLINE)
        sections = []
        for number, (text, labels) in enumerate(self.lines()):
            is_background = self.names[labels[0]].lower() == BACKGROUND
            visible = number == self.alone if self.alone is not None else not is_background
            place = np.isin(self.labels, labels) & visible
            sections.append((np.where(outline, 1.0, PAINT_ALPHA).astype(np.float32) * place, text))
        return sections

    def colours(self) -> dict[str, str]:
        """Of each line, as #rrggbb."""
        return {text: "#{:02x}{:02x}{:02x}".format(*distinct_colour(labels[0])) for text, labels in self.lines()}


@torch.inference_mode()
def segmentation_of(opened: OpenedModel, photograph: Image.Image, screen: Image.Image) -> Segmentation:
    """The labels of a photograph, at the size of the screen's."""
    outputs = opened.model(**opened.processor(photograph, return_tensors="pt"))
    size = (screen.height, screen.width)
    (labels,) = opened.processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    return Segmentation(screen, labels.numpy(), opened.names)


@torch.inference_mode()
def detections_of(
    opened: OpenedModel, photograph: Image.Image, screen: Image.Image, threshold: float
) -> tuple[Image.Image, list[list[object]]]:
    """The screen's picture with the objects of at least this score, and their names with scores, best first."""
    outputs = opened.model(**opened.processor(photograph, return_tensors="pt"))
    settings = {"threshold": threshold, "target_sizes": [(screen.height, screen.width)]}
    if getattr(outputs, "pred_masks", None) is not None and opened.kind == "MaskRcnnForInstanceSegmentation":
        (found,) = opened.processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **settings)
    else:
        (found,) = opened.processor.post_process_object_detection(outputs, **settings)
    best = found["scores"].argsort(descending=True)
    rows = [
        [opened.names[label], round(score, 3)]
        for score, label in zip(found["scores"][best].tolist(), found["labels"][best].tolist(), strict=True)
    ]
    return hf_pvt.draw_detections(screen, found, opened.names), rows
