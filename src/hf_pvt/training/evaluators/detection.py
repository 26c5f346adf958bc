"""COCO's average precision of boxes, and of masks where the model has them, one image at a time.

One at a time, because the published numbers are made so: in a batch the padding would follow from the other images.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from ...detection.coco_masks import draw_mask, encode_mask
from ...images.image_inputs import image_size
from ...metrics import CocoAveragePrecision
from ..data.annotations import Decoder, Example, broken
from ..data.mask_checks import some
from ..data.samples import Sample
from .detection_overlays import DetectionOverlays
from .evaluator import Evaluation, Evidence


class DetectionView:
    """An image as the saved processor makes it, and all its objects as COCO has them, crowd regions too."""

    def __init__(self, decode: Decoder, processor: BaseImageProcessor) -> None:
        self.decode, self.processor = decode, processor

    def __call__(self, example: Example) -> Sample:
        """Raises BadImageError, of the image or an object."""
        image, objects = self.decode(example)
        size = image_size(image)
        inputs = self.processor(image, return_tensors="pt")
        if self.decode.with_masks:
            objects = [self.encoded(entry, number, example, size) for number, entry in enumerate(objects)]
        return {
            "pixel_values": inputs["pixel_values"][0],
            "pixel_mask": inputs["pixel_mask"][0],
            "reference": {"image_id": example.image_id, "size": size, "annotations": objects},
        }

    def encoded(self, entry: dict[str, Any], number: int, example: Example, size: tuple[int, int]) -> dict[str, Any]:
        """An object whose mask has the short form, of which many fit into memory."""
        where = f"annotation {number} of image {example.image_id}"
        try:
            return entry | {"segmentation": encode_mask(draw_mask(entry.get("segmentation"), size, where))}
        except ValueError as error:
            raise broken(example, error) from error


class DetectionEvaluation(Evaluation):
    """Of images with objects.

    Args:
        overlays: how many pictures to make, in this process.
    """

    def __init__(self, names: Sequence[str], decode: Decoder, processor: Any, overlays: int = 0) -> None:
        super().__init__(CocoAveragePrecision(names, decode.with_masks), DetectionView(decode, processor))
        self.names, self.with_masks = list(names), decode.with_masks
        # All that the model gives: ours have left out what is unlikely by `config.score_threshold`, as published.
        self.post_process = partial(processor.post_process_object_detection, threshold=0.0)
        if decode.with_masks:
            segments = processor.post_process_instance_segmentation
            self.post_process = partial(segments, threshold=0.0, return_coco_annotation=True)
        self.overlays = DetectionOverlays(names, processor, overlays)
        self.unnumbered = 0

    def count(self, model: nn.Module, batch: Sample) -> Evidence:
        (reference,) = batch["reference"]
        reference = reference | {"image_id": self.number(reference["image_id"])}
        outputs = model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
        if not batch["counted"][0]:
            return []
        (found,) = self.post_process(outputs, target_sizes=[reference["size"]])
        found = {name: values.cpu() if isinstance(values, torch.Tensor) else values for name, values in found.items()}
        self.overlays.add(batch["pixel_values"][0], batch["pixel_mask"][0], reference, found)
        return self.metric.count([found], [reference])

    def number(self, image_id: int | None) -> int:
        """The image's own number; where a stream has none, one that no other image of any process has."""
        if image_id is not None:
            return image_id
        process = PartialState()
        self.unnumbered += 1
        return self.unnumbered * process.num_processes + process.process_index

    def remarks(self, scores: dict[str, Any]) -> dict[str, str]:
        """Where the means are over fewer labels than the model has."""
        absent = [name for name, ap in zip(self.names, scores["per_category_box_ap"], strict=True) if np.isnan(ap)]
        if not absent:
            return {}
        remark = f"over {len(self.names) - len(absent)} of {len(self.names)} labels, without {some(absent)}"
        return {mean: remark for mean in ("box_ap", "mask_ap") if mean in scores}

    def save_pictures(self, folder: Path) -> None:
        self.overlays.save(folder)
