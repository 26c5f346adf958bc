"""Images with one label each: class folders, and data sets with columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Subset

import hf_pvt

from . import sources
from .arguments import DataArguments

# The image's file (path, bytes or row), its name for messages, its label.
Example = tuple[Any, str, int]


class Labels:
    """Names of the labels, and the number of what a data set gives."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, raw: str | int, file: str) -> int:
        """Raises ValueError for a label that there is not."""
        number = self._numbers.get(raw, -1) if isinstance(raw, str) else int(raw)
        if not 0 <= number < len(self.names):
            raise ValueError(f"{file} has the label {raw!r}, which is none of the {len(self.names)} labels.")
        return number


class Files:
    """Images of class folders."""

    def __init__(self, root: str, labels: Labels) -> None:
        folders = sources.class_folders(root)
        self.items = [(path, labels.number(name, str(path))) for name, paths in folders.items() for path in paths]

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
        ValueError: there is no training data, or what `sources` refuses.
    """
    if data.train_dir:
        labels = Labels(list(sources.class_folders(data.train_dir)))
        training: Any = Files(data.train_dir, labels)
        column = label_column or "label"
    else:
        rows = sources.open_split(data, training=True)
        if rows is None:
            raise ValueError("there is no training data; give --train_dir, --train_files or --dataset_name.")
        column = label_column or _label_column(rows)
        labels = Labels(_label_names(rows, column, label_names))
        training = Rows(rows, column, labels)
    if data.validation_dir:
        return training, Files(data.validation_dir, labels), labels
    rows = sources.open_split(data, training=False)
    if rows is not None:
        return training, Rows(rows, column, labels), labels
    return *sources.held_out(training, data, seed), labels


def _label_column(rows: Any) -> str:
    """The column of labels, told by its type or else by its name."""
    features = rows.features or {}
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in ("label", "cls") if name in features]
    if len(typed) != 1 and not named:
        raise ValueError(f"none of the columns {', '.join(features)} is known as labels; choose with --label_column.")
    return typed[0] if len(typed) == 1 else named[0]


def _label_names(rows: Any, column: str, given: str | None) -> list[str]:
    if given == "imagenet-1k":
        return list(hf_pvt.imagenet_1k_id2label().values())
    if given:
        return [line for line in Path(given).read_text(encoding="utf-8").splitlines() if line]
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
    found = set(labels.names)  # of class folders, each has images
    if isinstance(images, Rows) and not isinstance(images.rows, datasets.IterableDataset):
        found &= {labels.names[labels.number(raw, "a row")] for raw in set(images.rows[images.column])}
    if len(found) < 2:
        raise ValueError(f"all training images are of one class, {', '.join(found)}; a classifier wants two at least.")
