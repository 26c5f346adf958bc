"""Train or fine-tune PVT, PVTv2 or P2T for image classification, from a laptop to many nodes.

    python examples/run_image_classification.py --train_dir photos --train_val_split 0.1 \
        --model_name_or_path me/pvt-v2-b2 --output_dir out/photos

    accelerate launch --multi_gpu examples/run_image_classification.py --recipe pvt-imagenet --from_scratch pvt-v2-b2 \
        --train_dir imagenet/train --validation_dir imagenet/val --per_device_train_batch_size 128 \
        --checkpointing_steps epoch --checkpoints_total_limit 2 --resume

Data: class folders, a CSV file image,label[,split] or a folder's metadata.csv, a data set of the Hub, parquet files or
WebDataset shards. Out come `output_dir/model`, which `from_pretrained` opens, and `output_dir/results.json`. `--help`
lists the flags, `training/` holds what they share with semantic segmentation, examples/README.md is the guide.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, PreTrainedModel

import hf_pvt
from hf_pvt.images.image_processing_pvt import channels_of
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
from hf_pvt.training.augmentation.classification import BICUBIC, Mixing, RandAugment
from hf_pvt.training.data.decoding import decode_image
from hf_pvt.training.data.labelled_images import Example, Labels, check_classes, open_images
from hf_pvt.training.data.loaders import Feed
from hf_pvt.training.data.samples import Sample
from hf_pvt.training.data.sampling import Purpose, derived_seed
from hf_pvt.training.evaluators.classification import ClassificationEvaluation
from hf_pvt.training.evaluators.evaluator import Evaluation
from hf_pvt.training.launch import run_main, start
from hf_pvt.training.loop import Loop
from hf_pvt.training.models import open_model
from hf_pvt.training.optimization import Schedule, run_length
from hf_pvt.training.results import finish, start_name

logger = get_logger(__name__)

# The rate of the published runs changes after each epoch, so that their epochs 0 and 1 both run at 1e-6; ours changes
# with each step.
PUBLISHED: dict[str, Any] = {
    "num_train_epochs": 300.0,
    "learning_rate_at_512": 5e-4,
    "weight_decay": 0.05,
    "without_decay": ["vectors", "cls_token"],  # so PVT's position embeddings decay
    "warmup_learning_rate": 1e-6,
    "final_learning_rate": 1e-5,
    "label_smoothing": 0.1,
    "crop_scale": 0.08,
    "horizontal_flip": 0.5,
    "rand_augment": 9.0,
    "color_jitter": 0.4,
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "repeated_augmentation": 3,
}
# What the flags are that are not given.
RECIPES: dict[str, dict[str, Any]] = {
    # PVT, section 5.1, and PVTv2, section 4.1: DeiT's (arXiv 2012.12877), with warm-up from 1e-6 to 1e-5.
    "pvt-imagenet": PUBLISHED | {"warmup_epochs": 5.0},
    # P2T, section 4.1: a longer warm-up, and no clipping in the large variants either.
    "p2t-imagenet": PUBLISHED | {"warmup_epochs": 20.0},
    # Ours, for small data sets: what was learnt before moves slowly, and images stay what they are.
    "finetune": {
        "num_train_epochs": 30.0,
        "learning_rate_at_512": 1e-3,
        "weight_decay": 0.05,
        "without_decay": [*UNDECAYED],
        "layer_decay": 0.9,
        "warmup_epochs": 3.0,
        "warmup_learning_rate": 0.0,
        "final_learning_rate": 0.0,
        "label_smoothing": 0.1,
        "crop_scale": 0.5,
        "horizontal_flip": 0.5,
        "rand_augment": 0.0,
        "color_jitter": 0.1,
        "random_erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "repeated_augmentation": 1,
    },
}
# Flags whose augmentation moves colours.
COLOURS = ("rand_augment", "color_jitter")
# The published gradient clip of PVT's and PVTv2's large variants: those with this drop path and more.
LARGE_DROP_PATH, LARGE_GRAD_NORM = 0.3, 1.0


@dataclass
class ClassificationArguments:
    """Model, labels and augmentation. What is None is the recipe's."""

    recipe: Literal["finetune", "pvt-imagenet", "p2t-imagenet"] = flag(
        "Values of the flags that are not given.", "finetune"
    )
    model_name_or_path: str | None = flag("Where to start: a Hub id, a folder, a published .pth or .safetensors.")
    from_scratch: str | None = flag("Start from random weights: a variant such as pvt-v2-b0, or a configuration.")
    keep_classifier: bool = flag("The checkpoint's labels are the data's, under other names.", False)
    label_column: str | None = flag('Column of the labels; default: the only one of class labels, "label" or "cls".')
    label_names: str | None = flag('A file with one name per line, or "imagenet-1k", where the data has no names.')
    image_size: int = flag("Side of the images in pixels.", 224)
    learning_rate_at_512: float | None = flag("Without --learning_rate: this times the global batch / 512.")
    warmup_learning_rate: float | None = flag("Where the warm-up starts.")
    final_learning_rate: float | None = flag("Where the cosine ends.")
    drop_path_rate: float | None = flag("Stochastic depth; default: the model's own.")
    label_smoothing: float | None = flag("Share of the target that is spread over all labels.")
    crop_scale: float | None = flag("Random crops keep at least this share of the area.")
    horizontal_flip: float | None = flag("Probability to mirror an image.")
    rand_augment: float | None = flag("Magnitude of RandAugment, 0: none; it takes the place of colour jitter.")
    color_jitter: float | None = flag("Range of brightness, contrast and saturation.")
    random_erasing: float | None = flag("Probability to erase a rectangle, each pixel by its own noise.")
    mixup: float | None = flag("Alpha of mixup.")
    cutmix: float | None = flag("Alpha of CutMix.")
    repeated_augmentation: int | None = flag("Copies of an image in an epoch, which keeps its length.")


