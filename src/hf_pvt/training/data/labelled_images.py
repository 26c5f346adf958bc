"""Images with one label each: class folders, CSV files, and data sets with columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Subset

from ...published.labels import imagenet_1k_id2label
from ..arguments import DataArguments
from . import sources
from .tables import Labelled, read_tables, tables_of

# The image's file (path, bytes or row), its name for messages, its label.
Example = tuple[Any, str, int]


class Labels:
    """Names of the labels, and the number of what a data set gives: a name, or a number, which may be `spelt`."""

    def __init__(self, names: Sequence[str], spelt: bool = False) -> None:
        self.names = list(names)
        self._numbers = {str(number) if spelt else name: number for number, name in enumerate(self.names)}

    def number(self, raw: str | int, file: str) -> int:
        """Raises ValueError for a label that there is not."""
        number = self._numbers.get(raw, -1) if isinstance(raw, str) else int(raw)
        if not 0 <= number < len(self.names):
            raise ValueError(f"{file} has the label {raw!r}, which is none of the {len(self.names)} labels.")
        return number


class Files:
    """Images of class folders or CSV files."""

    def __init__(self, labelled: Sequence[Labelled], labels: Labels) -> None:
        self.items = [(path, labels.number(label, str(path))) for path, label in labelled]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        path, label = self.items[index]
        return path, str(path), label


class Rows:
    """Images of a data set with columns; of a stream, `rows` and `example` alone are used."""

    def __init__(self, rows: Any, column: str, labels: Labels) -> None:
        self.rows, self.column, self.labels = rows, column, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.example(self.rows[index], index)

    def example(self, row: dict[str, Any], number: int) -> Example:
        name = sources.row_name(row, number)
        return row["image"], name, self.labels.number(row[self.column], name)


def open_images(
    data: DataArguments, label_column: str | None, label_names: str | None, seed: int
) -> tuple[Any, Any, Labels]:
    """Training images, validation images or None, and the labels, which are the training data's.

    Args:
        label_column: default: the only one of class labels, or "label" or "cls".
        label_names: a file with a name in each line, or "imagenet-1k"; default: the data's own.
        seed: of the images that `data.train_val_split` holds out.

    Raises:
        ValueError: there is no training data, or what `sources` and `tables` refuse.
    """
    column = label_column or "label"
    labelled = open_files(data, label_column, "training")
    if labelled is not None:
        labels = _labels_of_files(data, {label for _, label in labelled}, label_names)
        training: Any = Files(labelled, labels)
    else:
        rows = sources.open_split(data, training=True)
        if rows is None:
            raise ValueError("there is no training data; give --train_dir, --train_files or --dataset_name.")
        column = label_column or label_column_of(rows)
        labels = Labels(_label_names(rows, column, label_names))
        training = Rows(rows, column, labels)
    labelled = open_files(data, label_column, "validation")
    if labelled is not None:
        return training, Files(labelled, labels), labels
    rows = sources.open_split(data, training=False)
    if rows is not None:
        return training, Rows(rows, column, labels), labels
    return *sources.held_out(training, data, seed), labels


def open_files(data: DataArguments, label_column: str | None, split: str) -> list[Labelled] | None:
    """The files of a split, which may stand in the training data's table; None where the data is something else."""
    given = {"training": (data.train_dir, data.train_files), "validation": (data.validation_dir, data.validation_files)}
    folder, files = given[split]
    columns = (data.image_column, label_column)
    tables = tables_of(folder, files)
    if tables:
        rows = read_tables(tables, split, split, *columns)
        if not rows:
            raise ValueError(f"{tables[0]} has no row for {split}.")
        return rows
    if folder:
        return [(path, name) for name, paths in sources.class_folders(folder).items() for path in paths]
    if split == "validation" and not files and not data.validation_split:
        return read_tables(tables_of(*given["training"]), split, "training", *columns) or None
    return None


def _labels_of_files(data: DataArguments, found: set[str], label_names: str | None) -> Labels:
    """The folders' names; or those in a table, which may be numbers for what `label_names` names."""
    if not tables_of(data.train_dir, data.train_files):
        if label_names is not None:
            raise ValueError(
                f"--label_names is for data without names; the class folders of {data.train_dir} have theirs: "
                "rename the folders or leave it out."
            )
        return Labels(sorted(found))
    numbers = all(label.isdecimal() for label in found)
    if label_names is None:
        return Labels(sorted(found, key=int if numbers else None))
    names = _given_names(label_names)
    return Labels(names, spelt=numbers and not found <= {*names})


def label_column_of(rows: Any) -> str:
    """The column of labels, told by its type or else by its name."""
    features = rows.features or {}
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in ("label", "cls") if name in features]
    if len(typed) != 1 and not named:
        raise ValueError(f"none of the columns {', '.join(features)} is known as labels; choose with --label_column.")
    return typed[0] if len(typed) == 1 else named[0]


def _given_names(given: str) -> list[str]:
    if given == "imagenet-1k":
        return list(imagenet_1k_id2label().values())
    return [line for line in Path(given).read_text(encoding="utf-8").splitlines() if line]


def _label_names(rows: Any, column: str, given: str | None) -> list[str]:
    if given:
        return _given_names(given)
    feature = (rows.features or {}).get(column)
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if isinstance(rows, datasets.IterableDataset):
        raise ValueError(f"the stream's column {column!r} has no names of labels; give them with --label_names.")
    values = sorted(set(rows[column]))
    return values if isinstance(values[0], str) else [str(number) for number in range(values[-1] + 1)]


def check_classes(labels: Labels, images: Any) -> None:
    """Raise ValueError where all training images have one label; of a stream's, only the names are known."""
    images = images.dataset if isinstance(images, Subset) else images
    found = set(labels.names)
    if isinstance(images, Files):
        found = {labels.names[label] for _, label in images.items}
    elif not isinstance(images.rows, datasets.IterableDataset):
        found = {labels.names[labels.number(raw, "a row")] for raw in set(images.rows[images.column])}
    if len(found) < 2:
        raise ValueError(f"all training images are of one class, {', '.join(found)}; a classifier wants two at least.")
