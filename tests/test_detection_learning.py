"""Detectors learn digits that somebody wrote, on photographs, and faster from weights that have seen some."""

from pathlib import Path
from typing import Any

import pytest
from detection_runs import by_hand, detector, digit_scenes, flags, run
from families import MASK_RCNN, RETINANET, DetectorRow
from transformers import AutoModelForObjectDetection

# Large enough to learn, with anchors of 12 to 64 pixels: digits have about 15 by 25.
ANCHORS = {"anchor_scales": (1.5, 2), "anchor_ratios": (1, 1.5)}
FIELDS: dict[str, dict[str, Any]] = {
    "retinanet": {"strides": (8, 16, 32)},
    "mask_rcnn": {"max_proposals": 60, "box_samples": 64, "box_hidden_size": 64},
}
ONE_NAME = {"id2label": {0: "digit"}, "label2id": {"digit": 0}}
GENTLE = {"horizontal_flip": 0, "photometric_distortion": 0, "scale_lowest": 1, "max_grad_norm": 1}
RATES = {"learning_rate": 2e-3, "warmup_steps": 10, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_scenes(tmp_path_factory.mktemp("data"), 300, 40, one_name=True)


def start(folder: Path, kind: DetectorRow) -> Path:
    return detector(folder, kind, (32, 64, 96, 128), **ANCHORS, **FIELDS[kind.name], **ONE_NAME)


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The model of each run, and its scores."""
    found = {}
    for kind, steps in ((RETINANET, 120), (MASK_RCNN, 120)):
        folder = tmp_path_factory.mktemp(kind.name)
        values = {"model_name_or_path": start(folder / "start", kind), "max_steps": steps}
        found[kind.name] = folder / "out" / "model", run(flags(data, folder / "out", **values, **RATES, **GENTLE))
    return found


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_learns_digit_scenes(kind: str, data: Path, learnt: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Held-out digits on other parts of the photographs; pycocotools finds the same scores for the model folder."""
    folder, record = learnt[kind]
    metrics = record["metrics"]
    print(metrics)
    assert metrics["examples"] == 40
    assert metrics["box_ap50"] > 0.8
    if kind == "mask_rcnn":
        assert metrics["mask_ap50"] > 0.8
    for name, value in by_hand(folder, data / "validation").items():
        assert metrics[name] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fine_tune_beats_scratch_at_equal_steps(
    seed: int, data: Path, learnt: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    """From a pyramid that has seen digits, with fresh neck and heads."""
    AutoModelForObjectDetection.from_pretrained(learnt["retinanet"][0]).backbone.save_pretrained(tmp_path / "pyramid")
    scratch = RETINANET.model.from_pretrained(start(tmp_path / "scratch", RETINANET))
    RETINANET.model.from_backbone(tmp_path / "pyramid", config=scratch.config).save_pretrained(tmp_path / "tuned")
    scores = {}
    for name in ("scratch", "tuned"):
        values = {"model_name_or_path": tmp_path / name, "max_steps": 30, "seed": seed}
        scores[name] = run(flags(data, tmp_path / f"out-{name}", **values, **RATES, **GENTLE))["metrics"]["box_ap50"]
    print(scores)
    assert scores["tuned"] > scores["scratch"] + 0.1
