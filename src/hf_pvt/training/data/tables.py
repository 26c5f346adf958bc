"""Images and labels of CSV files: image,label[,split], or a folder's metadata.csv as `datasets`' imagefolder has it."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from .sources import expand

METADATA = "metadata.csv"
# What the split column may say.
SPLIT_NAMES = {"training": ("train", "training"), "validation": ("val", "validation"), "test": ("test", "testing")}
IMAGE_COLUMNS = ("image", "file_name")

# An image's file, and its label as the table has it.
Labelled = tuple[Path, str]


def tables_of(folder: str | None, files: Sequence[str] | None) -> list[Path]:
    """The CSV files of what was given as data; none where it is something else."""
    if folder:
        table = Path(folder) / METADATA
        return [table] if table.is_file() else []
    return [Path(file) for file in expand(files)] if files and files[0].endswith(".csv") else []


def read_tables(
    tables: Sequence[Path], split: str, default: str, image_column: str | None = None, label_column: str | None = None
) -> list[Labelled]:
    """The rows of a split, files relative to their table's folder; rows that name no split are those of `default`.

    Args:
        split: "training" or "validation".
        image_column: default: the first of `IMAGE_COLUMNS` that there is.
        label_column: default: "label".

    Raises:
        ValueError: columns that are missing, a split that is none of `SPLIT_NAMES`, a row without image or label.
    """
    label = label_column or "label"
    found: list[Labelled] = []
    for table in tables:
        columns = columns_of(table)
        image = image_column or next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
        for row, where in rows_of(table, (image, label), split, default):
            if not row[image] or not row[label]:
                raise ValueError(f"{where} has no {image if not row[image] else label}; fill or remove it.")
            found.append((table.parent / row[image], row[label]))
    return found


def rows_of(table: Path, needed: Sequence[str], split: str, default: str) -> Iterator[tuple[dict[str, str], str]]:
    """The rows of a split, and where each one stands.

    Raises ValueError for a table without the needed columns, or a split that is none of `SPLIT_NAMES`.
    """
    columns = columns_of(table)
    if not {*needed} <= {*columns}:
        raise ValueError(
            f"{table} has the columns {', '.join(columns)}, expected {','.join(needed)} with or without split; others "
            "are chosen with --image_column and the like."
        )
    with _opened(table) as content:
        reader = csv.DictReader(content)
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if _split(row.get("split"), where, default) == split:
                yield row, where


def columns_of(table: Path) -> list[str]:
    with _opened(table) as content:
        return list(csv.DictReader(content).fieldnames or ())


def _opened(table: Path) -> TextIO:
    return open(table, newline="", encoding="utf-8-sig")  # spreadsheets write a mark at the beginning


def _split(name: str | None, where: str, default: str) -> str:
    if not name:
        return default
    for split, names in SPLIT_NAMES.items():
        if name in names:
            return split
    expected = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
    raise ValueError(f"{where}: the split {name!r} is none of: {expected}.")
