"""The labels of a data set as numbers of a model's labels: by name, by WordNet id, or by number."""

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from ..published.labels import imagenet_1k_id2label
from ..training.data.mask_checks import some

WORDNET_ID = re.compile(r"n\d{8}")
# The first labels of ILSVRC2012's validation files in the order of the WordNet ids, which all published models have.
# ILSVRC's own ground truth is in another order, from 1: it begins with 490, 361, 171.
FIRST_OF_ILSVRC = {f"ILSVRC2012_val_{n:08d}": label for n, label in enumerate((65, 970, 230, 809, 516), start=1)}


@cache
def wordnet_ids() -> list[str]:
    """ImageNet-1k's 1,000 synsets, sorted: the order of the labels of published models."""
    return Path(__file__).with_name("wordnet_ids.txt").read_text().split()


def match_labels(found: Sequence[str], names: Sequence[str], by_number: bool = False) -> tuple[dict[str, int], str]:
    """The model's number of each label that was found, and how they were matched.

    Args:
        found: labels of the data, each once, in their order: names, WordNet ids or numbers from 0, as text.
        names: the model's labels.
        by_number: the data's labels, in their order, are the model's under other names.

    Raises:
        ValueError: a label that is none of the model's, or may be several.
    """
    twice = {name for name in found if names.count(name) > 1}
    if twice and not by_number:
        raise ValueError(f"the model has several labels of the name {some(sorted(twice))}; give --labels_by_number.")
    if by_number:
        if len(found) != len(names):
            raise ValueError(f"--labels_by_number: the data has {len(found):,} labels, the model {len(names):,}.")
        return {label: number for number, label in enumerate(found)}, "by their order"
    if {*found} <= {*names}:
        return {label: names.index(label) for label in found}, "by name"
    if all(label.isdecimal() for label in found):
        return _by_number(found, len(names)), "by number from 0"
    if all(WORDNET_ID.fullmatch(label) for label in found):
        return _by_wordnet_id(found, names), "by WordNet id"
    strange = sorted({*found} - {*names})
    raise ValueError(
        f"{len(strange):,} of the data's {len(found):,} labels are none of the model's {len(names):,}: "
        f"{some(strange)}; the model's are {some(names)}. Rename them, or give --labels_by_number where both have the "
        "same order."
    )


def _by_number(found: Collection[str], count: int) -> dict[str, int]:
    numbers = {label: int(label) for label in found}
    if max(numbers.values()) >= count:
        from_one = " and seem to count from 1" if max(numbers.values()) == count and 0 not in numbers.values() else ""
        raise ValueError(
            f"the labels are numbers from {min(numbers.values())} to {max(numbers.values())}{from_one}; expected 0 to "
            f"{count - 1}, in the order of the model's labels. (ILSVRC2012_validation_ground_truth.txt has an order of "
            "its own; give WordNet ids, or numbers in their sorted order.)"
        )
    return numbers


def _by_wordnet_id(found: Collection[str], names: Sequence[str]) -> dict[str, int]:
    if list(names) != list(imagenet_1k_id2label().values()):
        raise ValueError(
            f"the data's labels are WordNet ids, and the model's {len(names):,} are not ImageNet-1k's: {some(names)}; "
            "give --labels_by_number where both have the same order."
        )
    strange = sorted({*found} - {*wordnet_ids()})
    if strange:
        raise ValueError(f"{len(strange):,} of the WordNet ids are none of ImageNet-1k's 1,000: {some(strange)}.")
    return {wordnet_id: wordnet_ids().index(wordnet_id) for wordnet_id in found}


def check_order(labels: Sequence[tuple[Path, str]]) -> None:
    """Raise ValueError where numbers of ILSVRC2012's validation files are, or may be, in ILSVRC's own order."""
    of_stem = {path.stem: label for path, label in labels if path.stem.startswith("ILSVRC2012_val_")}
    if not of_stem or not all(label.isdecimal() for label in of_stem.values()):
        return
    known = {stem: label for stem, label in FIRST_OF_ILSVRC.items() if stem in of_stem}
    if not known:
        raise ValueError(
            "numbers of ILSVRC2012's validation files can be in two orders, which cannot be told apart without "
            f"{next(iter(FIRST_OF_ILSVRC))}; give WordNet ids."
        )
    wrong = [stem for stem, label in known.items() if int(of_stem[stem]) != label]
    if wrong:
        raise ValueError(
            f"{wrong[0]} has the label {of_stem[wrong[0]]}, and in the order of the WordNet ids, from 0, it is "
            f"{known[wrong[0]]}: these numbers are in another order, such as that of "
            "ILSVRC2012_validation_ground_truth.txt. Give WordNet ids, or numbers in their sorted order."
        )
