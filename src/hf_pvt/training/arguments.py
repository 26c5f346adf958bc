"""The flags that the scripts share, and how flags, a YAML file and a recipe make one set of arguments."""

import difflib
import sys
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from .heap import DEFAULT_HEAP

# What weight decay leaves out unless told otherwise, "vectors" being biases and norms; and what it may leave out.
UNDECAYED = ("vectors", "position_embeddings", "cls_token")
DECAY_KINDS = (*UNDECAYED, "norms", "backbone_norms")


# What data files end with.
FILES = (".csv", ".parquet", ".tar")


def flag(text: str, default: Any = None) -> Any:
    """A dataclass field with its help; without a default the recipe decides, or it is off."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Where images come from."""

    dataset_name: str | None = flag("A data set of the Hub.")
    dataset_config_name: str | None = flag("Its configuration.")
    train_split: str = flag("Its split for training.", "train")
    validation_split: str | None = flag("Its split for evaluation; without one see --train_val_split.")
    train_dir: str | None = flag(
        "A folder of training data. For classification: a folder of images for each class, or metadata.csv with "
        "file_name,label[,split]. For segmentation: images/ and masks/ with the same stems, or ADE20K's "
        "images/training and annotations/training, beside them the same for validation. For detection: images, with "
        "COCO's JSON in --train_annotations. A file is taken for one of --train_files."
    )
    validation_dir: str | None = flag("The same, for evaluation.")
    train_files: list[str] | None = flag(
        "CSV files: image,label[,split] for classification, image,mask[,split] for segmentation, where files are "
        "relative to the table. Or parquet files, or WebDataset shards (.tar). Quoted * are expanded."
    )
    validation_files: list[str] | None = flag("The same, for evaluation.")
    train_val_split: float | None = flag(
        "This share of the training data is held out, where no validation is given; 0: nothing is measured."
    )
    streaming: bool = flag("Read while training, for data larger than the disk; needs --max_steps.", False)
    shuffle_buffer: int = flag("Samples that a stream is shuffled within.", 10_000)
    num_channels: int | None = flag("Channels of the images; default: the model's, 3 from scratch.")
    image_mean: list[float] | None = flag("Mean of each channel, of numbers from 0 to 1; default: ImageNet's.")
    image_std: list[float] | None = flag("Standard deviation of each channel; default: ImageNet's.")
    image_column: str | None = flag("Column of the images; default: the only one that holds images.")
    on_bad_image: Literal["error", "skip"] = flag(
        "Stop at a file that is no sound image, or list and skip it.", "error"
    )

    def __post_init__(self) -> None:
        """A file that is given as a folder is one of the files."""
        for part in ("train", "validation"):
            given = getattr(self, f"{part}_dir")
            if given and Path(given).suffix in FILES and not Path(given).is_dir():
                setattr(self, f"{part}_dir", None)
                setattr(self, f"{part}_files", [given])


# What a run may go on with otherwise than it began: neither the data's order nor the optimizer's groups depend on it.
CHANGEABLE = {
    *("learning_rate", "learning_rate_at_512", "learning_rate_at_16", "warmup_learning_rate", "final_learning_rate"),
    *("warmup_epochs", "warmup_steps", "num_train_epochs", "max_steps", "max_grad_norm", "mixed_precision"),
}


