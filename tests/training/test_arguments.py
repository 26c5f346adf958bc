"""Flags, the YAML file, and the recipe: who wins, and what is refused."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
from refusals import refusal
from run_image_classification import ClassificationArguments
from run_semantic_segmentation import SegmentationArguments

from hf_pvt.training.arguments import (
    CHANGEABLE,
    DataArguments,
    OptimizationArguments,
    RunArguments,
    check,
    every,
    fill,
    flag,
    parse,
)


@dataclass
class TaskArguments:
    mixup: float | None = flag("Mixup's alpha.")
    recipe: str = flag("Recipe.", "plain")


def parsed(*argv: str) -> tuple[DataArguments, OptimizationArguments, RunArguments, TaskArguments]:
    classes = (DataArguments, OptimizationArguments, RunArguments, TaskArguments)
    return parse(*classes, description="Train.", argv=argv)


def test_flags() -> None:
    data, optimization, run, task = parsed(
        *("--train_files", "a.tar", "b.tar", "--streaming", "--learning_rate", "3e-4", "--mixed_precision", "bf16"),
        *("--resume", "--mixup", "0.8", "--compile", "false"),
    )
    assert data.train_files == ["a.tar", "b.tar"] and data.streaming and data.on_bad_image == "error"
    assert optimization.learning_rate == 3e-4 and optimization.mixed_precision == "bf16"
    assert run.resume and not run.compile
    assert task == TaskArguments(mixup=0.8, recipe="plain")


def test_a_file_of_flags_that_the_command_line_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "learning_rate: 3e-4\nmax_steps: 100\nreport_to: [tensorboard, wandb]\ncompile: true\n"
        "train_val_split: 0.1\nrecipe: two words\nmax_grad_norm: null\n"
    )
    data, optimization, run, task = parsed("--max_steps", "7", "--config", str(path), "--compile", "false")
    assert optimization.max_steps == 7 and run.compile is False
    assert optimization.learning_rate == 3e-4 and optimization.max_grad_norm is None
    assert run.report_to == ["tensorboard", "wandb"] and run.config == str(path)
    assert data.train_val_split == 0.1 and task.recipe == "two words"


def test_a_file_that_is_refused(tmp_path: Path) -> None:
    cases = {
        "learning_rat: 1\nseed: 3\nwarp: 2\n": (
            "has unknown keys: learning_rat (did you mean learning_rate?), warp; --help lists the flags."
        ),
        "- seed\n": "holds a list, expected lines of `flag: value`.",
        "": "holds a NoneType, expected lines of `flag: value`.",
        "seed: [1\n": "is not YAML: ",
    }
    path = tmp_path / "run.yaml"
    for content, message in cases.items():
        path.write_text(content)
        said = refusal(content, parsed, "--config", str(path))
        assert said.startswith(f"{path} {message}") and "\n" not in said, content


def test_no_file() -> None:
    with pytest.raises(FileNotFoundError, match="there is no configuration file gone.yaml"):
        parsed("--config", "gone.yaml")


def test_a_wrong_flag_names_the_nearest() -> None:
    for line, message in {
        "--learning_rat 1": "there is no flag --learning_rat (did you mean learning_rate?); see --help.",
        "--mixupp=0 --zzz": "there is no flag --mixupp (did you mean mixup?), --zzz; see --help.",
        "--train-fils a.tar": "there is no flag --train-fils (did you mean train_files?); see --help.",
        "--seed 1 2": "2 belongs to no flag; see --help.",
        "--max_steps many": "argument --max_steps/--max-steps: invalid int value: 'many'; see --help.",
        "--seed": "argument --seed: expected one argument; see --help.",
    }.items():
        assert refusal(line, parsed, *line.split()) == message, line


def test_wrong_values_in_a_file_are_named_as_flags_are(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mixed_precision: int4\n")
    with pytest.raises(ValueError, match="argument --mixed_precision/--mixed-precision: invalid choice: 'int4'"):
        parsed("--config", str(tmp_path / "run.yaml"))


def test_the_recipe_fills_what_was_not_given() -> None:
    groups = parsed("--mixup", "0", "--learning_rate", "1e-3")
    fill(groups, {"mixup": 0.8, "learning_rate": 5e-4, "weight_decay": 0.05, "unknown_here": 1})
    _, optimization, _, task = groups
    assert task.mixup == 0.0 and optimization.learning_rate == 1e-3 and optimization.weight_decay == 0.05


def test_every_flag_has_its_help() -> None:
    assert all(f.metadata["help"] for group in parsed() for f in dataclasses.fields(group))


def test_numbers_that_make_no_sense() -> None:
    for line, message in {
        "--max_steps 0": "--max_steps is 0, expected at least 1.",
        "--push_to_hub": "--push_to_hub needs --hub_model_id, the repository to upload to.",
        "--resume_changed": (
            "--resume_changed needs --resume or --resume_from_checkpoint, the checkpoint to continue."
        ),
        "--ema_decay 1": "--ema_decay is 1.0, expected a number between 0 and 1.",
        "--without_decay biases vectors": (
            "--without_decay is biases vectors, expected some of: vectors position_embeddings cls_token norms "
            "backbone_norms; or: none."
        ),
        "--eval_steps often": "--eval_steps is 'often', expected a number of steps or \"epoch\".",
        "--checkpointing_steps 0": "--checkpointing_steps is '0', expected a number of steps or \"epoch\".",
    }.items():
        assert refusal(line, check, *parsed(*line.split())[1:3]) == message, line


def test_every_so_many_steps() -> None:
    assert every(None, 10, "eval_steps") is None
    assert every("7", None, "eval_steps") == 7
    assert every("epoch", 10, "eval_steps") == 10
    with pytest.raises(ValueError, match="--eval_steps epoch needs data of a known length"):
        every("epoch", None, "eval_steps")


def test_what_may_change_is_a_flag() -> None:
    groups = (OptimizationArguments, ClassificationArguments, SegmentationArguments)
    assert {field.name for group in groups for field in dataclasses.fields(group)} >= CHANGEABLE
