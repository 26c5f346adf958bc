"""Bad files stop a run with a sentence that names them, or are skipped, counted and listed."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from classification_runs import digits, few_steps, launch, run, too_small
from refusals import refusal

from hf_pvt.training.data.decoding import BadImageError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("small"), 48, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return too_small(tmp_path_factory.mktemp("tiny"))


BAD = {
    "empty.png": b"",
    "notes.txt": b"no image",
    "cut.png": None,
}


def a_class(root: Path, part: str) -> Path:
    return min((root / part).iterdir())


def spoiled(root: Path, part: str) -> dict[str, Path]:
    """Three bad files beside the digits of one class."""
    folder = a_class(root, part)
    cut = next(folder.glob("*.png")).read_bytes()[:80]
    for name, content in BAD.items():
        (folder / name).write_bytes(cut if content is None else content)
    return {name: folder / name for name in BAD}


def test_a_bad_image_stops_the_run(tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    bad = a_class(data, "train") / "empty.png"
    bad.touch()
    with pytest.raises(BadImageError) as caught:
        run(few_steps(data, tiny, tmp_path / "out", num_train_epochs=3, max_steps=None))
    assert f"{bad} is empty." in str(caught.value)


@pytest.mark.processes
def test_an_expected_error_is_one_line(tiny: str, tmp_path: Path) -> None:
    """Of a worker process, too; and nothing looks as if there were a model."""
    data = digits(tmp_path / "data", 48, 20)
    bad = a_class(data, "validation") / "notes.txt"
    bad.write_text("no image")
    process = launch(few_steps(data, tiny, tmp_path / "out", max_steps=1, dataloader_num_workers=1))
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1] == f"error: {bad} is not an image."
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.processes)])
def test_bad_images_are_skipped_counted_and_listed(
    workers: int, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = digits(tmp_path / "data", 48, 20)
    training, validation = spoiled(data, "train"), spoiled(data, "validation")
    values = {"on_bad_image": "skip", "dataloader_num_workers": workers, "max_steps": None, "num_train_epochs": 4}
    record = run(few_steps(data, tiny, tmp_path / "out", **values))
    assert record["bad_images"].keys() == {str(path) for path in (*training.values(), *validation.values())}
    assert record["bad_images"][str(training["empty.png"])] == "is empty"
    assert record["metrics"]["examples"] == 20  # those that are images
    assert "6 bad images were skipped:" in caplog.text
    assert f"{validation['notes.txt']} is not an image" in caplog.text


def test_a_class_without_images(tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    (data / "train" / "ten").mkdir()
    with pytest.raises(ValueError) as caught:
        run(few_steps(data, tiny, tmp_path / "out"))
    assert str(caught.value) == f"the class folder {data / 'train' / 'ten'} has no images; fill or remove it."


def test_a_validation_class_that_training_has_not(tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    a_class(data, "validation").rename(data / "validation" / "zero")
    with pytest.raises(ValueError, match=r"zero/\d+\.png has the label 'zero', which is none of the 10 labels\."):
        run(few_steps(data, tiny, tmp_path / "out"))


NOT_RUN: dict[str, tuple[dict[str, Any], str]] = {
    "folder": ({"train_dir": "nowhere"}, "there is no folder nowhere."),
    "no data": ({"train_dir": None}, "there is no training data; give --train_dir, --train_files or --dataset_name."),
    "no file": ({"train_dir": None, "train_files": "gone*.tar"}, "no file matches gone*.tar."),
    "names": ({"label_names": "imagenet-1k"}, "--label_names is for data without names; the class folders of "),
    "no model": ({"from_scratch": None}, "say where to start: either --model_name_or_path or --from_scratch."),
    "no variant": ({"from_scratch": "pvt-v3"}, "unknown variant 'pvt-v3', expected one of: pvt-tiny, "),
    "batch": (
        {"per_device_train_batch_size": 49}, "the training data has 48 samples, fewer than one step takes (49 = "
    ),
}  # fmt: skip


def test_what_cannot_be_run(small: Path, tiny: str, tmp_path: Path) -> None:
    for case, (values, message) in NOT_RUN.items():
        said = refusal(case, run, few_steps(small, tiny, tmp_path, **values))
        assert said.startswith(message) and "\n" not in said, case


@pytest.mark.parametrize("kind", ["folder", "table", "rows"])
def test_one_class_is_refused(kind: str, tiny: str, tmp_path: Path) -> None:
    """Nothing could be learnt, and every score would be perfect."""
    data = digits(tmp_path / "data", 48, 20)
    values: dict[str, Any] = {"validation_dir": None, "train_val_split": 0.25}
    if kind == "folder":
        for folder in sorted((data / "train").iterdir())[1:]:
            shutil.rmtree(folder)
        name = "0"
    elif kind == "table":
        lines = [f"{path},1\n" for path in sorted((data / "train" / "3").glob("*.png"))]
        (tmp_path / "table.csv").write_text("image,label\n" + "".join(lines))
        (tmp_path / "names.txt").write_text("two\nthree\n")
        values |= {"train_dir": None, "train_files": tmp_path / "table.csv", "label_names": tmp_path / "names.txt"}
        values["per_device_train_batch_size"] = 2
        name = "three"
    else:
        path = next((data / "train" / "3").glob("*.png"))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["two", "three"])})
        rows = datasets.Dataset.from_dict({"image": [str(path)] * 4, "label": [1] * 4}, features=features)
        rows.to_parquet(tmp_path / "rows.parquet")
        values |= {"train_dir": None, "train_files": tmp_path / "rows.parquet"}
        name = "three"
    with pytest.raises(ValueError) as caught:
        run(few_steps(data, tiny, tmp_path / "out", **values))
    assert str(caught.value) == f"all training images are of one class, {name}; a classifier wants two at least."


def test_no_validation_data_is_said(small: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the log and in the card; a share that is none is refused."""
    values = {"validation_dir": None, "max_steps": 1}
    record = run(few_steps(small, tiny, tmp_path / "out", train_val_split=0, **values))
    assert record["metrics"] == {}
    assert "there is no validation data, so nothing will be measured; for scores give --train_val_split" in caplog.text
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "Nothing was measured: the run had no validation data." in card
    for share in (1, -0.1):
        with pytest.raises(ValueError, match=rf"--train_val_split is {float(share)}, expected a share from 0 to below"):
            run(few_steps(small, tiny, tmp_path / "2", train_val_split=share, **values))
