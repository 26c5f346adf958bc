"""evaluate_model.py measures detectors as run_object_detection.py does."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_object_detection
from detection_reference import RecordedWithMetadata
from evaluation_runs import evaluate, flags, launch, units
from families import MASK_RCNN, PVT_V2, RETINANET, DetectorRow, tiny_detector
from PIL import Image, ImageDraw
from refusals import refusal
from script_runs import reset
from script_runs import results as results_of
from transformers import AutoModelForObjectDetection

import hf_pvt

IMAGES = 7
LABELS = ["boat", "temple"]
SIZES = [(96, 64), (64, 80)]  # width, height


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright rectangles that fill much of an image, so that even a detector that has not learnt finds some."""
    folder = tmp_path_factory.mktemp("data") / "val2017"
    folder.mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        width, height = SIZES[number % 2]
        picture = Image.new("RGB", (width, height))
        left, top = (int(value) for value in generator.integers(0, 12, 2))
        box = [left, top, width - 20, height - 20]
        corners = (left, top, left + box[2], top + box[3])
        ImageDraw.Draw(picture).rectangle(corners, fill=(200, 180, 10))
        picture.save(folder / f"{number:012d}.png")
        images.append({"id": 100 - number, "file_name": f"{number:012d}.png", "width": width, "height": height})
        x1, y1, x2, y2 = corners
        annotation = {"image_id": 100 - number, "bbox": box, "category_id": (7, 3)[number % 2], "iscrowd": 0}
        annotation |= {"id": number + 1, "area": box[2] * box[3], "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
        annotations.append(annotation)
    categories = [{"id": number, "name": name} for number, name in zip((3, 7), LABELS, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder.parent / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of a detector with masks."""
    return one_step(MASK_RCNN, data, tmp_path_factory.mktemp("trained"))


def one_step(kind: DetectorRow, data: Path, folder: Path) -> Path:
    """The output of a run of one step, from a detector that finds much, some of it right."""
    fields = {"id2label": dict(enumerate(LABELS)), "label2id": {name: label for label, name in enumerate(LABELS)}}
    fields["anchor_scales"] = (4, 8, 16)  # as large as the rectangles, too
    tiny_detector(kind, num_labels=len(LABELS), **fields).save_pretrained(folder / "detector")
    train(f"--model_name_or_path {folder / 'detector'} --max_steps 1 --learning_rate 1e-6", data, folder / "run")
    return folder / "run"


def train(start: str, data: Path, output: Path) -> None:
    """A small run, in this process."""
    annotations = data.parent / "instances.json"
    words = f"--train_dir {data} --train_annotations {annotations} --validation_dir {data} --validation_annotations"
    words += f" {annotations} {start} --output_dir {output} --shorter_side 64 --longer_side 128 --overlays 0"
    words += " --per_device_train_batch_size 2 --dataloader_num_workers 0 --photometric_distortion 0 --layer_decay 1"
    reset()
    run_object_detection.main(words.split())
    reset()


def test_what_training_measures(trained: Path, data: Path, tmp_path: Path) -> None:
    """Masks, boxes alone, and a detector that has no masks."""
    values: dict[str, Any] = {"validation_dir": data, "validation_annotations": data.parent / "instances.json"}
    runs = {"boxes and masks": trained, "boxes": one_step(RETINANET, data, tmp_path)}
    for scored, run in runs.items():
        found = evaluate(run / "model", tmp_path / scored, unit_size=2, overlays=1, **values)
        expected = results_of(run)["metrics"]
        assert found["metrics"] == expected and expected["box_ar100"] > 0.1
        assert found["metrics"]["examples"] == IMAGES
        assert ("mask_ap" in expected) == (run is trained) and found["protocol"]["scored"] == scored
        assert found["protocol"]["images"] == "shorter side 64, longer at most 128, multiples of 32, bilinear"
        assert len(list((tmp_path / scored / "overlays").glob("*.png"))) == 1
    boxes = evaluate(trained / "model", tmp_path / "without", with_masks=False, **values)["metrics"]
    assert boxes["box_ar100"] == results_of(trained)["metrics"]["box_ar100"] and "mask_ap" not in boxes


@pytest.mark.processes
def test_killed_and_started_again(trained: Path, data: Path, tmp_path: Path) -> None:
    """Of two processes: what was finished stays, and one does the rest."""
    values: dict[str, Any] = {"validation_dir": data, "validation_annotations": data.parent / "instances.json"}
    arguments = flags(trained / "model", tmp_path / "out", unit_size=1, **values)
    assert launch(arguments, processes=2, killed_after=2).returncode != 0
    before = units(tmp_path / "out")
    assert 2 <= len(before) <= 4 and not (tmp_path / "out" / "results.json").exists()
    evaluate(trained / "model", tmp_path / "out", unit_size=1, **values)
    assert results_of(tmp_path / "out")["metrics"] == results_of(trained)["metrics"]
    after = units(tmp_path / "out")
    assert len(after) == IMAGES and {name: after[name] for name in before} == before


@pytest.mark.slow
def test_transformers_own_detector(data: Path, tmp_path: Path) -> None:
    """A step of DETR on our pyramid, saved, and measured as at the run's end."""
    PVT_V2.classifier(PVT_V2.tiny_config()).save_pretrained(tmp_path / "pyramid")
    train(f"--architecture detr --from_backbone {tmp_path / 'pyramid'} --max_steps 1", data, tmp_path / "run")
    values: dict[str, Any] = {"validation_dir": data, "validation_annotations": data.parent / "instances.json"}
    found = evaluate(tmp_path / "run" / "model", tmp_path / "out", **values)
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__ == "DetrForObjectDetection"
    assert isinstance(model.model.backbone.model, hf_pvt.PvtV2Backbone)
    assert found["metrics"] == results_of(tmp_path / "run")["metrics"] and found["metrics"]["examples"] == IMAGES
    assert found["metrics"]["box_ar100"] >= 0 and "mask_ap" not in found["metrics"]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "annotations": ({"validation_annotations": None}, "there is no file "),
    "flag of classification": ({"validation_labels": "x"}, "--validation_labels is for classification"),
    "by number": ({"labels_by_number": True}, "--labels_by_number: the data has 3 labels, the model 2"),
    "stranger": ({}, "the data has the category 'cat', expected those of the labels: boat, temple"),
}


def test_errors(trained: Path, data: Path, tmp_path: Path) -> None:
    content = json.loads((data.parent / "instances.json").read_text())
    content["categories"].append({"id": 9, "name": "cat"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    for case, (values, sentence) in ERRORS.items():
        chosen = {"validation_dir": data, "validation_annotations": tmp_path / "more.json"} | values
        said = refusal(case, evaluate, trained / "model", tmp_path / "out", **chosen)
        assert sentence in said, case
        assert not (tmp_path / "out").exists(), case


def test_categories_are_matched_by_name(trained: Path, data: Path, tmp_path: Path) -> None:
    """Under other ids in another order, and in a file that lies beside the images."""
    folder = Path(shutil.copytree(data, tmp_path / "images"))
    content = json.loads((data.parent / "instances.json").read_text())
    turned = {3: 20, 7: 10}
    for category in content["categories"]:
        category["id"] = turned[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = turned[annotation["category_id"]]
    (folder / "annotations.json").write_text(json.dumps(content))
    found = evaluate(trained / "model", tmp_path / "out", validation_dir=folder)
    assert found["metrics"] == results_of(trained)["metrics"]


@pytest.mark.slow
def test_published_checkpoint_is_its_folder(tmp_path: Path) -> None:
    """With COCO's category ids, which leave numbers out, and a model of all 80 labels on data that has one."""
    RecordedWithMetadata("retinanet", "pvt_v2_b0").save(tmp_path / "retinanet.pth")
    model = hf_pvt.load_original(tmp_path / "retinanet.pth")
    (tmp_path / "val2017").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(
        tmp_path / "val2017" / "1.png"
    )
    names = hf_pvt.coco_id2label().values()
    categories = [{"id": i, "name": name} for i, name in zip(hf_pvt.coco_category_ids(), names, strict=True)]
    annotations = [{"id": 1, "image_id": 1, "bbox": [0, 0, 50, 30], "category_id": 90, "iscrowd": 0, "area": 1500}]
    images = [{"id": 1, "file_name": "1.png", "height": 30, "width": 50}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    model.save_pretrained(tmp_path / "converted")
    hf_pvt.detection_image_processor().save_pretrained(tmp_path / "converted")
    values = {"validation_dir": tmp_path / "val2017", "validation_annotations": tmp_path / "instances.json"}
    found = [evaluate(tmp_path / name, tmp_path / f"out-{name}", **values) for name in ("retinanet.pth", "converted")]
    assert found[0]["metrics"] == found[1]["metrics"] and found[0]["metrics"]["examples"] == 1
    assert found[0]["metrics"]["remarks"]["box_ap"].startswith("over 1 of 80 labels, without person, bicycle")
    assert found[0]["protocol"]["images"] == "shorter side 800, longer at most 1333, multiples of 32, bilinear"
