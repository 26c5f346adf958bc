"""Images of one folder, with their labels in a file, as ImageNet's 50,000 validation images come."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ..training.data.tables import Labelled

KAGGLE = ("ImageId", "PredictionString")


def flat_files(folder: str, labels: str | None) -> list[Labelled]:
    """The files of a folder, in the order of their names, each with its label as the file of labels has it.

    That has a label per line in the order of the images, `file label` per line (with or without the file's suffix), or
    is Kaggle's LOC_val_solution.csv.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of labels, another number of them than of images, an image without a label or a label
            without an image.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    if labels is None:
        raise ValueError(
            f"{folder} has {len(files):,} files and no folders; expected a folder for each class, or "
            "--validation_labels, a file with the label of each image."
        )
    if not Path(labels).is_file():
        raise FileNotFoundError(f"there is no file {labels} of labels.")
    files = [file for file in files if file.resolve() != Path(labels).resolve()]
    lines = [line.split() for line in Path(labels).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if lines and ",".join(KAGGLE) == lines[0][0]:
        return _named(files, _of_kaggle(Path(labels)), labels)
    widths = {len(line) for line in lines}
    if widths == {2}:
        return _named(files, [(file, label) for file, label in lines], labels)
    if widths != {1}:
        raise ValueError(f"{labels} has lines of {min(widths, default=0)} to {max(widths, default=0)} words; expected "
                         "`label` or `file label` in each.")  # fmt: skip
    if len(lines) != len(files):
        raise ValueError(f"{labels} has {len(lines):,} labels, and {folder} {len(files):,} files; expected as many.")
    return [(file, label) for file, (label,) in zip(files, lines, strict=True)]


def _of_kaggle(path: Path) -> list[tuple[str, str]]:
    """The label of a file is the first word of the boxes."""
    with open(path, newline="", encoding="utf-8-sig") as content:
        return [(row[KAGGLE[0]], row[KAGGLE[1]].split()[0]) for row in csv.DictReader(content)]


def _named(files: Sequence[Path], labels: Sequence[tuple[str, str]], source: str) -> list[Labelled]:
    by_name: dict[str, str] = {}
    for name, label in labels:
        if by_name.setdefault(Path(name).name, label) != label:
            raise ValueError(f"{source} has two labels of {name}, {by_name[Path(name).name]} and {label}; remove one.")
    labelled, used = [], set()
    for file in files:
        known = next((name for name in (file.name, file.stem) if name in by_name), None)
        if known is None:
            raise ValueError(f"{file} has no label in {source}; add it, or move the file away.")
        used.add(known)
        labelled.append((file, by_name[known]))
    if len(used) != len(by_name):
        lost = sorted(by_name.keys() - used)
        raise ValueError(f"{source} has labels of {len(lost):,} images that are not there, the first {lost[0]}.")
    return labelled
