"""Which pixel values the masks hold, counted before the first step: what cannot be learnt is refused, and says why.

A run on masks of 0 and 255 would otherwise end well, with a mean IoU of 1.0 of the background alone.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from ..progress import ProgressBar
from .decoding import BadImageError
from .label_values import LabelValues, in_words
from .loaders import is_stream
from .masks import Example, mask_pixels

logger = get_logger(__name__)

MOST_MASKS = 2_000  # of each share; of more, so many at equal distances
MOST_OF_STREAM = 100  # the first, which are read twice
THREADS = 8
MOST_NAMES = 8  # in a message


@dataclass
class Census:
    """What some masks hold.

    Args:
        first: each pixel value, with the number and the name of the first mask that holds it.
        bad: masks that cannot be read, or hold values that mean nothing, by their number.
        masks: how many were looked at.
        side: the longest of their shorter sides, in pixels.
    """

    first: dict[int, tuple[int, str]] = field(default_factory=dict)
    bad: dict[int, BadImageError] = field(default_factory=dict)
    masks: int = 0
    side: int = 0

    def __add__(self, other: "Census") -> "Census":
        first = dict(self.first)
        for value, place in other.first.items():
            first[value] = min(place, first.get(value, place))
        bad, masks, side = self.bad | other.bad, self.masks + other.masks, max(self.side, other.side)
        return Census(first, bad, masks, side)


def check_masks(
    accelerator: Accelerator,
    labels: LabelValues,
    training: Any,
    validation: Any,
    on_bad_image: str,
    shorter_side: int,
) -> None:
    """Look at the masks of both shares, each process at its part; every process has to call this, and all fail alike.

    Warns of labels that no mask holds, and of images that `shorter_side` enlarges to twice their size or more. With
    `on_bad_image` "skip", bad masks and values of no meaning are left to their turn.

    Raises:
        BadImageError: a mask cannot be read.
        ValueError: a pixel value means nothing, or the training masks hold fewer than two labels.
    """
    expected = labels.names
    for share, examples in (("training", training), ("validation", validation)):
        census = Census() if examples is None else _census(accelerator, examples, share)
        if not census.masks:
            continue  # an empty share is refused elsewhere
        if census.bad and (on_bad_image == "error" or not census.first):
            raise census.bad[min(census.bad)]
        strangers = census.first.keys() - set(labels.values) - labels.no_label
        occurring = [name for name, value in zip(labels.names, labels.values, strict=True) if value in census.first]
        known = labels.names if is_stream(examples) else occurring  # a stream's first masks may be all alike
        too_few = share == "training" and len(known) < 2
        if too_few or (strangers and on_bad_image == "error"):
            raise ValueError(_refusal(census, share, labels, occurring, strangers))
        missing = [name for name in expected if name not in occurring]
        if missing:
            looked_at = f"none of the {census.masks:,} {share} masks looked at holds {some(missing)}"
            logger.warning(f"{looked_at}; they hold {_found(census, labels)}")
        if share == "training" and 2 * census.side <= shorter_side:
            logger.warning(
                f"images of at most {census.side} pixels on their shorter side are enlarged to {shorter_side}; "
                f"--shorter_side {census.side} computes {shorter_side**2 / census.side**2:.0f} times less"
            )
        expected = occurring  # validation misses what training has


def _census(accelerator: Accelerator, examples: Any, share: str) -> Census:
    """Of all processes."""
    if is_stream(examples):
        logger.info(f"of the stream's {share} masks the first {MOST_OF_STREAM} are looked at, the others in their turn")
        rows = examples.rows.take(MOST_OF_STREAM) if accelerator.is_main_process else ()
        mine: Any = {number: examples.example(row, number) for number, row in enumerate(rows)}
        numbers = list(mine)
    else:
        chosen = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), MOST_MASKS)).astype(int)).tolist()
        if len(chosen) < len(examples):
            logger.info(
                f"{len(chosen):,} of the {len(examples):,} {share} masks are looked at, the others in their turn"
            )
        mine, numbers = examples, chosen[accelerator.process_index :: accelerator.num_processes]
    with ThreadPoolExecutor(THREADS) as pool:
        looks = pool.map(lambda number: _look(mine[number], number), numbers)
        census = sum(
            ProgressBar(looks, f"{share} masks", len(numbers), disable=not accelerator.is_main_process), Census()
        )
    return sum(gather_object([census]), Census())


def _look(example: Example, number: int) -> Census:
    """What one mask holds."""
    try:
        pixels, name = mask_pixels(example)
    except BadImageError as error:
        return Census(bad={number: error}, masks=1)
    return Census({value: (number, name) for value in np.unique(pixels).tolist()}, masks=1, side=min(pixels.shape))


def _refusal(census: Census, share: str, labels: LabelValues, occurring: list[str], strangers: set[int]) -> str:
    """What was found, what it means, and how to go on."""
    sentence = f"the {share} masks hold {_found(census, labels)}"
    if not labels.names:
        sentence += ", and nothing names them"
    elif strangers:
        _, file = min(census.first[value] for value in strangers)
        sentence += f", and {in_words(strangers)} {'have' if len(strangers) > 1 else 'has'} no name (first in {file})"
        if Path(file).suffix.lower() in (".jpg", ".jpeg"):
            sentence += "; JPEG changes values, save masks as PNG"
    else:
        only = f"{occurring[0]!r} is the only label" if occurring else "there is no label"
        sentence += f": {only}, and training wants at least two"
    return f"{sentence}; {_advice(sorted(census.first), labels.names)}."


def _found(census: Census, labels: LabelValues) -> str:
    none = labels.no_label & census.first.keys()
    values = f"the pixel value{'s' if len(census.first) > 1 else ''} {in_words(census.first)}"
    return f"{values}, of which {in_words(none)} {'are' if len(none) > 1 else 'is'} no label" if none else values


def _advice(found: list[int], names: list[str]) -> str:
    """A labels.json of the values that were found, or of others where names and values are not as many."""
    example = {"0": "background", "255": "lesion"}
    if 1 < len(found) == len(names) <= MOST_NAMES:
        example = dict(zip(map(str, found), names, strict=True))
    return (
        "say in labels.json beside the data, or in a file for --labels, what each value means, such as "
        f"{json.dumps(example)}, with null for one that is no label"
    )


def some(names: Sequence[str]) -> str:
    """Names for a message."""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
