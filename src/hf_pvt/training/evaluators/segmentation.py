"""Mean IoU and Dice of label maps at the images' own sizes, one image at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from ...images.image_processing_pvt import most_likely_labels
from ...metrics import MeanIoU
from ...segmentation_inference import segment_multi_scale, segment_sliding
from ..data.mask_checks import some
from ..data.masks import Decoder, Example
from ..data.samples import Sample
from .evaluator import Evaluation, Evidence
from .overlays import Overlays


class SegmentationView:
    """An image as the saved processor makes it, or at its own size for a sliding window; its labels as they are."""

    def __init__(self, decode: Decoder, processor: BaseImageProcessor, resize: bool) -> None:
        self.decode, self.processor, self.resize = decode, processor, resize

    def __call__(self, example: Example) -> Sample:
        image, labels = self.decode(example)
        pixel_values = self.processor(image, do_resize=self.resize, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(labels)}


class SegmentationEvaluation(Evaluation):
    """Of images with a label map each.

    Args:
        sliding_window: its side in pixels, over images at their own size; None: whole images, scaled.
        overlays: how many pictures to make, in this process.
        multi_scale: the mean over several scales of the scaled images, see `hf_pvt.segment_multi_scale`.
    """

    def __init__(
        self,
        decode: Decoder,
        processor: BaseImageProcessor,
        sliding_window: int | None = None,
        overlays: int = 0,
        multi_scale: bool = False,
    ) -> None:
        labels = decode.labels
        super().__init__(
            MeanIoU(len(labels.names), labels.ignored),
            SegmentationView(decode, processor, resize=not sliding_window),
        )
        self.names, self.sliding_window, self.multi_scale = labels.names, sliding_window, multi_scale
        self.overlays = Overlays(labels, processor, overlays)

    def count(self, model: nn.Module, batch: Sample) -> Evidence:
        pixel_values, labels = batch["pixel_values"], batch["labels"]  # (1, C, h, w), (1, H, W)
        predicted = self.predict(model, pixel_values, tuple(labels.shape[1:]))  # (H, W)
        if not batch["counted"][0]:
            return np.zeros(len(self.names) ** 2, dtype=np.int64)
        self.overlays.add(pixel_values[0], labels[0], predicted)
        return self.metric.count([predicted.cpu()], [labels[0].cpu()])

    def predict(self, model: Any, pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
        """The label map (H, W) of one image (1, C, h, w)."""
        if self.sliding_window:
            whole = extract_model_from_parallel(model)
            return segment_sliding(whole, pixel_values, self.sliding_window)[0]
        if self.multi_scale:
            return segment_multi_scale(model, pixel_values, size=size)[0]
        return most_likely_labels(model(pixel_values=pixel_values).logits[0], size)

    def remarks(self, scores: dict[str, Any]) -> dict[str, str]:
        """Where the means are over fewer labels than the model has."""
        remarks = {}
        for kind in ("iou", "accuracy", "dice"):
            each = scores[f"per_category_{kind}"]
            absent = [name for name, score in zip(self.names, each, strict=True) if np.isnan(score)]
            if absent:
                known, all_labels = len(self.names) - len(absent), len(self.names)
                remarks[f"mean_{kind}"] = f"over {known} of {all_labels} labels, without {some(absent)}"
        return remarks

    def save_pictures(self, folder: Path) -> None:
        self.overlays.save(folder)
