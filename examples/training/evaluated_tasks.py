"""The heads that can be evaluated: how each is opened, on which data, by which protocol, and what a card calls it."""

import math
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_pvt
from hf_pvt.segmentation_inference import SCALES

from .classification_evaluation import ClassificationEvaluation
from .evaluation import Evaluation
from .evaluation_arguments import EvaluationArguments
from .label_maps import Decoder
from .label_values import in_words
from .matched_examples import classified, segmented
from .segmentation_evaluation import SegmentationEvaluation


@dataclass
class Scored:
    """Examples, how they are scored, and what of the protocol is the data's."""

    examples: Any
    evaluation: Evaluation
    batch_size: int
    protocol: dict[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)  # what else tells these samples from others


class EvaluatedTask:
    """One kind of head."""

    pipeline_tag: str
    class_suffix: str  # of the model's class
    auto_class: Any
    flags: frozenset[str] = frozenset()  # those that other tasks do not have
    # What goes into a card: the metric's id on the Hub, and its name for people.
    metrics: dict[str, tuple[str, str]]

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        """That of the papers, where a checkpoint brings none."""
        raise NotImplementedError

    def open(
        self,
        arguments: EvaluationArguments,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
    ) -> Scored:
        """The data and its evaluation. Every process has to call this."""
        raise NotImplementedError


class ImageClassification(EvaluatedTask):
    pipeline_tag, class_suffix = "image-classification", "ForImageClassification"
    auto_class = AutoModelForImageClassification
    flags = frozenset({"validation_labels", "label_column"})
    metrics = {"top1_accuracy": ("accuracy", "top-1 accuracy"), "top5_accuracy": ("accuracy", "top-5 accuracy")}

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return hf_pvt.classification_image_processor(num_channels=model.config.num_channels)

    def open(
        self,
        arguments: EvaluationArguments,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
    ) -> Scored:
        names = label_names(model)
        examples, how = classified(arguments, names)
        evaluation = ClassificationEvaluation(len(names), processor)
        return Scored(examples, evaluation, arguments.batch_size, {"labels": how})


class SemanticSegmentation(EvaluatedTask):
    pipeline_tag, class_suffix = "image-segmentation", "ForSemanticSegmentation"
    auto_class = AutoModelForSemanticSegmentation
    flags = frozenset({"mask_column", "labels", "reduce_labels", "multi_scale", "sliding_window", "overlays"})
    metrics = {
        "mean_iou": ("mean_iou", "mean IoU"),
        "mean_accuracy": ("accuracy", "mean accuracy"),
        "overall_accuracy": ("accuracy", "pixel accuracy"),
        "mean_dice": ("dice", "mean Dice"),
    }

    def published_processor(self, model: PreTrainedModel) -> BaseImageProcessor:
        return hf_pvt.segmentation_image_processor(model.config.num_channels, published_resampling=True)

    def open(
        self,
        arguments: EvaluationArguments,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        accelerator: Accelerator,
    ) -> Scored:
        examples, values, how = segmented(arguments, label_names(model), accelerator)
        window, scales = arguments.sliding_window, arguments.multi_scale
        pictures = arguments.overlays if accelerator.is_main_process else 0
        decode = Decoder(values, model.config.num_channels)
        evaluation = SegmentationEvaluation(decode, processor, window, pictures, scales)
        view = f"sliding window of {window} pixels" if window else "whole images"
        if scales:
            view = f"mean of the scales {', '.join(map(str, SCALES))} and their mirror images"
        protocol = {"labels": f"{how}, of the pixel values {in_words(values.values)}", "view": view}
        return Scored(examples, evaluation, 1, protocol, {"values": [values.values, sorted(values.no_label)]})


TASKS: list[EvaluatedTask] = [ImageClassification(), SemanticSegmentation()]


def task_of(class_name: str, path: str) -> EvaluatedTask:
    """The task of a model's class.

    Raises ValueError where it has none of the heads.
    """
    for task in TASKS:
        if class_name.endswith(task.class_suffix):
            return task
    known = ", ".join(f"...{task.class_suffix}" for task in TASKS)
    raise ValueError(f"{path} is a {class_name or 'model of unknown class'}; expected one of: {known}.")


def check_flags(task: EvaluatedTask, arguments: EvaluationArguments) -> None:
    """Raise ValueError for a flag that is given and is another task's."""
    for other in TASKS:
        for name in sorted(other.flags - task.flags):
            if getattr(arguments, name):
                raise ValueError(f"--{name} is for {other.pipeline_tag}, and the model is for {task.pipeline_tag}.")


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
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def preprocessing(processor: BaseImageProcessor, resize: bool = True) -> str:
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
