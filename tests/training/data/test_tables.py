"""Labels in CSV files: splits, names and numbers, imagefolder's metadata.csv, and what is refused."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from classification_runs import digits, few_steps, run, too_small
from refusals import refusal

from hf_pvt.training.arguments import DataArguments
from hf_pvt.training.data.labelled_images import open_images
from hf_pvt.training.data.masks import open_label_maps


def write(path: Path, rows: Sequence[Sequence[str]], encoding: str = "utf-8") -> str:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return str(path)


def labelled(images: Sequence[tuple[Path, str, int]], names: Sequence[str]) -> list[tuple[str, str]]:
    return [(path.name, names[label]) for path, _, label in images]


def test_splits_and_names(tmp_path: Path) -> None:
    """With a split column, without one, with a table for validation, as a folder's file, as a spreadsheet writes it."""
    rows = [["image", "label", "split"], ["a.png", "dog", "train"], ["b.png", "cat", "val"], ["c.png", "cat", ""]]
    rows += [["d.png", "dog", "test"], ["e.png", "dog", "validation"]]
    table = write(tmp_path / "data.csv", rows, "utf-8-sig")
    for data in (DataArguments(train_files=[table]), DataArguments(train_dir=table)):
        training, validation, labels = open_images(data, None, None, 0)
        assert labels.names == ["cat", "dog"]
        assert labelled(training, labels.names) == [("a.png", "dog"), ("c.png", "cat")]
        assert labelled(validation, labels.names) == [("b.png", "cat"), ("e.png", "dog")]
        assert training[0][0] == tmp_path / "a.png"
    plain = write(tmp_path / "plain.csv", [row[:2] for row in rows])
    training, validation, labels = open_images(DataArguments(train_files=[plain]), None, None, 0)
    assert len(training) == 5 and validation is None
    own = DataArguments(train_files=[plain], validation_files=[plain])
    assert len(open_images(own, None, None, 0)[1]) == 5
    held_out = open_images(DataArguments(train_files=[plain], train_val_split=0.4), None, None, 0)
    assert [len(part) for part in held_out[:2]] == [3, 2]


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    """`datasets`' imagefolder: file_name and a column of labels; it comes before folders."""
    (tmp_path / "sub").mkdir()
    write(tmp_path / "metadata.csv", [["file_name", "species"], ["sub/a.png", "tit"], ["sub/b.png", "owl"]])
    data = DataArguments(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    training, validation, labels = open_images(data, "species", None, 0)
    assert (
        labelled(training, labels.names) == labelled(validation, labels.names) == [("a.png", "tit"), ("b.png", "owl")]
    )
    assert training[0][0] == tmp_path / "sub" / "a.png"


def test_numbers(tmp_path: Path) -> None:
    """In their order; or of the names that are given, unless these are the labels."""
    table = write(tmp_path / "data.csv", [["image", "label"], *([f"{n}.png", str(n)] for n in (10, 2, 0))])
    data = DataArguments(train_files=[table])
    assert open_images(data, None, None, 0)[2].names == ["0", "2", "10"]
    training, _, labels = open_images(data, None, "imagenet-1k", 0)
    assert [label for _, _, label in training] == [10, 2, 0] and labels.names[10] == "brambling"
    (tmp_path / "names.txt").write_text("10\n2\n0\n")
    training, _, labels = open_images(data, None, str(tmp_path / "names.txt"), 0)
    assert labelled(training, labels.names) == [("10.png", "10"), ("2.png", "2"), ("0.png", "0")]


def test_what_is_refused(tmp_path: Path) -> None:
    for content, message in {
        "photo,label\na.png,cat\n": "has the columns photo, label, expected image,label with or without split; ",
        "image;label\na.png;cat\n": "has the columns image;label, expected image,label ",
        "image,label,split\na.png,cat,holdout\n": ", line 2: the split 'holdout' is none of: train, training, val, ",
        "image,label\na.png,cat\nb.png,\n": ", line 3 has no label; fill or remove it.",
        "image,label,split\na.png,cat,val\n": "has no row for training.",
    }.items():
        (tmp_path / "data.csv").write_text(content)
        data = DataArguments(train_files=[str(tmp_path / "data.csv")])
        said = refusal(content, open_images, data, None, None, 0)
        assert message in said and "\n" not in said, content


def test_a_label_that_training_has_not(tmp_path: Path) -> None:
    table = write(tmp_path / "data.csv", [["image", "label", "split"], ["a", "cat", "train"], ["b", "cow", "val"]])
    with pytest.raises(ValueError, match="b has the label 'cow', which is none of the 1 labels"):
        open_images(DataArguments(train_files=[table]), None, None, 0)


def test_masks_of_a_table_that_is_given_as_a_folder(tmp_path: Path) -> None:
    table = write(tmp_path / "scenes.csv", [["image", "mask", "split"], ["a", "b", "train"], ["c", "d", "val"]])
    training, validation = open_label_maps(DataArguments(train_dir=table), None, 0)
    assert (len(training), len(validation)) == (1, 1) and training[0].image == tmp_path / "a"


def test_a_run(tmp_path: Path) -> None:
    """The scores of the same images in class folders."""
    data = digits(tmp_path / "data", 48, 20)
    rows = [["file_name", "label", "split"]]
    for split in ("train", "validation"):
        rows += [[str(path.relative_to(data)), path.parent.name, split] for path in sorted(data.glob(f"{split}/*/*"))]
    table, scratch = write(data / "metadata.csv", rows), too_small(tmp_path)
    folders = run(few_steps(data, scratch, tmp_path / "folders", max_steps=2))
    for name, values in (("file", {"train_dir": table}), ("folder", {"train_dir": data})):
        record = run(few_steps(data, scratch, tmp_path / name, max_steps=2, validation_dir=None, **values))
        assert record["metrics"] == folders["metrics"] and record["metrics"]["examples"] == 20
