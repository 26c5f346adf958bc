"""Pipelines that hand files to our image processors as they are.

Transformers' turn every image into RGB of 8 bits first, which clips 16 bits and floats to white and drops channels.
"""

from typing import Any

import torch
from transformers import pipelines

from .image_inputs import image_size, readable
from .image_processing_pvt import ImageInputsMixin, channels_of


class ImagePipelineMixin:
    """Reads images by the rule of `image_inputs` where the processor is ours, and as Transformers does elsewhere."""

    image_processor: Any
    dtype: Any

    def preprocess(self, image: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """What the model takes, of a file, a URL, a Pillow image, an array or a tensor."""
        if not isinstance(self.image_processor, ImageInputsMixin):
            return super().preprocess(image, timeout=timeout, **kwargs)  # type: ignore[misc]
        channels = channels_of(self.image_processor.image_mean, self.image_processor.image_std)
        image = readable(image, channels, timeout=timeout)
        return self.prepare(image, **kwargs)

    def prepare(self, image: Any, **kwargs: Any) -> Any:
        return self.image_processor(image, return_tensors="pt", **kwargs).to(self.dtype)


class ImageClassificationPipeline(ImagePipelineMixin, pipelines.ImageClassificationPipeline):  # type: ignore[misc]
    """Transformers' own, with images as their files have them."""


class ImageFeatureExtractionPipeline(ImagePipelineMixin, pipelines.ImageFeatureExtractionPipeline):  # type: ignore[misc]
    """Transformers' own, with images as their files have them."""


class ImageSegmentationPipeline(ImagePipelineMixin, pipelines.ImageSegmentationPipeline):  # type: ignore[misc]
    """Transformers' own, with images as their files have them."""

    def prepare(self, image: Any, subtask: str | None = None) -> Any:  # type: ignore[override]
        return super().prepare(image) | {"target_size": [image_size(image)]}


class ObjectDetectionPipeline(ImagePipelineMixin, pipelines.ObjectDetectionPipeline):  # type: ignore[misc]
    """Transformers' own, with images as their files have them."""

    def prepare(self, image: Any) -> Any:  # type: ignore[override]
        return super().prepare(image) | {"target_size": torch.tensor([image_size(image)])}
