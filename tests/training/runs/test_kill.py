"""A run that is killed in a step or in a checkpoint's writing ends with the weights of one that was not."""

from pathlib import Path

import detection_runs
import pytest
from classification_runs import digits, flags, too_small
from families import MASK_RCNN
from killed_runs import killed_and_continued, same_weights

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def test_killed_at_every_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Eight steps of two epochs with mixing, drop path and repeated augmentation, and a checkpoint after each."""
    data = digits(tmp_path / "data", 32, 4)
    scratch = too_small(tmp_path, drop_path_rate=0.2)
    recipe = {"recipe": "pvt-imagenet", "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_steps": 8}
    saving = {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "ema_decay": 0.9, "logging_steps": 4}
    argv = [*flags(data, tmp_path / "out", from_scratch=scratch, **recipe, **saving), "--resume"]
    expected = {
        "in a step": [],  # the third
        "half a file": ["checkpoint-4.incomplete"],
        "half a manifest": ["checkpoint-4.incomplete"],
        "before the name": ["checkpoint-4.incomplete"],
        "after the name": [],
        "half deleted": ["checkpoint-3.incomplete"],
    }
    assert killed_and_continued("run_image_classification", argv, tmp_path / "out", [*expected]) == expected
    assert same_weights(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-7", "checkpoint-8"]


def test_a_killed_detector(tmp_path: Path) -> None:
    """With augmentation, drawn proposals and samples, a moving average; at last before the model has its name."""
    data = detection_runs.annotated_scenes(tmp_path / "data", 12, 4)
    start = detection_runs.detector(tmp_path / "start", MASK_RCNN)
    values = {"model_name_or_path": start, "random_crop": 0.5, "ema_decay": 0.5, "drop_path_rate": 0.2}
    values |= {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "max_steps": 5, "per_device_train_batch_size": 2}
    argv = [*detection_runs.flags(data, tmp_path / "out", **values), "--resume"]
    expected = {"in a step": [], "half a manifest": ["checkpoint-3.incomplete"]}
    expected["before the model's name"] = ["model.incomplete"]
    assert killed_and_continued("run_object_detection", argv, tmp_path / "out", [*expected]) == expected
    assert same_weights(tmp_path / "out")
