"""Pictures of what a segmenter makes of images: their labels beside the prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from ...drawing.segmentations import draw_segmentation, side_by_side
from ...images.image_processing_pvt import nearest
from ..data.label_values import LabelValues


class Overlays:
    """The first `most` images of an evaluation, as the model saw them."""

    def __init__(self, labels: LabelValues, processor: BaseImageProcessor, most: int) -> None:
        self.labels, self.processor, self.most = labels, processor, most
        self.shown: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, pixel_values: Tensor, labelled: Tensor, predicted: Tensor) -> None:
        """One image (C, h, w), normalised, with label maps (H, W), unless there are enough."""
        if len(self.shown) < self.most:
            maps = {"labelled": labelled.cpu(), "predicted": predicted.cpu()}
            self.shown.append((pixel_values.cpu(), maps))

    def save(self, folder: Path) -> None:
        """Write `<n>.png`, and begin anew."""
        names = dict(enumerate(self.labels.names))
        for number, (pixel_values, label_maps) in enumerate(self.shown):
            image = as_picture(pixel_values, self.processor)
            pictures = {}
            for heading, label_map in label_maps.items():
                seen = nearest(label_map.numpy(), image.shape[:2])
                pictures[heading] = draw_segmentation(image, seen, names, ignore_index=self.labels.ignored)
            folder.mkdir(parents=True, exist_ok=True)
            side_by_side(pictures).save(folder / f"{number}.png")
        self.shown.clear()


def as_picture(pixel_values: Tensor, processor: Any) -> NDArray[np.uint8]:
    """An image (C, h, w), normalised, as (h, w, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    levels = (255 * (pixel_values.cpu() * std + mean)).round().clamp(0, 255).byte()  # (C, h, w)
    return first_three(levels).permute(1, 2, 0).numpy()


def first_three(levels: Tensor) -> Tensor:
    """Of (C, h, w) what can be shown, (3, h, w): the first three channels, or of fewer the first as grey."""
    return levels[:3] if len(levels) >= 3 else levels[:1].expand(3, -1, -1)
