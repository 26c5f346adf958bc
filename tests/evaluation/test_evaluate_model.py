"""evaluate_model.py measures what the training scripts measure, each sample once, whatever happens on the way."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import classification_runs
import datasets
import numpy as np
import pytest
import reference
import segmentation_runs
import torch
from classification_runs import digits, few_steps, too_small
from evaluation_runs import evaluate, flags, launch, units
from hub_server import HubServer
from huggingface_hub import metadata_load
from PIL import Image
from refusals import refusal
from script_runs import results
from sklearn.metrics import confusion_matrix
from timm.data import ImageNetInfo
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import hf_pvt
from hf_pvt.evaluation.units import Units
from hf_pvt.training.evaluators.classification import ClassificationEvaluation

VALIDATION = 201
SIZES = [(48, 80), (64, 64), (70, 52), (33, 90), (48, 80)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"), 64, VALIDATION)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a short training run."""
    folder = tmp_path_factory.mktemp("trained")
    classification_runs.run(few_steps(data, too_small(folder), folder / "run"))
    return folder / "run"


@pytest.fixture
def classifier(trained: Path, tmp_path: Path) -> Path:
    """Its model, to be written to."""
    return Path(shutil.copytree(trained / "model", tmp_path / "digits-model"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with masks of 0, 7 (no label) and 255."""
    folder = tmp_path_factory.mktemp("scenes")
    generator = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        bright = generator.random(size) > 0.6
        image = (bright[..., None] * 150 + generator.integers(0, 100, (*size, 3))).astype(np.uint8)
        mask = np.where(generator.random(size) > 0.95, 7, bright * 255).astype(np.uint8)
        segmentation_runs.write_png(folder / "images" / f"{number}.png", image)
        segmentation_runs.write_png(folder / "masks" / f"{number}.png", mask)
    (folder / "labels.json").write_text('{"0": "background", "7": null, "255": "bright"}')
    return folder


@pytest.fixture(scope="module")
def segmenter_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    scratch = segmentation_runs.configuration(folder)
    arguments = segmentation_runs.flags(scenes, folder / "run", from_scratch=scratch, validation_dir=scenes)
    segmentation_runs.run(arguments)
    return folder / "run"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint of 1,000 labels."""
    path = tmp_path_factory.mktemp("published") / "pvt_v2_b0.pth"
    torch.save(reference.checkpoint("pvt-v2-b0"), path)
    return path


@pytest.fixture(scope="module")
def photographs(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Six flat images that are named as ImageNet's validation files, and the model's label of each."""
    folder = tmp_path_factory.mktemp("photographs") / "ILSVRC2012_img_val"
    folder.mkdir()
    processor, model = hf_pvt.classification_image_processor(), hf_pvt.load_original(published).eval()
    generator = np.random.default_rng(0)
    labels = []
    for number in range(1, 7):
        image = Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((300, 260))
        image.save(folder / f"ILSVRC2012_val_{number:08d}.PNG")
        with torch.no_grad():
            labels.append(int(model(**processor(image, return_tensors="pt")).logits.argmax()))
    return folder, labels


def same_metrics(output: Path, run: Path) -> None:
    assert results(output)["metrics"] == results(run)["metrics"]


def test_classification_is_what_training_measures(trained: Path, data: Path, tmp_path: Path) -> None:
    found = evaluate(trained / "model", tmp_path / "out", validation_dir=data / "validation")
    same_metrics(tmp_path / "out", trained)
    assert found["metrics"]["examples"] == VALIDATION and found["measured_on"] == "201 images"
    assert found["protocol"]["images"] == "shorter side 36, bicubic, centre crop 32x32"
    assert (found["data"], found["task"]) == (f"{data.name}/validation", "classification")
    assert len(units(tmp_path / "out")) == 11


def test_segmentation_is_what_training_measures(segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    found = evaluate(segmenter_run / "model", tmp_path / "out", validation_dir=scenes, unit_size=2, overlays=2)
    same_metrics(tmp_path / "out", segmenter_run)
    assert found["metrics"]["examples"] == len(SIZES) and 0 < found["metrics"]["mean_iou"] < 1
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == 2


@pytest.mark.processes
def test_killed_and_started_again(trained: Path, data: Path, tmp_path: Path) -> None:
    """What was finished stays as it was, and two processes do the rest. A killed pair is in test_evaluate_detector."""
    arguments = flags(trained / "model", tmp_path / "out", validation_dir=data / "validation")
    assert launch(arguments, killed_after=3).returncode == -signal.SIGKILL
    before = units(tmp_path / "out")
    assert len(before) == 3 and not (tmp_path / "out" / "results.json").exists()
    again = launch(arguments, processes=2)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("on 201 images of") == 1
    assert "80/80" in again.stderr  # half of what was left, for each of two
    same_metrics(tmp_path / "out", trained)
    after = units(tmp_path / "out")
    assert len(after) == 11 and {name: after[name] for name in before} == before
    assert not list((tmp_path / "out").glob("*.incomplete"))


def test_an_interrupted_segmentation_goes_on(
    segmenter_run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the third unit is written: what is half there is not taken for one."""
    write = Units.write

    def interrupted(self: Units, unit: int, *found: Any) -> None:
        if unit == 2:
            self.file(unit).with_suffix(".incomplete").write_text("{")
            raise KeyboardInterrupt
        write(self, unit, *found)

    values: dict[str, Any] = {"validation_dir": scenes, "unit_size": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Units, "write", interrupted)
        evaluate(segmenter_run / "model", tmp_path / "out", **values)
    before = units(tmp_path / "out")
    assert len(before) == 2 and not (tmp_path / "out" / "results.json").exists()
    evaluate(segmenter_run / "model", tmp_path / "out", **values)
    same_metrics(tmp_path / "out", segmenter_run)
    after = units(tmp_path / "out")
    assert len(after) == len(SIZES) and {name: after[name] for name in before} == before
    assert not list((tmp_path / "out").glob("*.incomplete"))


def test_finished_units_are_not_computed_again(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    count = ClassificationEvaluation.count

    def count_images(self: Any, model: Any, batch: Any) -> Any:
        images.append(len(batch["labels"]))
        return count(self, model, batch)

    monkeypatch.setattr(ClassificationEvaluation, "count", count_images)
    arguments = {"validation_dir": data / "validation"}
    evaluate(trained / "model", tmp_path / "out", **arguments)
    assert sum(images) == VALIDATION
    for unit in ("unit-00003-of-00011.json", "unit-00010-of-00011.json"):
        (tmp_path / "out" / unit).unlink()
    images.clear()
    evaluate(trained / "model", tmp_path / "out", **arguments)
    assert sum(images) == 21
    same_metrics(tmp_path / "out", trained)


def test_another_job_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    model = trained / "model"
    evaluate(model, tmp_path / "out", validation_dir=data / "validation", limit=20)
    other = AutoModelForImageClassification.from_pretrained(model)
    shutil.copytree(model, tmp_path / "other")
    other.classifier.bias.data += 1e-6
    other.save_pretrained(tmp_path / "other")
    changes: dict[str, dict[str, Any]] = {"data": {"validation_dir": data / "train"}, "weights": {}}
    changes |= {"limit": {"limit": 21}, "precision": {"bf16": True}, "units": {"unit_size": 30}}
    for case, change in changes.items():
        start = tmp_path / "other" if case == "weights" else model
        values = {"validation_dir": data / "validation", "limit": 20} | change
        said = refusal(case, evaluate, start, tmp_path / "out", **values)
        assert re.search("out holds results of another job .* choose another folder", said), case


def test_limit(classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spread out, and said wherever a number stands."""
    values = {"validation_dir": data / "validation", "limit": 41, "write_to_card": True}
    found = evaluate(classifier, tmp_path / "out", **values)
    assert found["metrics"]["examples"] == 41
    assert found["measured_on"] == "41 of 201 images" and "41 of 201 images" in capsys.readouterr().out
    files = sorted((data / "validation").rglob("*.png"))  # class after class
    chosen = [files[index] for index in range(0, VALIDATION, 5)]
    model = AutoModelForImageClassification.from_pretrained(classifier).eval()
    processor = AutoImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        logits = model(**processor([Image.open(file) for file in chosen], return_tensors="pt")).logits
    right = [
        model.config.id2label[int(n)] == file.parent.name for n, file in zip(logits.argmax(1), chosen, strict=True)
    ]
    assert found["metrics"]["top1_accuracy"] == pytest.approx(np.mean(right), abs=1e-12)
    entry = metadata_load(classifier / "README.md")["model-index"][0]["results"][-1]
    assert entry["dataset"]["name"].endswith("validation (41 of 201 images)")
    assert entry["metrics"][0]["name"] == "top-1 accuracy, % (measured on 41 of 201 images)"


def test_bad_images(classifier: Path, data: Path, tmp_path: Path) -> None:
    """An error that keeps what was done; or skipped, listed and not counted."""
    shutil.copytree(data / "validation", tmp_path / "bad")
    victims = sorted((tmp_path / "bad").rglob("*.png"))[100:102]
    for victim in victims:
        victim.write_bytes(b"no image")
    values = {"validation_dir": tmp_path / "bad", "unit_size": 1}
    with pytest.raises(ValueError, match="is not an image"):
        evaluate(classifier, tmp_path / "out", **values)
    assert len(units(tmp_path / "out")) == 100
    found = evaluate(classifier, tmp_path / "out", on_bad_image="skip", **values)
    assert found["bad_images"] == {str(victim): "is not an image" for victim in victims}
    assert found["metrics"]["examples"] == 199 and found["measured_on"] == "199 of 201 images"


@pytest.mark.parametrize("more", [{"multi_scale": True}, {"sliding_window": 64}], ids=["multi-scale", "sliding"])
def test_protocols_of_segmentation(more: dict[str, Any], segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    """As direct calls, counted by scikit-learn."""
    found = evaluate(segmenter_run / "model", tmp_path / "out", validation_dir=scenes, unit_size=2, **more)
    model = AutoModelForSemanticSegmentation.from_pretrained(segmenter_run / "model").eval()
    processor = AutoImageProcessor.from_pretrained(segmenter_run / "model")
    confusion = np.zeros((2, 2), np.int64)
    for number, size in enumerate(SIZES):
        image = Image.open(scenes / "images" / f"{number}.png")
        pixels = processor(image, do_resize="multi_scale" in more, return_tensors="pt")["pixel_values"]
        if "multi_scale" in more:
            predicted = hf_pvt.segment_multi_scale(model, pixels, size=size)[0]
        else:
            predicted = hf_pvt.segment_sliding(model, pixels, 64)[0]
        mask = np.array(Image.open(scenes / "masks" / f"{number}.png"))
        known = mask != 7
        assert predicted.shape == size
        confusion += confusion_matrix(mask[known] // 255, predicted.numpy()[known], labels=[0, 1])
    iou = confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
    assert found["metrics"]["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert found["metrics"]["mean_iou"] != results_of_training(segmenter_run)["mean_iou"]
    assert ("0.5, 0.75" if "multi_scale" in more else "window of 64 pixels") in found["protocol"]["view"]


def results_of_training(run: Path) -> dict[str, Any]:
    return results(run)["metrics"]


def test_published_checkpoint_is_its_folder(
    published: Path, photographs: tuple[Path, list[int]], tmp_path: Path
) -> None:
    """Class folders with WordNet ids: timm knows which label each one is."""
    folder, labels = photographs
    ids = ImageNetInfo("imagenet-1k").label_names()
    for number, (image, label) in enumerate(zip(sorted(folder.iterdir()), labels, strict=True)):
        wrong = ids[(label + 1) % 1000]
        place = tmp_path / "val" / (wrong if number == 0 else ids[label])
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    hf_pvt.load_original(published).save_pretrained(tmp_path / "converted")
    hf_pvt.classification_image_processor().save_pretrained(tmp_path / "converted")
    found = [
        evaluate(model, tmp_path / f"out-{model.name}", validation_dir=tmp_path / "val", unit_size=4)
        for model in (published, tmp_path / "converted")
    ]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["metrics"]["top1_accuracy"] == pytest.approx(5 / 6)
    assert found[0]["protocol"]["images"] == "shorter side 256, bicubic, centre crop 224x224"
    labels = len(list((tmp_path / "val").iterdir()))
    assert found[0]["protocol"]["labels"] == f"by WordNet id, {labels} of the model's 1,000"


@pytest.mark.slow
def test_published_segmenter(tmp_path: Path) -> None:
    """On ADE20K's layout, as the README has it."""
    torch.save(reference.segmentation_checkpoint("pvt-v2-b0"), tmp_path / "fpn.pth")
    generator = np.random.default_rng(0)
    files = []
    for number, size in enumerate([(40, 60), (52, 40)]):
        image, mask = (f"{part}/validation/{number}.png" for part in ("images", "annotations"))
        pixels, values = generator.integers(0, 256, (*size, 3)), generator.integers(0, 151, size)
        segmentation_runs.write_png(tmp_path / "ade" / image, pixels.astype(np.uint8))
        segmentation_runs.write_png(tmp_path / "ade" / mask, values.astype(np.uint8))
        files.append((tmp_path / "ade" / image, values))
    words = {"validation_dir": tmp_path / "ade", "labels": "ade20k", "reduce_labels": True}
    found = evaluate(tmp_path / "fpn.pth", tmp_path / "out", **words)
    model = hf_pvt.load_original(tmp_path / "fpn.pth").eval()
    processor = hf_pvt.segmentation_image_processor(published_resampling=True)
    hits = labelled = 0
    for image, values in files:
        with torch.no_grad():
            outputs = model(**processor(Image.open(image), return_tensors="pt"))
        predicted = processor.post_process_semantic_segmentation(outputs, [values.shape])[0].numpy()
        hits += int((predicted == values - 1)[values > 0].sum())
        labelled += int((values > 0).sum())
    assert 0 < found["metrics"]["overall_accuracy"] == pytest.approx(hits / labelled, abs=1e-12)
    assert found["protocol"]["images"] == (
        "shorter side 512, longer at most 2048, multiples of 32, bilinear, without antialiasing"
    )
    assert found["protocol"]["labels"] == "by name, of the pixel values 1 to 150"


@pytest.mark.parametrize("kind", ["kaggle", "names"])
def test_flat_files(kind: str, published: Path, photographs: tuple[Path, list[int]], tmp_path: Path) -> None:
    """Files that people have beside ILSVRC2012_img_val; the other kinds are in test_parts.py."""
    folder, labels = photographs
    ids, names = ImageNetInfo("imagenet-1k").label_names(), hf_pvt.imagenet_1k_id2label()
    stems = [path.stem for path in sorted(folder.iterdir())]
    lines = {
        "kaggle": ["ImageId,PredictionString", *(f"{s},{ids[n]} 1 2 3 4 " for s, n in zip(stems, labels, strict=True))],
        "names": [f"{stem},{names[label]}" for stem, label in zip(stems, labels, strict=True)],
    }
    table = tmp_path / "labels.txt"
    table.write_text("\n".join(lines[kind]) + "\n")
    if kind == "names":  # names have spaces: a CSV file is what takes them
        rows = "\n".join(f"{folder}/{stem}.PNG,{name}" for stem, _, name in (x.partition(",") for x in lines[kind]))
        (tmp_path / "val.csv").write_text(f"image,label\n{rows}\n")
        found = evaluate(published, tmp_path / "out", validation_files=tmp_path / "val.csv")
    else:
        found = evaluate(published, tmp_path / "out", validation_dir=folder, validation_labels=table)
    assert found["metrics"]["top1_accuracy"] == 1 and found["metrics"]["examples"] == 6


def test_columns(trained: Path, data: Path, tmp_path: Path) -> None:
    """Parquet with class labels in another order than the model's: names count, not numbers."""
    files = sorted((data / "validation").rglob("*.png"))
    names = [str(digit) for digit in reversed(range(10))]
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [names.index(file.parent.name) for file in files],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "val.parquet")
    found = evaluate(trained / "model", tmp_path / "out", validation_files=tmp_path / "val.parquet")
    assert found["metrics"] == results_of_training(trained)
    assert evaluate(trained / "model", tmp_path / "out", validation_files=tmp_path / "val.parquet") == found  # goes on
    by_number = {"validation_files": tmp_path / "val.parquet", "labels_by_number": True}
    assert evaluate(trained / "model", tmp_path / "other", **by_number)["metrics"] != found["metrics"]


@pytest.mark.processes
def test_hub_id(segmenter_run: Path, scenes: Path, tmp_path: Path, hub: HubServer) -> None:
    """Loaded from the Hub with this package's classes, though the repository brings code."""
    files = {path.name: path.read_bytes() for path in (segmenter_run / "model").iterdir()}
    assert "modeling_pvt_v2.py" in files
    hub.create_repo("me/scenes", files)
    environment = hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
    done = launch(flags("me/scenes", tmp_path / "out", validation_dir=scenes), **environment)
    assert done.returncode == 0, done.stderr
    same_metrics(tmp_path / "out", segmenter_run)


def test_order_of_label_values(segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    """Pixel values in another order than the model's labels: names count."""
    shutil.copytree(scenes, tmp_path / "turned")
    for file in (tmp_path / "turned" / "masks").iterdir():
        mask = np.array(Image.open(file))
        Image.fromarray(np.where(mask == 7, 7, 255 - mask).astype(np.uint8)).save(file)
    (tmp_path / "turned" / "labels.json").write_text('{"0": "bright", "7": null, "255": "background"}')
    found = evaluate(segmenter_run / "model", tmp_path / "out", validation_dir=tmp_path / "turned")
    assert found["metrics"] == results_of_training(segmenter_run)


def test_card(classifier: Path, data: Path, tmp_path: Path) -> None:
    """Beside what the card says already; again is once; another protocol is another entry."""
    before = metadata_load(classifier / "README.md")
    text = (classifier / "README.md").read_text().partition("\n---\n")[2]
    values = {"validation_dir": data / "validation", "write_to_card": True}
    for output in ("first", "second"):
        found = evaluate(classifier, tmp_path / output, **values)
    after = metadata_load(classifier / "README.md")
    assert list(after) == list(before)
    assert {k: v for k, v in after.items() if k != "model-index"} == {
        k: v for k, v in before.items() if k != "model-index"
    }
    reported, measured = after["model-index"][0]["results"]
    assert [reported] == before["model-index"][0]["results"]
    assert measured["metrics"][0]["value"] == pytest.approx(100 * found["metrics"]["top1_accuracy"], abs=1e-6)
    assert measured["metrics"][0]["name"] == "top-1 accuracy, % (measured on 201 images)"
    source = measured["source"]["name"]
    assert source.startswith("measured by examples/evaluate_model.py digits-model --output_dir second")
    assert str(tmp_path) not in (classifier / "README.md").read_text() and str(data) not in json.dumps(measured)
    assert (classifier / "README.md").read_text().partition("\n---\n")[2] == text
    evaluate(classifier, tmp_path / "bf16", bf16=True, **values)
    assert len(metadata_load(classifier / "README.md")["model-index"][0]["results"]) == 3


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no data": ("model", {"validation_dir": None}, "got no data; give one of validation_dir, validation_files"),
    "two data": ("model", {"dataset_name": "a/b"}, "got validation_dir and dataset_name; give one of"),
    "no folder": ("model", {"validation_dir": "nowhere"}, "there is no folder nowhere"),
    "no model": ("./nowhere", {}, "there is no file or folder ./nowhere"),
    "limit": ("model", {"limit": 0}, "--limit is 0, expected at least 1"),
    "flag of segmentation": ("model", {"sliding_window": 64}, "--sliding_window is for semantic segmentation, and"),
    "protocols": ("model", {"sliding_window": 64, "multi_scale": True}, "are two protocols; choose one"),
    "split": ("model", {"split": "test"}, "--split needs --dataset_name"),
    "labels without folder": (
        "model", {"validation_dir": None, "validation_files": "a.csv", "validation_labels": "b"},
        "--validation_labels needs --validation_dir",
    ),
    "strange folders": ("model", {"validation_dir": "cats"}, "labels are none of the model's 10: cat; the model's"),
    "WordNet ids": ("model", {"validation_dir": "ids"}, "are WordNet ids, and the model's 10 are not ImageNet-1k's"),
    "flat": ("model", {"validation_dir": "cats/cat"}, "has 1 files and no folders; expected a folder for each"),
    "by number": ("model", {"validation_dir": "cats", "labels_by_number": True}, "the data has 1 labels, the model 10"),
    "weights": ("headless", {}, "headless has no weights for classifier.bias, classifier.weight"),
    "head": ("bare", {}, "bare is a PvtV2Model, without a head for one of: classification"),
    "processor": ("unprepared", {}, "unprepared has no preprocessor_config.json"),
    "card of a Hub id": ("me/model", {"write_to_card": True}, "wants a local folder, and me/model is none; get"),
    "card of a file": ("weights.pth", {"write_to_card": True}, "wants a folder with a README.md, and weights.pth is a"),
    "broken card": ("carded", {"write_to_card": True}, "the metadata of carded/README.md cannot be read"),
}  # fmt: skip


def test_errors(trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("model", "unprepared", "carded", "headless"):
        shutil.copytree(trained / "model", folder)
    (tmp_path / "unprepared" / "preprocessor_config.json").unlink()
    (tmp_path / "carded" / "README.md").write_text("---\nmodel-index: 3\n---\n")
    Path("weights.pth").write_bytes(b"")
    model = AutoModelForImageClassification.from_pretrained("model")
    model.base_model.save_pretrained("bare")
    kept = {name: weight for name, weight in model.state_dict().items() if "classifier" not in name}
    model.save_pretrained("headless", state_dict=kept)
    for file in ("cats/cat/1.png", "ids/n01440764/1.png"):
        segmentation_runs.write_png(Path(file), np.zeros((9, 9), np.uint8))
    for case, (name, values, sentence) in ERRORS.items():
        chosen = {"validation_dir": data / "validation"} | values
        said = refusal(case, evaluate, name, Path("out"), **chosen)
        assert sentence in said, case
        assert not Path("out").exists(), case


SEGMENTATION_ERRORS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], str]] = {
    "unnamed": (None, {}, "hold the pixel values 0, 7 and 255, and nothing names them"),
    "other names": ({"0": "background", "255": "dark"}, {}, "only the data has dark, only the model has bright"),
    "fewer names": ({"0": "background"}, {}, "the data has 1 labels and the model 2: only the model has bright"),
    "strangers": ({"0": "background", "255": "bright"}, {}, "and 7 has no name (first in "),
    "flag of classification": (None, {"label_column": "x"}, "--label_column is for classification"),
}


def test_errors_of_segmentation(segmenter_run: Path, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    for case, (content, values, sentence) in SEGMENTATION_ERRORS.items():
        (tmp_path / "scenes" / "labels.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "scenes" / "labels.json").write_text(json.dumps(content))
        chosen = {"validation_dir": tmp_path / "scenes"} | values
        said = refusal(case, evaluate, segmenter_run / "model", tmp_path / "out", **chosen)
        assert sentence in said, case
        assert not (tmp_path / "out").exists(), case
