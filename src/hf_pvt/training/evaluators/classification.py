"""Top-1 and, where there are as many labels, top-5 accuracy."""

from typing import Any

from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from ...images.image_processing_pvt import channels_of
from ...metrics import TopKAccuracy
from ..data.decoding import decode_image
from ..data.labelled_images import Example
from ..data.samples import Sample
from .evaluator import Evaluation, Evidence


class ClassificationView:
    """An image as the published evaluation sees it, which is as the saved processor will."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.channels = processor, channels_of(processor.image_mean, processor.image_std)

    def __call__(self, example: Example) -> Sample:
        source, name, label = example
        image = decode_image(source, name, self.channels)
        pixel_values = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": label}


class ClassificationEvaluation(Evaluation):
    """Of images with one label each."""

    def __init__(self, num_labels: int, processor: BaseImageProcessor) -> None:
        super().__init__(TopKAccuracy((1, 5) if num_labels >= 5 else 1), ClassificationView(processor))

    def count(self, model: nn.Module, batch: dict[str, Any]) -> Evidence:
        logits, counted = model(pixel_values=batch["pixel_values"]).logits, batch["counted"]
        return self.metric.count(logits[counted], batch["labels"][counted])
