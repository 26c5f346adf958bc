"""Images and labels of CSV files: image,label[,split], or a folder's metadata.csv as `datasets`' imagefolder has it."""

import csv
from collections.abc import Sequence
from pathlib import Path

from .label_maps import SPLIT_NAMES
from .sources import expand

METADATA = "metadata.csv"
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
    label_column = label_column or "label"
    found: list[Labelled] = []
    for table in tables:
        with open(table, newline="", encoding="utf-8-sig") as content:  # spreadsheets write a mark at the beginning
            reader = csv.DictReader(content)
            columns = list(reader.fieldnames or ())
            image = image_column or next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
            if not {image, label_column} <= {*columns}:
                raise ValueError(
                    f"{table} has the columns {', '.join(columns)}, expected {image},{label_column} with or without "
                    "split; others are chosen with --image_column and --label_column."
                )
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                if not row[image] or not row[label_column]:
                    raise ValueError(f"{where} has no {image if not row[image] else label_column}; fill or remove it.")
                if _split(row.get("split"), where, default) == split:
                    found.append((table.parent / row[image], row[label_column]))
    return found


def _split(name: str | None, where: str, default: str) -> str:
    if not name:
        return default
    for split, names in SPLIT_NAMES.items():
        if name in names:
            return split
    expected = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
    raise ValueError(f"{where}: the split {name!r} is none of: {expected}.")
