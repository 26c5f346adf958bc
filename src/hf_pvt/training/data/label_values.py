"""What the pixel values of a mask mean: the names of labels, and values that are no label."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...published.labels import ade20k_id2label
from ..arguments import DataArguments

# The pixel value that is no label, unless it is named; and what pixels without a label become in training.
NO_LABEL = 255
NO_LABEL_OF_MANY = -100  # the same where 255 is a label's number: PyTorch's own
HIGHEST = 65_535  # a mask's pixel values have 16 bits at most
STRANGER = -1


@dataclass(frozen=True)
class LabelValues:
    """Names of the labels 0, 1, ..., the pixel value of each, increasing, and the pixel values that are no label."""

    names: list[str]
    values: list[int]
    no_label: frozenset[int]

    @property
    def ignored(self) -> int:
        """What pixels without a label become: no number of a label."""
        return NO_LABEL if len(self.names) <= NO_LABEL else NO_LABEL_OF_MANY

    def to_labels(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pixel values (H, W) as labels: in [0, num_labels) or `ignored`.

        Raises ValueError for a value that is neither named nor no label.
        """
        inside = (pixels >= 0) & (pixels < len(self._table))
        if inside.all():
            labels = self._table[pixels]
            strange = labels == STRANGER
            if not strange.any():
                return labels
            inside = ~strange
        raise ValueError(f"holds the value {pixels[~inside][0]}, expected {self.expected()}")

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        table = np.full(max([*self.values, *self.no_label]) + 1, STRANGER)
        table[list(self.no_label)] = self.ignored
        table[self.values] = np.arange(len(self.values))
        return table

    def expected(self) -> str:
        """The values that a mask may hold, in words."""
        none = f", or {in_words(self.no_label)} for none" if self.no_label else ""
        return in_words(self.values) + none


def in_words(values: Iterable[int], most: int = 8) -> str:
    """Numbers in order, as "0, 1 and 255", "0 to 149", or of many that have gaps "97 values from 0 to 255"."""
    numbers = sorted(values)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    if len(numbers) > most:
        return f"{len(numbers)} values from {numbers[0]} to {numbers[-1]}"
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def open_label_values(data: DataArguments, given: str | None, reduce_labels: bool = False) -> LabelValues:
    """The labels of a JSON file, of "ade20k", or of labels.json beside the data.

    The file holds {"0": "background", "255": "lesion"}: pixel values, and the names of labels or null for no label.
    Labels are numbered in the order of their values. A list of names is short for values from 0. Where 255 is not
    named, it is no label.

    Where there is no labels.json the labels are none: `mask_census.check_masks` says what there is to be named.

    Args:
        reduce_labels: names are those of the values from 1, and 0 is no label, as ADE20K wants it.

    Raises:
        FileNotFoundError: there is no file `given`.
        ValueError: the file holds something else, or `reduce_labels` does not go with it.
    """
    named, path = _named_values(data, given)
    if not named:
        return LabelValues([], [], frozenset())
    values = sorted(value for value, name in named.items() if name is not None)
    names = [str(named[value]) for value in values]
    no_label = {value for value, name in named.items() if name is None}
    if reduce_labels:
        if no_label or values != list(range(len(values))) or len(values) >= NO_LABEL:
            raise ValueError(
                f"--reduce_labels wants names of the labels from 0 to at most {NO_LABEL - 2}, and {path} names the "
                f"values {in_words(named)}; leave it out, and name the pixel values of the masks, 0 as null."
            )
        values, no_label = [value + 1 for value in values], {0}
    if NO_LABEL not in values:
        no_label |= {NO_LABEL}
    return LabelValues(names, values, frozenset(no_label))


def _named_values(data: DataArguments, given: str | None) -> tuple[dict[int, str | None], str]:
    """Pixel values with their names, None for no label, and where that stands."""
    if given == "ade20k":
        return dict(ade20k_id2label()), "ADE20K"
    folder, files = data.train_dir or data.validation_dir, data.train_files or data.validation_files
    own = folder or (files and str(Path(files[0]).parent)) or data.dataset_name
    path = Path(given) if given else Path(str(own)) / "labels.json"
    if not path.is_file():
        if given:
            raise FileNotFoundError(f"there is no file {path} of labels.")
        return {}, str(path)
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8"))), str(path)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{path} holds no names of labels, expected a list or {{"0": name, ...}} of pixel values from 0 to '
            f"{HIGHEST}, with null for one that is no label."
        ) from error


def _checked(content: Any) -> dict[int, str | None]:
    items = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    named = {int(value): name for value, name in items}
    right = all(0 <= value <= HIGHEST and isinstance(name, str | None) for value, name in named.items())
    if not right or len(named) != len(content) or all(name is None for name in named.values()):
        raise ValueError("not names")
    return named
