"""The heads that can be evaluated: how each is opened, on which data, by which protocol, and what a card calls it."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from PIL import Image
from torch.utils.data import default_collate
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..detection.image_processing_detection import detection_image_processor
from ..images.image_processing_pvt import channels_of, classification_image_processor, segmentation_image_processor
from ..segmentation_inference import SCALES
from ..training.data.annotation_checks import check_annotations
from ..training.data.annotations import Decoder
from ..training.data.detection_batches import padded_batch
from ..training.data.label_values import in_words
from ..training.data.masks import Decoder as MaskDecoder
from ..training.data.samples import Merge
from ..training.evaluators.classification import ClassificationEvaluation
from ..training.evaluators.detection import DetectionEvaluation
from ..training.evaluators.evaluator import Evaluation
from ..training.evaluators.segmentation import SegmentationEvaluation
from .arguments import EvaluationArguments
from .matched_examples import annotated, classified, segmented


class Given(NamedTuple):
    """What was asked for, the model with its processor, and the processes."""

    arguments: EvaluationArguments
    model: PreTrainedModel
    processor: Any
    accelerator: Accelerator


@dataclass
class Scored:
    """Examples, how they are scored, and what of the protocol is the data's."""

    examples: Any
    evaluation: Evaluation
    pipeline_tag: str
    batch_size: int = 1
    merge: Merge = default_collate
    protocol: dict[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)  # what else tells these samples from others


class EvaluatedTask:
    """One kind of head."""

    name: str  # in messages
    class_suffix: str | tuple[str, ...]  # of the model's class
    auto_class: Any
    flags: frozenset[str] = frozenset()  # those that other tasks do not have
    # What goes into a card: the metric's id on the Hub, and its name for people.
    metrics: dict[str, tuple[str, str]]

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        """That of the papers, where a checkpoint brings none."""
        raise NotImplementedError

    def open(self, given: Given) -> Scored:
        """The data and its evaluation. Every process has to call this."""
        raise NotImplementedError


class ImageClassification(EvaluatedTask):
    name, class_suffix = "classification", "ForImageClassification"
    auto_class = AutoModelForImageClassification
    flags = frozenset({"validation_labels", "label_column"})
    metrics = {"top1_accuracy": ("accuracy", "top-1 accuracy"), "top5_accuracy": ("accuracy", "top-5 accuracy")}

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return classification_image_processor(num_channels=model.config.num_channels)

    def open(self, given: Given) -> Scored:
        arguments, model, processor, _ = given
        names = label_names(model)
        examples, how = classified(arguments, names)
        evaluation = ClassificationEvaluation(len(names), processor)
        protocol = {"labels": how}
        return Scored(examples, evaluation, "image-classification", arguments.batch_size, protocol=protocol)


class SemanticSegmentation(EvaluatedTask):
    name, class_suffix = "semantic segmentation", "ForSemanticSegmentation"
    auto_class = AutoModelForSemanticSegmentation
    flags = frozenset({"mask_column", "labels", "reduce_labels", "multi_scale", "sliding_window", "overlays"})
    metrics = {
        "mean_iou": ("mean_iou", "mean IoU"),
        "mean_accuracy": ("accuracy", "mean accuracy"),
        "overall_accuracy": ("accuracy", "pixel accuracy"),
        "mean_dice": ("dice", "mean Dice"),
    }

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return segmentation_image_processor(model.config.num_channels, published_resampling=True)

    def open(self, given: Given) -> Scored:
        arguments, model, processor, accelerator = given
        examples, values, how = segmented(arguments, label_names(model), accelerator)
        window, scales = arguments.sliding_window, arguments.multi_scale
        pictures = arguments.overlays if accelerator.is_main_process else 0
        decode = MaskDecoder(values, model.config.num_channels)
        evaluation = SegmentationEvaluation(decode, processor, window, pictures, scales)
        view = f"sliding window of {window} pixels" if window else "whole images"
        if scales:
            view = f"mean of the scales {', '.join(map(str, SCALES))} and their mirror images"
        protocol = {"labels": f"{how}, of the pixel values {in_words(values.values)}", "view": view}
        identity = {"values": [values.values, sorted(values.no_label)]}
        return Scored(examples, evaluation, "image-segmentation", protocol=protocol, identity=identity)


