"""What a model is evaluated on: the images of a data set with the model's own labels, however the data spells them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator

from ..training.data import sources
from ..training.data.annotated_images import Rows as AnnotatedRows
from ..training.data.annotated_images import open_share
from ..training.data.annotations import Categories
from ..training.data.coco_json import CocoImages, in_order_of
from ..training.data.label_values import LabelValues, open_label_values
from ..training.data.labelled_images import Files, Labels, Rows, label_column_of, open_files
from ..training.data.mask_checks import check_masks, some
from ..training.data.masks import open_split
from ..training.data.tables import Labelled, tables_of
from .arguments import EvaluationArguments
from .imagenet_files import flat_files
from .matched_labels import check_order, match_labels

NO_DATA = "there is no validation data; give --validation_dir, --validation_files or --dataset_name with --split."


class MatchedLabels(Labels):
    """A model's labels, and the number of each label of the data.

    Args:
        numbers: of a label as text.
        spelling: the data's names of its own numbers, where it has them.
    """

    def __init__(self, names: Sequence[str], numbers: dict[str, int], spelling: Sequence[str] | None = None) -> None:
        super().__init__(names)
        self._numbers, self._spelling = numbers, spelling

    def number(self, raw: str | int, file: str) -> int:
        if isinstance(raw, int) and self._spelling is not None and 0 <= raw < len(self._spelling):
            raw = self._spelling[raw]
        if str(raw) not in self._numbers:
            raise ValueError(f"{file} has the label {raw!r}, which is none of the {len(self.names)} labels.")
        return self._numbers[str(raw)]


def classified(arguments: EvaluationArguments, names: Sequence[str]) -> tuple[Files | Rows, str]:
    """Images with one label each, and how the data's labels became those of the model, whose names these are.

    Raises:
        ValueError, FileNotFoundError: there is no data, or a label that is none of the model's.
    """
    data, by_number = arguments.data(), arguments.labels_by_number
    folder = arguments.validation_dir
    if folder and not tables_of(folder, None) and (arguments.validation_labels or _is_flat(folder)):
        labelled: list[Labelled] | None = flat_files(folder, arguments.validation_labels)
    else:
        labelled = open_files(data, arguments.label_column, "validation")
    if labelled is not None:
        check_order(labelled)
        found = {label for _, label in labelled}
        ordered = sorted(found, key=int if all(map(str.isdecimal, found)) else None)
        numbers, how = match_labels(ordered, names, by_number)
        if len(found) < len(names):
            how += f", {len(found):,} of the model's {len(names):,}"
        return Files(labelled, MatchedLabels(names, numbers)), how
    rows: Any = sources.open_split(data, training=False)
    if rows is None:
        raise ValueError(NO_DATA)
    column = arguments.label_column or label_column_of(rows)
    feature = rows.features.get(column)
    spelling = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    raw = spelling or [str(value) for value in sorted(rows.unique(column))]
    numbers, how = match_labels(raw, names, by_number)
    return Rows(rows, column, MatchedLabels(names, numbers, spelling)), how


def _is_flat(folder: str) -> bool:
    """Whether there are images in a folder, and no folders."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    visible = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    return bool(visible) and not any(path.is_dir() for path in visible)


def segmented(
    arguments: EvaluationArguments, names: Sequence[str], accelerator: Accelerator
) -> tuple[Any, LabelValues, str]:
    """Images with a label map each, the pixel values of the model's labels, and how they were matched.

    Every process has to call this: the masks are looked at first.

    Raises:
        ValueError, FileNotFoundError: there is no data, nothing names its pixel values, or a name is none of the
            model's.
        BadImageError: a mask cannot be read, unless bad images are skipped.
    """
    data = arguments.data()
    examples = open_split(data, arguments.mask_column, training=False)
    if examples is None:
        raise ValueError(NO_DATA)
    labels = open_label_values(data, arguments.labels, arguments.reduce_labels)
    how = "by their order"
    if labels.names and not (arguments.labels_by_number and len(labels.names) == len(names)):
        labels, how = _in_order_of(names, labels), "by name"
    check_masks(accelerator, labels, None, examples, arguments.on_bad_image, shorter_side=0)
    if not labels.names:
        raise ValueError("nothing names the pixel values of the masks; say in labels.json beside the data, or with "
                         "--labels, what each means.")  # fmt: skip
    return examples, labels, how


def annotated(arguments: EvaluationArguments, names: Sequence[str]) -> tuple[CocoImages | AnnotatedRows, str]:
    """Images with objects, whose categories are the model's labels, and how they were matched.

    Raises:
        ValueError, FileNotFoundError: there is no data, or a category that is none of the model's labels.
    """
    opened = open_share(arguments.data(), arguments.annotations(), training=False)
    if opened is None:
        raise ValueError(NO_DATA)
    examples, own = opened
    if arguments.labels_by_number:
        if len(own.names) != len(names):
            raise ValueError(f"--labels_by_number: the data has {len(own.names)} labels, the model {len(names)}.")
        examples.categories = Categories(names, own.ids)
        return examples, "by their order"
    examples.categories = in_order_of(Categories(names), own, "the data")
    return examples, "by name"


def _in_order_of(names: Sequence[str], labels: LabelValues) -> LabelValues:
    """The same names and pixel values in the order of the model's labels.

    Raises ValueError where the names are others.
    """
    if len({*names}) == len(names) and {*names} == {*labels.names}:
        value_of = dict(zip(labels.names, labels.values, strict=True))
        return LabelValues(list(names), [value_of[name] for name in names], labels.no_label)
    if list(names) == labels.names:  # two labels of the same name, as ADE20K has
        return labels
    ours, theirs = (sorted({*a} - {*b}) for a, b in ((labels.names, names), (names, labels.names)))
    only = [f"only the data has {some(ours)}"] if ours else []
    only += [f"only the model has {some(theirs)}"] if theirs else []
    raise ValueError(
        f"the data has {len(labels.names)} labels and the model {len(names)}: {', '.join(only) or 'in another order'}. "
        "Name all labels of the model in labels.json or --labels, or give --labels_by_number where both have the same "
        "order."
    )
