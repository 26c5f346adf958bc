"""Images with objects, of COCO's JSON (see `coco_json`) and of data sets with a column of objects.

Annotations stay as they were written until their image is read, see `annotations`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...published.labels import coco_id2label
from ..arguments import DataArguments, flag
from . import sources
from .annotations import BoxFormat, Categories, Example, size_of
from .coco_json import coco_images

# What a data set of the Hub calls the category of an object.
CATEGORY_COLUMNS = ("category", "category_id", "label", "labels", "categories")
BOX_COLUMNS = ("bbox", "bboxes", "boxes", "box")


@dataclass
class AnnotationArguments:
    """Where objects come from, beside `DataArguments`."""

    train_annotations: str | None = flag(
        "COCO's JSON of the images in --train_dir; default: annotations.json or _annotations.coco.json in that folder."
    )
    validation_annotations: str | None = flag("The same of --validation_dir.")
    objects_column: str = flag("Column of a data set's objects, each with a bbox and a category.", "objects")
    bbox_format: BoxFormat = flag(
        "What the four numbers of a box are. COCO's: xywh, the left top corner and the size in pixels.", "xywh"
    )
    label_names: str | None = flag('A file with one name per line, or "coco", where the data has no names.')


class Rows:
    """Images of a data set with columns; of a stream, `rows` and `example` alone are used."""

    def __init__(self, rows: Any, objects_column: str, categories: Categories, keep_empty: bool = True) -> None:
        self.rows, self.column, self.categories = rows, objects_column, categories
        if is_streamed(rows) and not keep_empty:
            self.rows = rows.filter(lambda row: bool(as_objects(row[objects_column])))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.example(self.rows[index], index)

    @property
    def has_sizes(self) -> bool:
        return {"height", "width"} <= {*self.rows.column_names}

    def annotation(self, index: int) -> Example:
        """Without the image."""
        return self.example(self.rows.remove_columns("image")[index] | {"image": {"path": None}}, index)

    def example(self, row: dict[str, Any], number: int) -> Example:
        image_id = row.get("image_id")
        if not isinstance(image_id, int):
            image_id = None if is_streamed(self.rows) else number  # every worker counts the rows of its own part
        name, objects = sources.row_name(row, number), as_objects(row[self.column])
        return Example(row["image"], name, image_id, size_of(row), objects, self.categories)


def as_objects(objects: Any) -> list[dict[str, Any]]:
    """A list of objects, or a dictionary of lists as older data sets have it, as COCO calls its fields."""
    if isinstance(objects, dict):
        lengths = {len(values) for values in objects.values()}
        if len(lengths) > 1:
            raise ValueError(f"the columns of objects have different lengths: {sorted(lengths)}.")
        objects = [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]
    return [_as_coco(entry) for entry in objects or ()]


def _as_coco(entry: dict[str, Any]) -> dict[str, Any]:
    renamed = {"bbox": _first(entry, BOX_COLUMNS), "category_id": _first(entry, CATEGORY_COLUMNS)}
    kept = ("area", "iscrowd", "is_crowd", "segmentation")
    others = {name.replace("is_crowd", "iscrowd"): entry[name] for name in kept if entry.get(name) is not None}
    return {name: entry[column] for name, column in renamed.items() if column is not None} | others


def _first(names: Iterable[str], candidates: Sequence[str]) -> str | None:
    return next((name for name in candidates if name in names), None)


def is_streamed(rows: Any) -> bool:
    return isinstance(rows, datasets.IterableDataset)


def open_annotated(
    data: DataArguments, annotations: AnnotationArguments, seed: int, keep_empty: bool = True
) -> tuple[Any, Any, Categories]:
    """Training images, validation images or None, and the categories, which are the training data's.

    Args:
        seed: of the images that `data.train_val_split` holds out.
        keep_empty: whether images without objects come in a stream.

    Raises:
        ValueError, FileNotFoundError: there is no training data, or it is not in COCO's form; the message names what.
    """
    opened = open_share(data, annotations, training=True, keep_empty=keep_empty)
    if opened is None:
        raise ValueError("there is no training data; give --train_dir with --train_annotations, or --dataset_name.")
    training, categories = opened
    validating = open_share(data, annotations, training=False, categories=categories)
    if validating is not None:
        return training, validating[0], categories
    return *sources.held_out(training, data, seed), categories


def open_share(
    data: DataArguments,
    annotations: AnnotationArguments,
    training: bool,
    categories: Categories | None = None,
    keep_empty: bool = True,
) -> tuple[Any, Categories] | None:
    """The images of one share, None where there are none.

    Args:
        categories: those that the names of the share's own have to be; default: its own.

    Raises ValueError and FileNotFoundError as `open_annotated` does.
    """
    folder, file = (
        (data.train_dir, annotations.train_annotations)
        if training
        else (data.validation_dir, annotations.validation_annotations)
    )
    if folder or file:
        images = coco_images(Path(folder or Path(str(file)).parent), file, categories)
        return images, categories or images.categories
    rows = sources.open_split(data, training)
    if rows is None:
        return None
    column = annotations.objects_column
    if rows.column_names is not None and column not in rows.column_names:
        found = ", ".join(rows.column_names)
        raise ValueError(f"there is no column {column!r} of objects, only: {found}; choose with --objects_column.")
    categories = categories or _categories_of_rows(rows, column, annotations.label_names)
    return Rows(rows, column, categories, keep_empty), categories


def _categories_of_rows(rows: Any, column: str, given: str | None) -> Categories:
    """The names that are given, or those of the column's type, or what the objects have."""
    if given == "coco":
        return Categories(list(coco_id2label().values()))
    if given:
        return Categories([line for line in Path(given).read_text(encoding="utf-8").splitlines() if line])
    fields: Any = (rows.features or {}).get(column)
    fields = getattr(fields, "feature", fields)
    name = _first(fields or (), CATEGORY_COLUMNS)
    if name is not None:
        category = getattr(fields[name], "feature", fields[name])
        if isinstance(category, datasets.ClassLabel):
            return Categories(list(category.names))
    if is_streamed(rows):
        raise ValueError(f"the stream's objects in {column!r} have no names; give them with --label_names.")
    found: set[Any] = {entry.get("category_id") for objects in rows[column] for entry in as_objects(objects)}
    if not found or None in found:
        raise ValueError(f"the column {column!r} has {'objects without a category' if found else 'no objects'}.")
    if all(isinstance(category, int) for category in found):
        return Categories([str(number) for number in range(max(found) + 1)])
    return Categories(sorted(map(str, found)))
