"""Train or fine-tune PVT, PVTv2 or P2T with a Semantic FPN for semantic segmentation, from a laptop to many nodes.

    python examples/run_semantic_segmentation.py --train_dir polyps --train_val_split 0.1 \
        --model_name_or_path me/pvt-v2-b2 --output_dir out/polyps

    accelerate launch --multi_gpu examples/run_semantic_segmentation.py --recipe ade20k --labels ade20k \
        --reduce_labels --train_dir ADEChallengeData2016 --model_name_or_path pvt_v2_b2.pth \
        --per_device_train_batch_size 2 --checkpointing_steps 4000 --checkpoints_total_limit 2 --resume

Data: folders in ADE20K's layout or images/ and masks/ with the same stems, a CSV file image,mask[,split], a data set of
the Hub, parquet files or WebDataset shards. Out come `output_dir/model`, which `from_pretrained` opens, overlays of
each evaluation and `output_dir/results.json`. `--help` lists the flags, `training/` holds what they share with
classification, examples/README.md is the guide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torchvision.transforms import v2
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig

import hf_pvt
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
from hf_pvt.training.augmentation.segmentation import PhotometricDistortion, RandomCrop, RandomScale, chance, flip, pad
from hf_pvt.training.data.label_values import open_label_values
from hf_pvt.training.data.loaders import Feed
from hf_pvt.training.data.mask_checks import check_masks
from hf_pvt.training.data.masks import Decoder, Example, open_label_maps
from hf_pvt.training.data.samples import Sample
from hf_pvt.training.data.sampling import Purpose, derived_seed
from hf_pvt.training.evaluators.evaluator import Evaluation
from hf_pvt.training.evaluators.segmentation import SegmentationEvaluation
from hf_pvt.training.launch import run_main, start
from hf_pvt.training.loop import Loop
from hf_pvt.training.models import open_model
from hf_pvt.training.optimization import Schedule, run_length
from hf_pvt.training.results import finish, start_name
from hf_pvt.training.segmentation_loss import LossName, SegmentationLoss

# What the flags are that are not given.
RECIPES: dict[str, dict[str, Any]] = {
    # The papers' on ADE20K: 80k iterations of 16 images (or 40k of 32 at twice the rate), in MMSegmentation.
    "ade20k": {
        "loss": "cross_entropy",
        "max_steps": 80_000,
        "learning_rate_at_16": 1e-4,
        "weight_decay": 1e-4,
        "without_decay": ["none"],  # norms, biases and position embeddings decay, too
        "warmup_steps": 0,
        "scale_lowest": 0.5,
        "scale_highest": 2.0,
        "horizontal_flip": 0.5,
        "photometric_distortion": 1.0,
        "published_resampling": True,
    },
    # Ours, for small data sets: what was learnt before moves slowly, and the decoder has time to catch up.
    "finetune": {
        "loss": "cross_entropy",
        "num_train_epochs": 50.0,
        "learning_rate_at_16": 2e-4,
        "weight_decay": 0.01,
        "without_decay": [*UNDECAYED],
        "layer_decay": 0.9,
        "warmup_epochs": 2.0,
        "scale_lowest": 0.5,
        "scale_highest": 2.0,
        "horizontal_flip": 0.5,
        "photometric_distortion": 0.5,
        "published_resampling": False,
    },
}
# The published gradient clip on ADE20K, of this variant alone.
CLIPPED, CLIPPED_GRAD_NORM = hf_pvt.VARIANTS["p2t-large"], 35.0
# Flags whose augmentation moves colours.
COLOURS = ("photometric_distortion",)


@dataclass
class SegmentationArguments:
    """Model, labels, augmentation and evaluation. What is None is the recipe's."""

    recipe: Literal["finetune", "ade20k"] = flag("Values of the flags that are not given.", "finetune")
    model_name_or_path: str | None = flag("Where to start: a Hub id, a folder, a published .pth or .safetensors.")
    from_scratch: str | None = flag(
        "Start from random weights: a variant such as pvt-v2-b0, or a folder's config.json."
    )
    mask_column: str | None = flag('Column of the label maps; default: "annotation", "mask", "label", ...')
    labels: str | None = flag(
        'A JSON file {"<pixel value>": name, ...}, or "ade20k"; default: labels.json beside the data.'
    )
    reduce_labels: bool = flag("Label 0 is no label, the others shift down by one, as in ADE20K.", False)
    shorter_side: int = flag("Pixels to which the shorter side is scaled, in training times a random factor.", 512)
    longer_side: int = flag("The longer side stays below this, times the same factor.", 2048)
    crop_size: int | None = flag("Side of the training images in pixels; default: --shorter_side.")
    largest_share: float = flag("A crop is drawn anew where one label fills more than this.", 0.75)
    loss: LossName | None = flag("Dice beside it helps where labels differ much in size, such as small lesions.")
    learning_rate_at_16: float | None = flag("Without --learning_rate: this times the global batch / 16.")
    drop_path_rate: float | None = flag("Stochastic depth; default: the model's own.")
    scale_lowest: float | None = flag("Smallest random factor of the size.")
    scale_highest: float | None = flag("Largest random factor of the size.")
    horizontal_flip: float | None = flag("Probability to mirror an image.")
    photometric_distortion: float | None = flag("Probability to distort brightness, contrast, saturation and hue.")
    published_resampling: bool | None = flag("Resize as OpenCV, without antialiasing, as the published runs did.")
    sliding_window: int | None = flag("Evaluate images at their own size through a window of so many pixels.")
    overlays: int = flag("Pictures of predictions that each evaluation writes.", 4)


