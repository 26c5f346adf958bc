"""Train or fine-tune detectors such as RetinaNet or Mask R-CNN on PVT, PVTv2 or P2T, from a laptop to many nodes.

    python examples/run_object_detection.py --train_dir cells --train_val_split 0.1 \
        --architecture retinanet --from_backbone me/pvt-v2-b2 --output_dir out/cells

    accelerate launch --multi_gpu examples/run_object_detection.py --recipe coco-1x --train_dir coco/train2017 \
        --train_annotations coco/annotations/instances_train2017.json --architecture mask_rcnn \
        --from_backbone pvt_v2_b2.pth --per_device_train_batch_size 2 --checkpointing_steps epoch --resume

Data: a folder of images with COCO's JSON, a data set of the Hub or parquet files with a column of objects. Out come
`output_dir/model`, which `from_pretrained` opens, overlays of each evaluation and `output_dir/results.json`. `--help`
lists the flags, `training/` holds what they share with the other scripts, examples/README.md is the guide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision.transforms import v2
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_pvt
from hf_pvt.images.image_inputs import image_size
from hf_pvt.training.arguments import (
    UNDECAYED,
    DataArguments,
    OptimizationArguments,
    RunArguments,
    check,
    fill,
    flag,
    leave_colours,
    parse,
    statistics,
)
from hf_pvt.training.augmentation.detection import scene_of, target_of, training_transform
from hf_pvt.training.coco_recipes import CocoRecipe, coco_recipe
from hf_pvt.training.data.annotated_images import AnnotationArguments, open_annotated
from hf_pvt.training.data.annotation_checks import annotation, check_annotations
from hf_pvt.training.data.annotations import Categories, Decoder, Example
from hf_pvt.training.data.detection_batches import padded_batch
from hf_pvt.training.data.loaders import Feed, is_stream
from hf_pvt.training.data.samples import Sample
from hf_pvt.training.data.sampling import Purpose, derived_seed
from hf_pvt.training.detectors import open_detector
from hf_pvt.training.evaluators.detection import DetectionEvaluation
from hf_pvt.training.evaluators.evaluator import Evaluation
from hf_pvt.training.launch import run_main, start
from hf_pvt.training.loop import Loop
from hf_pvt.training.optimization import Schedule, run_length
from hf_pvt.training.query_detectors import STAGES, query_processor
from hf_pvt.training.results import finish, start_name

logger = get_logger(__name__)

# What the flags are that are not given. The published rates, decay, clipping, scales: `hf_pvt.training.coco_recipes`.
COCO: dict[str, Any] = {
    "num_train_epochs": 12.0,
    "warmup_steps": 500,
    "drops": [8 / 12, 11 / 12],
    "horizontal_flip": 0.5,
    "photometric_distortion": 0.0,
    "keep_empty": False,
    "group_by_shape": True,
}
RECIPES: dict[str, dict[str, Any]] = {
    # PVT, section 5.2, PVTv2, section 4.2, and P2T, section 4.3: MMDetection's schedule of 12 epochs.
    "coco-1x": COCO,
    # 36 epochs of images of several sizes; published are those of Mask R-CNN and four further detectors on PVTv2-B2.
    "coco-3x": COCO | {"num_train_epochs": 36.0, "drops": [27 / 36, 33 / 36]},
    # DETR on PVT-Small: 50 epochs without a warm-up.
    "coco-50e": COCO | {"num_train_epochs": 50.0, "warmup_steps": 0, "drops": [33 / 50]},
    # Ours, for small data sets: what was learnt before moves slowly, and images without objects are learnt from.
    "finetune": {
        "num_train_epochs": 50.0,
        "learning_rate_at_16": 2e-4,
        "weight_decay": 0.05,
        "without_decay": [*UNDECAYED],
        "layer_decay": 0.9,
        "warmup_epochs": 1.0,
        "drops": [0.75, 0.92],
        "scale_lowest": 480 / 800,
        "random_crop": 0.0,
        "horizontal_flip": 0.5,
        "photometric_distortion": 0.5,
        "keep_empty": True,
        "group_by_shape": False,
    },
}
# Flags whose augmentation moves colours.
COLOURS = ("photometric_distortion",)
# Where the published warm-up starts, as a share of the rate.
WARMUP_START = 0.001
# Images with a shorter side below are not trained on, as published, where images without objects are not.
SMALLEST_SIDE = 32

Architecture = Literal[
    "retinanet",
    "mask_rcnn",
    "cascade_mask_rcnn",
    "atss",
    "gfl",
    "sparse_rcnn",
    "detr",
    "conditional_detr",
    "deformable_detr",
]


@dataclass
class DetectionArguments:
    """Model, augmentation and evaluation. What is None is the recipe's."""

    recipe: Literal["finetune", "coco-1x", "coco-3x", "coco-50e"] = flag(
        "Values of the flags that are not given.", "finetune"
    )
    model_name_or_path: str | None = flag("A detector to start from: a Hub id, a folder, a published .pth.")
    architecture: Architecture | None = flag(
        "A new detector, on --from_backbone; the last three are Transformers' own."
    )
    from_backbone: str | None = flag(
        "Its pyramid: a Hub id, a folder or a published .pth; or a variant such as pvt-v2-b0, from scratch."
    )
    with_masks: bool | None = flag(
        "Whether Mask R-CNN, or Cascade Mask R-CNN, learns masks; without them it is Faster R-CNN. Default: yes."
    )
    shorter_side: int = flag("Pixels to which the shorter side is scaled.", 800)
    longer_side: int = flag("The longer side stays at most this.", 1333)
    learning_rate_at_16: float | None = flag("Without --learning_rate: this times the global batch / 16.")
    drops: list[float] | None = flag("Shares of the run after which the rate falls to a tenth.")
    drop_path_rate: float | None = flag("Stochastic depth; default: the published detector's, or the model's own.")
    scale_lowest: float | None = flag("In training the shorter side is drawn from this share of it, up to all.")
    random_crop: float | None = flag("Probability to train on a part of an image.")
    horizontal_flip: float | None = flag("Probability to mirror an image.")
    photometric_distortion: float | None = flag("Probability to distort brightness, contrast, saturation and hue.")
    keep_empty: bool | None = flag("Train on images without objects, and on those below 32 pixels, too.")
    group_by_shape: bool | None = flag("Steps of upright or of wide images, which have less padding.")
    overlays: int = flag("Pictures of detections that each evaluation writes.", 4)


