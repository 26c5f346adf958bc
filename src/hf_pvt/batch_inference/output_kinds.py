"""What can be computed of images: embeddings, class predictions, label maps, detections."""

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from ..detection.coco_masks import mask_library
from ..detection.image_processing_detection import detection_image_processor
from ..images.image_processing_pvt import classification_image_processor, segmentation_image_processor
from .arguments import Arguments
from .model_output import Columns, Inputs, Output, Size


class Embedder(Output):
    """Pooled features (B, C) of classifiers."""

    output, head = "embeddings", "classifier"
    auto_class: Any = AutoModelForImageClassification

    def needs(self, name: str) -> bool:
        return not name.startswith("classifier.")

    def published_processor(self) -> Any:
        return classification_image_processor()

    def schema(self) -> dict[str, pa.DataType]:
        return {"embedding": pa.list_(pa.float32(), self.model.config.hidden_sizes[-1])}

    def columns(self, batch: Inputs, sizes: list[Size]) -> Columns:
        features = self.model.base_model(**batch).pooler_output  # (B, C)
        return {"embedding": list(features.float().cpu().numpy())}


class Predictor(Embedder):
    """The most likely labels of classifiers."""

    output = "predictions"

    def __init__(self, arguments: Arguments, device: torch.device) -> None:
        super().__init__(arguments, device)
        self.top_k = min(arguments.top_k, self.model.config.num_labels)

    def needs(self, name: str) -> bool:
        return True

    def schema(self) -> dict[str, pa.DataType]:
        return {"labels": pa.list_(pa.int32()), "names": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}

    def columns(self, batch: Inputs, sizes: list[Size]) -> Columns:
        scores, labels = self.model(**batch).logits.float().softmax(-1).topk(self.top_k)  # (B, top_k)
        names = [[self.model.config.id2label[label] for label in row] for row in labels.tolist()]
        return {"labels": labels.tolist(), "names": names, "scores": scores.tolist()}


class Segmenter(Output):
    """Label maps at each image's own size, as PNG files of one channel."""

    output, head = "masks", "decode_head"
    auto_class = AutoModelForSemanticSegmentation

    def published_processor(self) -> Any:
        return segmentation_image_processor(published_resampling=True)

    def schema(self) -> dict[str, pa.DataType]:
        return {"mask": pa.binary()}

    def columns(self, batch: Inputs, sizes: list[Size]) -> Columns:
        outputs = self.model(**batch)
        return {"mask": [png(m) for m in self.processor.post_process_semantic_segmentation(outputs, sizes)]}


def png(labels: Tensor) -> bytes:
    """A label map (H, W) as a PNG of 8 bits, of 16 where it has labels above 255."""
    array = labels.cpu().numpy()
    file = BytesIO()
    Image.fromarray(array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)).save(file, "PNG")
    return file.getvalue()


class FileSegmenter(Segmenter):
    """Label maps as PNG files of their own."""

    def schema(self) -> dict[str, pa.DataType]:
        return {"mask_file": pa.string()}


class Detector(Output):
    """Boxes in pixels of each image, and the masks of detectors that have them as COCO's run-length encodings."""

    output, head = "detections", "neck"
    auto_class = AutoModelForObjectDetection

    def __init__(self, arguments: Arguments, device: torch.device) -> None:
        super().__init__(arguments, device)
        self.threshold = arguments.threshold
        self.has_masks = getattr(self.model, "has_masks", False)
        if self.has_masks:
            mask_library()  # says now what is missing, not after the first batch
        # What the model itself leaves out nobody can ask for afterwards.
        if getattr(self.model.config, "score_threshold", self.threshold) > self.threshold:
            self.model.config.score_threshold = self.threshold

    def published_processor(self) -> Any:
        return detection_image_processor()

    def schema(self) -> dict[str, pa.DataType]:
        columns = {
            "boxes": pa.list_(pa.list_(pa.float32(), 4)),
            "scores": pa.list_(pa.float32()),
            "labels": pa.list_(pa.int32()),
            "names": pa.list_(pa.string()),
        }
        run_lengths = pa.struct({"size": pa.list_(pa.int32(), 2), "counts": pa.string()})
        return columns | ({"masks": pa.list_(run_lengths)} if self.has_masks else {})

    def columns(self, batch: Inputs, sizes: list[Size]) -> Columns:
        outputs = self.model(**batch)
        settings: dict[str, Any] = {"threshold": self.threshold, "target_sizes": torch.tensor(sizes)}
        if self.has_masks:
            settings["return_coco_annotation"] = True
            found = self.processor.post_process_instance_segmentation(outputs, **settings)
        else:
            found = self.processor.post_process_object_detection(outputs, **settings)
        columns = {name: [image[name].tolist() for image in found] for name in ("boxes", "scores", "labels")}
        columns["names"] = [[self.model.config.id2label[label] for label in row] for row in columns["labels"]]
        return columns | ({"masks": [image["segmentation"] for image in found]} if self.has_masks else {})


OUTPUTS: dict[str, type[Output]] = {cls.output: cls for cls in (Embedder, Predictor, Segmenter, Detector)}


def output_class(arguments: Arguments) -> type[Output]:
    """Raises ValueError for files of what is no mask, and for a threshold that is no score."""
    if not 0 <= arguments.threshold < 1:
        raise ValueError(f"--threshold is {arguments.threshold}, expected a score from 0 to below 1.")
    if not arguments.masks_as_files:
        return OUTPUTS[arguments.output]
    if arguments.output != "masks":
        raise ValueError(f"--masks_as_files needs --output masks, not {arguments.output}.")
    return FileSegmenter