class ObjectDetection(EvaluatedTask):
    name, class_suffix = "detection", ("ForObjectDetection", "ForInstanceSegmentation")
    auto_class = AutoModelForObjectDetection
    flags = frozenset({"validation_annotations", "objects_column", "bbox_format", "with_masks", "overlays"})
    metrics = {
        "box_ap": ("mean_average_precision", "box AP"),
        "box_ap50": ("mean_average_precision", "box AP50"),
        "mask_ap": ("mean_average_precision", "mask AP"),
        "mask_ap50": ("mean_average_precision", "mask AP50"),
    }

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return detection_image_processor(
            model.config.num_channels,
            size_divisor=model.config.size_divisor,
            return_segmentation_masks=model.has_masks,
        )

    def open(self, given: Given) -> Scored:
        arguments, model, processor, accelerator = given
        names = label_names(model)
        examples, how = annotated(arguments, names)
        has_masks = getattr(model, "has_masks", False)  # Transformers' own detectors have boxes alone
        masks = has_masks if arguments.with_masks is None else arguments.with_masks
        if masks and not has_masks:
            raise ValueError("--with_masks: the model has boxes alone; leave it out.")
        annotations = arguments.annotations()
        decode = Decoder(masks, annotations.bbox_format, channels_of(processor.image_mean, processor.image_std))
        check_annotations(accelerator, decode, names, None, examples, arguments.on_bad_image)
        pictures = arguments.overlays if accelerator.is_main_process else 0
        return Scored(
            examples,
            DetectionEvaluation(names, decode, processor, pictures),
            "image-segmentation" if has_masks else "object-detection",
            merge=partial(padded_batch, size_divisor=getattr(model.config, "size_divisor", 1)),
            protocol={"labels": how, "scored": "boxes and masks" if masks else "boxes"},
            identity={"categories": list(map(str, examples.categories.ids)), "bbox_format": annotations.bbox_format},
        )


TASKS: list[EvaluatedTask] = [ImageClassification(), SemanticSegmentation(), ObjectDetection()]


def task_of(class_name: str, path: str) -> EvaluatedTask:
    """The task of a model's class.

    Raises ValueError where it has none of the heads.
    """
    for task in TASKS:
        if class_name.endswith(task.class_suffix):
            return task
    raise ValueError(
        f"{path} is a {class_name or 'model of unknown class'}, without a head for one of: "
        f"{', '.join(task.name for task in TASKS)}."
    )


def check_flags(task: EvaluatedTask, arguments: EvaluationArguments) -> None:
    """Raise ValueError for a flag that is given and is another task's."""
    for other in TASKS:
        for name in sorted(other.flags - task.flags):
            if getattr(arguments, name):
                raise ValueError(f"--{name} is for {other.name}, and the model is for {task.name}.")


def card_metrics(task: EvaluatedTask, metrics: dict[str, Any]) -> list[tuple[str, str, float]]:
    """What goes into a card: the Hub's id, the name with its remark, and the value, of each metric that is a number."""
    found = []
    for metric, (hub_id, name) in task.metrics.items():
        value, remark = metrics.get(metric, math.nan), metrics["remarks"].get(metric)
        if not math.isnan(value):
            found.append((hub_id, f"{name} {remark}" if remark else name, value))
    return found


def label_names(model: PreTrainedModel) -> list[str]:
    """The names of a model's labels in their order."""
    config: Any = model.config
    return [config.id2label[number] for number in range(config.num_labels)]


def preprocessing(processor: Any, resize: bool = True) -> str:
    """What a processor does to an image's size, in words."""
    size = dict(processor.size or {})
    words = []
    if resize and processor.do_resize:
        if size.get("shortest_edge"):
            words.append(f"shorter side {size['shortest_edge']}")
            words += [f"longer at most {size['longest_edge']}"] if size.get("longest_edge") else []
        else:
            words.append(f"{size.get('height')}x{size.get('width')}")
        if getattr(processor, "size_divisor", None):
            words.append(f"multiples of {processor.size_divisor}")
        words.append(Image.Resampling(processor.resample).name.lower())
        if getattr(processor, "published_resampling", False):
            words.append("without antialiasing")
    else:
        words.append("own size")
    if getattr(processor, "do_center_crop", False):
        crop = dict(processor.crop_size)
        words.append(f"centre crop {crop['height']}x{crop['width']}")
    return ", ".join(words)