class TrainingView:
    """An image and its objects, scaled, cut, flipped and distorted by chance: `pixel_values` (C, h, w), `labels`."""

    def __init__(self, task: Any, decode: Decoder, processor: Any) -> None:
        self.decode = decode
        names = ("scale_lowest", "random_crop", "horizontal_flip", "photometric_distortion")
        self.augment = training_transform(task.shorter_side, task.longer_side, *(getattr(task, n) for n in names))
        self.normalise = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
        )

    def __call__(self, example: Example) -> Sample:
        image, objects = self.decode(example)
        height, width = image_size(image)
        scene = self.augment(scene_of(image, self.decode.target(example, objects, (height, width))))
        return {"pixel_values": self.normalise(scene["image"].as_subclass(Tensor)), "labels": target_of(scene)}


class Detection:
    """The detector's own loss; for the evaluation see `DetectionEvaluation`."""

    def __init__(self, evaluation: Evaluation, validation: Iterable[Sample] | None) -> None:
        self.evaluation, self.validation = evaluation, validation

    def loss(self, model: nn.Module, batch: Sample) -> Tensor:
        """The sum of the terms, each divided by what it counts in the batches of all processes."""
        return model(**{name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}).loss

    def shares(self, batches: Sequence[Sample]) -> Iterable[float]:
        """What is counted is known after the forward pass only: accumulated batches weigh the same, as published."""
        return [1.0] * len(batches)


def schedule_of(
    task: Any,
    optimization: OptimizationArguments,
    published: CocoRecipe | None,
    steps_per_epoch: int | None,
    global_batch: int,
) -> Schedule:
    """A warm-up, then steps down."""
    total, warmup = run_length(optimization, steps_per_epoch)
    peak = optimization.learning_rate
    if peak is None and task.learning_rate_at_16 is not None:
        peak = task.learning_rate_at_16 * global_batch / 16
    elif peak is None:
        assert published is not None  # without one there is a rate
        peak = published.learning_rate * global_batch / published.batch
    return Schedule(peak, total, warmup, WARMUP_START * peak, curve="steps", drops=tuple(task.drops))


