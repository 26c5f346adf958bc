"""A run that is killed at any moment, while saving too, ends with the weights of a run that was not."""

from pathlib import Path

import detection_runs
import pytest
from classification_runs import digits, flags, too_small
from families import MASK_RCNN, RETINANET, DetectorRow
from killed_runs import killed_and_continued, same_weights

KILLS = 20
STEPS = 8


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Eight steps of two epochs with mixing, drop path and repeated augmentation, and a checkpoint after each."""
    data = digits(tmp_path / "data", 32, 4)
    scratch = too_small(tmp_path, drop_path_rate=0.2)
    recipe = {"recipe": "pvt-imagenet", "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_steps": STEPS}
    saving = {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "ema_decay": 0.9, "logging_steps": 4}
    return [*flags(data, tmp_path / "out", from_scratch=scratch, **recipe, **saving), "--resume"]


def test_killed_at_random_moments(argv: list[str], tmp_path: Path) -> None:
    seen = killed_and_continued("run_image_classification", argv, tmp_path / "out", KILLS)
    assert seen["killed"] == KILLS and seen["torn"] >= 3
    assert same_weights(tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert left == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


@pytest.mark.parametrize("kind", [RETINANET, MASK_RCNN], ids=str)
def test_detectors_killed_at_random_moments(kind: DetectorRow, tmp_path: Path) -> None:
    """With augmentation, proposals and samples that are drawn, and a moving average."""
    data = detection_runs.annotated_scenes(tmp_path / "data", 12, 4)
    start = detection_runs.detector(tmp_path / "start", kind)
    values = {"model_name_or_path": start, "random_crop": 0.5, "ema_decay": 0.5, "drop_path_rate": 0.2}
    values |= {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "max_steps": 6, "per_device_train_batch_size": 2}
    argv = [*detection_runs.flags(data, tmp_path / "out", **values), "--resume"]
    seen = killed_and_continued("run_object_detection", argv, tmp_path / "out", kills=5)
    assert seen["killed"] == 5 and seen["torn"] >= 1
    assert same_weights(tmp_path / "out")
