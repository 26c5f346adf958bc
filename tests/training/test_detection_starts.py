"""Where a detector's training may start, and what it is told instead."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from classification_runs import too_small
from detection_runs import annotate, annotated_scenes, detector, flags, run
from families import MASK_RCNN, PVT_V2, RETINANET
from safetensors.torch import load_file
from script_runs import weights
from transformers import AutoModelForObjectDetection

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return annotated_scenes(tmp_path_factory.mktemp("data"), 16, 6)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("starts")
    return {kind.name: detector(folder / kind.name, kind) for kind in (RETINANET, MASK_RCNN)}


def test_a_new_detector_on_a_classifier(data: Path, tmp_path: Path) -> None:
    """Its pyramid begins as the classifier's, and the heads as published."""
    torch.manual_seed(1)
    config = PVT_V2.config.from_pretrained(too_small(tmp_path, num_labels=5, drop_path_rate=0.0))
    classifier = PVT_V2.classifier(config)
    classifier.save_pretrained(tmp_path / "classifier")
    values = {"architecture": "retinanet", "from_backbone": tmp_path / "classifier", "max_steps": 1}
    values |= {"learning_rate": 1e-30, "weight_decay": 0, "train_val_split": 0, "validation_dir": None}
    run(flags(data, tmp_path / "out", drop_path_rate=0.25, **values))
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "out" / "model")
    assert (model.config.num_labels, model.config.fpn_hidden_size) == (10, 256)
    assert model.config.backbone_config.drop_path_rate == 0.25
    theirs = classifier.base_model.state_dict()
    ours = {name: weight for name, weight in model.backbone.state_dict().items() if name in theirs}
    assert len(ours) > 40
    torch.testing.assert_close(ours, {name: theirs[name] for name in ours}, rtol=0, atol=1e-20)


@pytest.mark.parametrize("source", ["saved", pytest.param("new", marks=pytest.mark.slow)])
def test_masks_are_left_out(source: str, data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """Faster R-CNN, of a saved Mask R-CNN too; its data needs no masks."""
    shutil.copytree(data, tmp_path / "boxes")
    for split in ("train", "validation"):
        annotate(tmp_path / "boxes" / split, lambda content: [e.pop("segmentation") for e in content["annotations"]])
    start: dict[str, Any] = {"model_name_or_path": starts["mask_rcnn"]}
    if source == "new":
        start = {"architecture": "mask_rcnn", "from_backbone": "pvt-v2-b0", "per_device_train_batch_size": 1}
    values = flags(tmp_path / "boxes", tmp_path / "out", max_steps=1, **start)
    with pytest.raises(ValueError, match=r"^\d+ of \d+ training objects have no segmentation.*--with_masks False\.$"):
        run(values)
    metrics = run([*values, "--with_masks", "False"])["metrics"]
    assert "box_ap" in metrics and "mask_ap" not in metrics
    assert not any("mask" in name for name in weights(tmp_path / "out"))


def test_other_labels(data: Path, tmp_path: Path) -> None:
    """The layers that know the labels are new, whatever they were called; all others go on."""
    start = detector(tmp_path / "start", MASK_RCNN, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    values = {"learning_rate": 1e-30, "weight_decay": 0, "max_steps": 1, "train_val_split": 0, "validation_dir": None}
    run(flags(data, tmp_path / "out", model_name_or_path=start, **values))
    after = weights(tmp_path / "out")
    before = load_file(start / FILE)
    fresh = {n for n, w in before.items() if w.shape != after[n].shape or not w.allclose(after[n], rtol=0, atol=1e-20)}
    layers = {name.rsplit(".", 2)[-2] for name in fresh}
    assert layers == {"fc_cls", "fc_reg", "conv_logits"}


CANNOT_BE_RUN: list[tuple[dict[str, Any], str]] = [
    ({}, "say where to start: either --model_name_or_path, or --architecture with --from_backbone; got neither."),
    ({"architecture": "retinanet"}, "say where to start: "),
    ({"model_name_or_path": "DETECTOR", "architecture": "retinanet"}, "say where to start: "),
    ({"model_name_or_path": "DETECTOR", "from_backbone": "pvt-v2-b0"}, "say where to start: "),
    ({"model_name_or_path": "CLASSIFIER"}, "CLASSIFIER has no detector's heads; give it as --from_backbone"),
    ({"model_name_or_path": "./gone"}, "there is no file or folder ./gone to start from."),
    ({"architecture": "yolo", "from_backbone": "pvt-v2-b0"}, "argument --architecture: invalid choice: 'yolo'"),
    ({"model_name_or_path": "DETECTOR", "with_masks": True}, "--with_masks is nothing that a retinanet on pvt_v2 "),
    ({"model_name_or_path": "DETECTOR", "train_dir": None}, "there is no training data; give --train_dir with "),
    ({"model_name_or_path": "DETECTOR", "train_dir": "gone"}, "there is no folder gone."),
    ({"model_name_or_path": "DETECTOR", "train_annotations": "gone.json"}, "there is no file gone.json; give COCO"),
    (
        {"model_name_or_path": "DETECTOR", "bbox_format": "xy"},
        "argument --bbox_format/--bbox-format: invalid choice: 'xy'",
    ),
    ({"model_name_or_path": "DETECTOR", "recipe": "coco-2x"}, "argument --recipe: invalid choice: 'coco-2x'"),
    ({"model_name_or_path": "DETECTOR", "per_device_train_batch_size": 17}, "the training data has 16 samples, "),
]


def test_what_cannot_be_run(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """In a sentence that names the flag or the file."""
    PVT_V2.classifier(PVT_V2.tiny_config()).save_pretrained(tmp_path / "classifier")
    places = {"DETECTOR": str(starts["retinanet"]), "CLASSIFIER": str(tmp_path / "classifier")}
    for values, message in CANNOT_BE_RUN:
        with pytest.raises((ValueError, OSError)) as caught:
            run(flags(data, tmp_path / "out", **{name: places.get(str(v), v) for name, v in values.items()}))
        expected = message.replace("CLASSIFIER", places["CLASSIFIER"])
        assert str(caught.value).startswith(expected) and "\n" not in str(caught.value), (values, caught.value)
        assert not (tmp_path / "out").exists(), values