def trainable(images: Any, keep_empty: bool) -> Any:
    """The images to train on: all, or those that have objects and are not tiny; a stream has left others out itself."""
    if keep_empty or is_stream(images):
        return images
    examples = [annotation(images, number) for number in range(len(images))]
    kept = [n for n, e in enumerate(examples) if e.objects and min(e.size or (SMALLEST_SIDE,)) >= SMALLEST_SIDE]
    if len(kept) < len(images):
        logger.info(
            f"{len(images) - len(kept):,} of {len(images):,} images are left out: no objects, or below 32 pixels"
        )
    return Subset(images, kept)


def shapes(images: Any) -> Tensor | None:
    """Which images (n,) are wide; None where the sizes are not annotated."""
    sizes: Any = [annotation(images, number).size for number in range(len(images))]
    if None in sizes:
        logger.warning("--group_by_shape needs the images' sizes, which the data does not have: they are not grouped")
        return None
    return torch.tensor([width > height for height, width in sizes])


def processor_of(
    model: PreTrainedModel, task: DetectionArguments, categories: Categories, settings: dict[str, Any]
) -> BaseImageProcessor:
    """The published evaluation's, or that of one of Transformers' own detectors."""
    settings = settings | {"size": {"shortest_edge": task.shorter_side, "longest_edge": task.longer_side}}
    if model.config.model_type in STAGES:
        return query_processor(model.config, **settings)
    return hf_pvt.detection_image_processor(
        model.config.num_channels,
        size_divisor=model.config.size_divisor,
        return_segmentation_masks=model.has_masks,
        category_ids=categories.coco_ids,
        **settings,
    )


def main(argv: Sequence[str] | None = None) -> None:
    classes = (DataArguments, AnnotationArguments, OptimizationArguments, RunArguments, DetectionArguments)
    data, annotations, optimization, run, task = groups = parse(
        *classes, description=__doc__.splitlines()[0], argv=argv
    )
    colours = [name for name in COLOURS if getattr(task, name)]
    fill(groups, RECIPES[task.recipe])
    run.per_device_eval_batch_size = 1  # what else is in a batch would change the padding, and with it the scores
    check(optimization, run)
    accelerator = start(optimization, run)
    seed = optimization.seed

    training, validation, categories = open_annotated(
        data, annotations, derived_seed(seed, Purpose.SPLIT), task.keep_empty
    )
    options = {name: getattr(task, name) for name in ("with_masks", "drop_path_rate")} | {
        "num_channels": data.num_channels
    }
    start_from = (task.model_name_or_path, task.architecture, task.from_backbone)
    model = open_detector(*start_from, categories.names, seed, **options)
    channels = model.config.num_channels
    leave_colours(task, COLOURS, colours, channels)
    with_masks = getattr(model, "has_masks", False)
    decode = Decoder(with_masks, annotations.bbox_format, channels)
    training = trainable(training, task.keep_empty)
    check_annotations(accelerator, decode, categories.names, training, validation, data.on_bad_image)
    published = None if task.recipe == "finetune" else coco_recipe(model.config, task.recipe)
    if published is not None:
        fill(groups, published.flags())

    merge = partial(padded_batch, size_divisor=getattr(model.config, "size_divisor", 1))
    feed = Feed(accelerator, data, run, seed, merge)
    kinds = shapes(training) if task.group_by_shape and not is_stream(training) else None
    order = feed.order(training, kinds=kinds)
    steps_per_epoch = None if order is None else order.steps_per_epoch
    schedule = schedule_of(task, optimization, published, steps_per_epoch, feed.global_batch)
    processor = processor_of(model, task, categories, statistics(data, channels))
    overlays = task.overlays if accelerator.is_main_process else 0
    evaluation = DetectionEvaluation(categories.names, decode, processor, overlays)
    detection = Detection(evaluation, feed.evaluation(validation, evaluation.view))
    identity = asdict(data) | asdict(annotations) | asdict(optimization) | asdict(task) | feed.identity()
    del identity["overlays"]  # it does not change what is learnt
    loop = Loop(accelerator, model, detection, schedule, steps_per_epoch, optimization, run, identity)
    loop.train(feed.training(training, TrainingView(task, decode, processor), order, schedule.total_steps))
    arguments = {name: value for group in groups for name, value in asdict(group).items()}
    from_scratch = task.from_backbone in hf_pvt.VARIANTS
    started = None if from_scratch else start_name(task.model_name_or_path or task.from_backbone)
    pipeline = "image-segmentation" if with_masks else "object-detection"
    finish(loop, model, processor, pipeline, started, data, arguments)


if __name__ == "__main__":
    run_main(main)