class TrainingView:
    """An image and its labels, scaled, cropped, flipped and distorted by chance: (C, crop, crop) and (crop, crop)."""

    def __init__(self, task: Any, decode: Decoder, processor: Any) -> None:
        self.task, self.decode = task, decode
        self.scale = RandomScale(
            task.shorter_side, task.longer_side, task.scale_lowest, task.scale_highest, processor.published_resampling
        )
        self.crop = RandomCrop(task.crop_size, task.largest_share, decode.labels.ignored)
        self.distort = PhotometricDistortion()
        self.normalise = v2.Compose(
            [
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(processor.image_mean, processor.image_std),
            ]
        )

    def __call__(self, example: Example) -> Sample:
        image, labels = self.crop(*self.scale(*self.decode(example)))
        if chance(self.task.horizontal_flip):
            image, labels = flip(image, labels)
        if chance(self.task.photometric_distortion):
            image = self.distort(image)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image).movedim(2, 0)  # (C, h, w)
        targets = torch.from_numpy(np.ascontiguousarray(labels))
        pixel_values, targets = pad(self.normalise(image), targets, self.task.crop_size, self.decode.labels.ignored)
        return {"pixel_values": pixel_values, "labels": targets}


class Segmentation:
    """`SegmentationLoss` and `SegmentationEvaluation`, of one run."""

    def __init__(
        self,
        accelerator: Accelerator,
        loss: SegmentationLoss,
        evaluation: Evaluation,
        validation: Iterable[Sample] | None,
    ) -> None:
        self.accelerator, self.loss = accelerator, loss
        self.evaluation, self.validation = evaluation, validation

    def shares(self, batches: Sequence[Sample]) -> Tensor:
        """By labelled pixels and images, so that a step's loss is the mean over all of its, however they are divided.

        Batch norm still sees one batch of all processes at a time, so accumulation is not the joint batch.
        """
        amounts = torch.stack([self.loss.amounts(batch) for batch in batches])  # (batches, T)
        amounts = amounts.to(self.accelerator.device)
        mean = self.accelerator.reduce(amounts.mean(dim=0), "mean")
        return amounts / torch.where(mean > 0, mean, 1)