@dataclass
class OptimizationArguments:
    """What the weights become. With the data and the task's own flags, these make a run what it is."""

    seed: int = flag("Order, augmentation and initial weights follow from it.", 0)
    num_train_epochs: float | None = flag("Epochs; the recipe's where neither these nor steps are given.")
    max_steps: int | None = flag("Steps of the optimizer, in place of epochs.")
    learning_rate: float | None = flag("Highest rate; default: the recipe's, scaled by the batch where it says so.")
    weight_decay: float | None = flag("Of all weights but those of --without_decay.")
    without_decay: list[str] | None = flag(f"What does not decay, of: {' '.join(DECAY_KINDS)}; or: none.")
    layer_decay: float | None = flag("Factor of the rate from each block to the one before it; 1: none.")
    backbone_rate: float | None = flag("Factor of the rate of a detector's backbone, such as 0.1; default: 1.")
    warmup_epochs: float | None = flag("Epochs in which the rate rises.")
    warmup_steps: int | None = flag("Steps in which the rate rises, in place of epochs.")
    max_grad_norm: float | None = flag("Clip the gradient's norm; default: no clipping.")
    ema_decay: float | None = flag("Evaluate and save a moving average of the weights, such as 0.9999; default: none.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag("Default: what accelerate is configured for.")


@dataclass
class RunArguments:
    """Where and how to run. A resumed run may set these anew, as long as the batch over all processes is the same."""

    output_dir: str = flag("Checkpoints, the model and results.json go here.", "out/training")
    config: str | None = flag("A YAML file of flags; those of the command line come before it.")
    per_device_train_batch_size: int = flag("Images of one process at once.", 32)
    per_device_eval_batch_size: int | None = flag("The same in evaluation; default: as in training.")
    gradient_accumulation_steps: int = flag("Batches of each process that make one step.", 1)
    dataloader_num_workers: int | None = flag(
        "Processes that read images, for each process of the run; default: its share of the cores."
    )
    gradient_checkpointing: bool = flag("Compute activations twice to hold fewer.", False)
    compile: bool = flag("Compile the model with torch.compile.", False)
    channels_last: bool = flag("Weights in channels-last memory, as the activations are.", False)
    default_heap: bool = flag(DEFAULT_HEAP, False)
    checkpointing_steps: str | None = flag('A checkpoint every so many steps, or every "epoch"; default: none.')
    checkpoints_total_limit: int | None = flag("How many checkpoints are kept; default: all.")
    eval_steps: str | None = flag('Evaluate every so many steps, or every "epoch"; default: at the end only.')
    resume: bool = flag("Continue from the newest whole checkpoint, if there is one.", False)
    resume_from_checkpoint: str | None = flag("Continue from this checkpoint.")
    resume_changed: bool = flag(
        "Continue with other rates, warm-up, length, clipping or precision; results.json lists the changes.", False
    )
    logging_steps: int = flag("Steps between two looks at the loss, which wait for the device.", 10)
    report_to: list[str] | None = flag("Trackers of accelerate: tensorboard, wandb, trackio, ...")
    push_to_hub: bool = flag("Upload the model folder when all is done.", False)
    hub_model_id: str | None = flag("Repository to upload to, such as me/pvt-v2-b0-digits.")


def check(optimization: OptimizationArguments, run: RunArguments) -> None:
    """Raise ValueError for values that make no sense, by their flag."""
    counts = {name: getattr(run, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
    for name, value in (counts | {"logging_steps": run.logging_steps, "max_steps": optimization.max_steps}).items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected at least 1.")
    if optimization.ema_decay is not None and not 0 < optimization.ema_decay < 1:
        raise ValueError(f"--ema_decay is {optimization.ema_decay}, expected a number between 0 and 1.")
    if optimization.backbone_rate is not None and not 0 < optimization.backbone_rate <= 1:
        raise ValueError(f"--backbone_rate is {optimization.backbone_rate}, expected a number from above 0 to 1.")
    kinds = optimization.without_decay or []
    if kinds != ["none"] and not {*kinds} <= {*DECAY_KINDS}:
        raise ValueError(f"--without_decay is {' '.join(kinds)}, expected some of: {' '.join(DECAY_KINDS)}; or: none.")
    if run.resume_changed and not (run.resume or run.resume_from_checkpoint):
        raise ValueError("--resume_changed needs --resume or --resume_from_checkpoint, the checkpoint to continue.")
    if run.push_to_hub and not run.hub_model_id:
        raise ValueError("--push_to_hub needs --hub_model_id, the repository to upload to.")
    for name in ("checkpointing_steps", "eval_steps"):
        every(getattr(run, name), 1, name)


def statistics(data: DataArguments, num_channels: int) -> dict[str, list[float]]:
    """The fields of an image processor that `data` gives.

    Raises:
        ValueError: another number of them than channels.
    """
    given = {name: getattr(data, name) for name in ("image_mean", "image_std") if getattr(data, name) is not None}
    for name, values in given.items():
        if len(values) != num_channels:
            raise ValueError(f"--{name} has {len(values)} numbers, expected one for each of {num_channels} channels.")
    return given


def leave_colours(task: Any, names: Sequence[str], given: Sequence[str], num_channels: int) -> None:
    """Switch augmentation of colours off where the channels are not red, green and blue.

    Args:
        names: flags of `task` that move colours.
        given: those that the user chose, and not the recipe.

    Raises:
        ValueError: one of `given` asks for it all the same.
    """
    if num_channels == 3:
        return
    for name in names:
        if name in given:
            raise ValueError(f"--{name} moves colours, which images of {num_channels} channels have not; leave it out.")
        setattr(task, name, 0.0)


def data_name(data: DataArguments) -> str:
    """What to call the training data: its id, or its folder, with the one above where it is but a split."""
    if data.dataset_name:
        return data.dataset_name
    folder = data.train_dir or Path((data.train_files or [""])[0]).parent
    *_, above, name = ("", *Path(folder).absolute().parts)
    return f"{above}/{name}" if name in ("train", "training", "images") else name


def every(value: str | None, steps_per_epoch: int | None, name: str) -> int | None:
    """The number of steps that `--name` means, which is a number or "epoch"; None is never.

    Raises:
        ValueError: neither, or "epoch" of a stream, whose epochs have no length.
    """
    if value is None:
        return None
    if value == "epoch":
        if steps_per_epoch is None:
            raise ValueError(f"--{name} epoch needs data of a known length; give a number of steps for a stream.")
        return steps_per_epoch
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f'--{name} is {value!r}, expected a number of steps or "epoch".')
    return int(value)


def parse(*classes: Any, description: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One object of each dataclass, from the command line and the YAML file that it names.

    Raises:
        ValueError: an unknown flag, a wrong value, an unknown key or no mapping in the file.
        FileNotFoundError: there is no such file.
    """
    usage = "%(prog)s --flag value ... (--help lists the flags)"
    parser = HfArgumentParser(classes, description=description, allow_abbrev=False, usage=usage, exit_on_error=False)
    flags = list(sys.argv[1:] if argv is None else argv)
    known = {name for cls in classes for name in cls.__dataclass_fields__}
    try:
        path = parser.parse_known_args(flags)[0].config
        if path is not None:
            flags = _as_flags(_read_yaml(Path(path), known)) + flags  # the last of two equal flags counts
        *groups, left = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
    except ArgumentError as error:
        raise ValueError(f"{error}; see --help.") from error
    unknown = [word.removeprefix("--").partition("=")[0] for word in left if word.startswith("--")]
    if unknown:
        raise ValueError(f"there is no flag {', '.join(f'--{nearest(name, known)}' for name in unknown)}; see --help.")
    if left:
        raise ValueError(f"{' '.join(left)} belongs to no flag; see --help.")
    return tuple(groups)


def nearest(name: str, known: Collection[str]) -> str:
    """The name, and the known one that may have been meant."""
    found = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"{name} (did you mean {found[0]}?)" if found else name


def _read_yaml(path: Path, known: set[str]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected lines of `flag: value`.")
    unknown = [nearest(name, known) for name in sorted(str(key) for key in content.keys() - known)]
    if unknown:
        raise ValueError(f"{path} has unknown keys: {', '.join(unknown)}; --help lists the flags.")
    return content


def _as_flags(values: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def fill(arguments: Sequence[Any], recipe: dict[str, Any]) -> None:
    """Give the flags that are None the recipe's value."""
    for name, value in recipe.items():
        for group in arguments:
            if getattr(group, name, value) is None:
                setattr(group, name, value)