class TrainingView:
    """An image, cropped, flipped and augmented by chance: `pixel_values` (C, size, size), normalised, and `labels`."""

    def __init__(self, task: Any, processor: Any) -> None:
        jitter = task.color_jitter
        self.channels = channels_of(processor.image_mean, processor.image_std)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(task.image_size, scale=(task.crop_scale, 1.0), interpolation=BICUBIC),
                v2.RandomHorizontalFlip(task.horizontal_flip),
                # As in timm, with which the papers trained: where RandAugment is on, colour jitter is off.
                RandAugment(task.rand_augment) if task.rand_augment else v2.ColorJitter(jitter, jitter, jitter),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(processor.image_mean, processor.image_std),
                v2.RandomErasing(task.random_erasing, value="random"),
            ]
        )

    def __call__(self, example: Example) -> Sample:
        source, name, label = example
        image = decode_image(source, name, self.channels)
        if self.channels != 3:
            image = torch.from_numpy(image).movedim(2, 0)  # (C, H, W)
        return {"pixel_values": self.transform(image), "labels": label}


class Classification:
    """Cross-entropy with smoothed and mixed labels; for the evaluation see `ClassificationEvaluation`."""

    def __init__(
        self,
        task: Any,
        num_labels: int,
        evaluation: Evaluation,
        validation: Iterable[Sample] | None,
    ) -> None:
        self.mix = Mixing(task.mixup, task.cutmix, num_labels)
        self.label_smoothing = task.label_smoothing
        self.evaluation, self.validation = evaluation, validation

    def loss(self, model: nn.Module, batch: Sample) -> Tensor:
        pixel_values, targets = self.mix(batch["pixel_values"], batch["labels"])
        logits = model(pixel_values=pixel_values).logits.float()  # (B, num_labels)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    def shares(self, batches: Sequence[Sample]) -> Iterable[float]:
        """All batches have as many images."""
        return [1.0] * len(batches)


def classifier(
    task: ClassificationArguments, labels: Labels, seed: int, num_channels: int | None = None
) -> PreTrainedModel:
    """The model to train. A PVT from scratch has its position embeddings for our images' size."""
    fields: dict[str, Any] = {"drop_path_rate": task.drop_path_rate, "num_channels": num_channels}
    if task.from_scratch in hf_pvt.VARIANTS and hf_pvt.VARIANTS[task.from_scratch].model_type == "pvt":
        fields["image_size"] = task.image_size
    start, scratch = task.model_name_or_path, task.from_scratch
    return open_model(
        AutoModelForImageClassification, start, scratch, labels.names, seed, task.keep_classifier, **fields
    )


def schedule_of(
    task: Any, optimization: OptimizationArguments, steps_per_epoch: int | None, global_batch: int
) -> Schedule:
    """Warm-up and cosine over the run."""
    total, warmup = run_length(optimization, steps_per_epoch)
    peak = optimization.learning_rate
    if peak is None:
        peak = task.learning_rate_at_512 * global_batch / 512
    return Schedule(peak, total, warmup, min(task.warmup_learning_rate, peak), min(task.final_learning_rate, peak))


def main(argv: Sequence[str] | None = None) -> None:
    classes = (DataArguments, OptimizationArguments, RunArguments, ClassificationArguments)
    data, optimization, run, task = groups = parse(*classes, description=__doc__.splitlines()[0], argv=argv)
    colours = [name for name in COLOURS if getattr(task, name)]
    fill(groups, RECIPES[task.recipe])
    check(optimization, run)
    accelerator = start(optimization, run)
    seed = optimization.seed

    training, validation, labels = open_images(
        data, task.label_column, task.label_names, derived_seed(seed, Purpose.SPLIT)
    )
    check_classes(labels, training)
    feed = Feed(accelerator, data, run, seed)
    order = feed.order(training, task.repeated_augmentation)
    steps_per_epoch = None if order is None else order.steps_per_epoch
    schedule = schedule_of(task, optimization, steps_per_epoch, feed.global_batch)
    model = classifier(task, labels, seed, data.num_channels)
    channels = model.config.num_channels
    leave_colours(task, COLOURS, colours, channels)
    processor = hf_pvt.classification_image_processor(task.image_size, channels, **statistics(data, channels))
    if task.recipe == "pvt-imagenet" and optimization.max_grad_norm is None:
        large = model.config.drop_path_rate >= LARGE_DROP_PATH
        optimization.max_grad_norm = LARGE_GRAD_NORM if large else None

    evaluation = ClassificationEvaluation(len(labels.names), processor)
    validating = feed.evaluation(validation, evaluation.view)
    classification = Classification(task, len(labels.names), evaluation, validating)
    identity = asdict(data) | asdict(optimization) | asdict(task) | feed.identity()
    loop = Loop(accelerator, model, classification, schedule, steps_per_epoch, optimization, run, identity)
    loop.train(feed.training(training, TrainingView(task, processor), order, schedule.total_steps))
    arguments = {name: value for group in groups for name, value in asdict(group).items()}
    finish(loop, model, processor, "image-classification", start_name(task.model_name_or_path), data, arguments)


if __name__ == "__main__":
    run_main(main)
