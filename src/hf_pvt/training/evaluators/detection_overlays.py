"""Pictures of what a detector finds in images, beside what is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from ...detection.coco_masks import draw_mask, nearest_as_cv2
from ...drawing.detections import draw_detections
from ...drawing.segmentations import side_by_side
from .overlays import as_picture

# Less likely detections would cover the picture.
LEAST_SCORE = 0.3


class DetectionOverlays:
    """The first `most` images of an evaluation, as the model saw them."""

    def __init__(self, names: Sequence[str], processor: BaseImageProcessor, most: int) -> None:
        self.names, self.processor, self.most = dict(enumerate(names)), processor, most
        self.shown: list[tuple[np.ndarray, dict[str, dict[str, Any]]]] = []

    def add(
        self, pixel_values: Tensor, pixel_mask: Tensor, reference: dict[str, Any], found: dict[str, Tensor]
    ) -> None:
        """One image (C, H, W), normalised, with its objects and the detections, unless there are enough."""
        if len(self.shown) == self.most:
            return
        height, width = (int(pixel_mask.amax(dim=axis).sum()) for axis in (1, 0))  # without the padding
        image = as_picture(pixel_values[:, :height, :width], self.processor)
        likely = (found["scores"] >= LEAST_SCORE).nonzero().flatten().tolist()
        detected = {name: [found[name][index] for index in likely] for name in found if name != "segments_info"}
        objects = {
            "scores": [1.0] * len(reference["annotations"]),
            "labels": [entry["category_id"] for entry in reference["annotations"]],
            "boxes": [corners(entry["bbox"]) for entry in reference["annotations"]],
        }
        if "segmentation" in detected:
            objects["segmentation"] = [entry["segmentation"] for entry in reference["annotations"]]
        size = reference["size"]
        pictures = {"annotated": at_size(objects, size, image.shape), "predicted": at_size(detected, size, image.shape)}
        self.shown.append((image, pictures))

    def save(self, folder: Path) -> None:
        """Write `<n>.png`, and begin anew."""
        for number, (image, pictures) in enumerate(self.shown):
            drawn = {title: draw_detections(image, each, self.names) for title, each in pictures.items()}
            folder.mkdir(parents=True, exist_ok=True)
            side_by_side(drawn).save(folder / f"{number}.png")
        self.shown.clear()


def corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def at_size(objects: dict[str, list[Any]], size: tuple[int, int], shown: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Objects in an image of `size` (height, width), in a picture (h, w, 3) of it."""
    (height, width), (rows, columns, _) = size, shown
    boxes = np.array(objects["boxes"], dtype=np.float64).reshape(-1, 4)  # (n, 4)
    boxes = (boxes * np.array([columns / width, rows / height] * 2)).clip(0, [columns, rows] * 2)
    scaled = {"scores": np.array(objects["scores"]), "labels": np.array(objects["labels"], dtype=int), "boxes": boxes}
    if "segmentation" in objects:
        masks = [nearest_as_cv2(draw_mask(mask, size), (rows, columns)) for mask in objects["segmentation"]]
        scaled["masks"] = np.array(masks, dtype=bool).reshape(-1, rows, columns)
    return scaled