def schedule_of(
    task: Any, optimization: OptimizationArguments, steps_per_epoch: int | None, global_batch: int
) -> Schedule:
    """From the warm-up to zero by a power of what is left."""
    total, warmup = run_length(optimization, steps_per_epoch)
    peak = optimization.learning_rate
    if peak is None:
        peak = task.learning_rate_at_16 * global_batch / 16
    return Schedule(peak, total, warmup, curve="poly", power=0.9)


def complete(groups: Sequence[Any]) -> None:
    """Fill in the recipe, and check what belongs together."""
    data, optimization, run, task = groups
    recipe = dict(RECIPES[task.recipe])
    if optimization.num_train_epochs is not None:
        recipe.pop("max_steps", None)
    fill(groups, recipe)
    check(optimization, run)
    task.crop_size = task.crop_size or task.shorter_side
    # Label maps at their own sizes do not make batches.
    run.per_device_eval_batch_size = 1


def is_clipped(config: PreTrainedConfig) -> bool:
    """Whether a model is of the variant that the published recipe clips."""
    shape = (config.model_type, tuple(config.hidden_sizes), tuple(config.depths))
    return shape == (CLIPPED.model_type, CLIPPED.hidden_sizes, CLIPPED.depths)


def main(argv: Sequence[str] | None = None) -> None:
    classes = (DataArguments, OptimizationArguments, RunArguments, SegmentationArguments)
    data, optimization, run, task = groups = parse(*classes, description=__doc__.splitlines()[0], argv=argv)
    colours = [name for name in COLOURS if getattr(task, name)]
    complete(groups)
    accelerator = start(optimization, run)
    if task.sliding_window and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("--sliding_window needs whole weights in every process; leave it out with FSDP.")
    seed = optimization.seed

    labels = open_label_values(data, task.labels, task.reduce_labels)
    training, validation = open_label_maps(data, task.mask_column, derived_seed(seed, Purpose.SPLIT))
    check_masks(accelerator, labels, training, validation, data.on_bad_image, task.shorter_side)
    feed = Feed(accelerator, data, run, seed)
    order = feed.order(training)
    steps_per_epoch = None if order is None else order.steps_per_epoch
    schedule = schedule_of(task, optimization, steps_per_epoch, feed.global_batch)
    size = {"shortest_edge": task.shorter_side, "longest_edge": task.longer_side}
    model = open_model(
        AutoModelForSemanticSegmentation,
        task.model_name_or_path,
        task.from_scratch,
        labels.names,
        seed,
        drop_path_rate=task.drop_path_rate,
        semantic_loss_ignore_index=labels.ignored,
        num_channels=data.num_channels,
    )
    channels = model.config.num_channels
    leave_colours(task, COLOURS, colours, channels)
    processor = hf_pvt.segmentation_image_processor(
        channels,
        size=size,
        do_reduce_labels=task.reduce_labels,
        published_resampling=task.published_resampling,
        **statistics(data, channels),
    )
    if task.recipe == "ade20k" and optimization.max_grad_norm is None and is_clipped(model.config):
        optimization.max_grad_norm = CLIPPED_GRAD_NORM

    decode = Decoder(labels, channels)
    overlays = task.overlays if accelerator.is_main_process else 0
    evaluation = SegmentationEvaluation(decode, processor, task.sliding_window, overlays)
    loss = SegmentationLoss(task.loss, model.config)
    segmentation = Segmentation(accelerator, loss, evaluation, feed.evaluation(validation, evaluation.view))
    identity = asdict(data) | asdict(optimization) | asdict(task) | feed.identity()
    del identity["overlays"], identity["sliding_window"]  # they do not change what is learnt
    loop = Loop(accelerator, model, segmentation, schedule, steps_per_epoch, optimization, run, identity)
    loop.train(feed.training(training, TrainingView(task, decode, processor), order, schedule.total_steps))
    arguments = {name: value for group in groups for name, value in asdict(group).items()}
    finish(loop, model, processor, "image-segmentation", start_name(task.model_name_or_path), data, arguments)


if __name__ == "__main__":
    run_main(main)
