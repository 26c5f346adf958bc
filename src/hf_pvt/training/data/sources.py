"""Data sets of the Hub, of parquet files and of WebDataset shards, with images left as the bytes of their files."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Subset

from ..arguments import DataArguments
from .sampling import EpochOrder

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}


def open_split(data: DataArguments, training: bool) -> datasets.Dataset | datasets.IterableDataset | None:
    """The training or validation rows of `data`, None where there are none; the column of images is `image`.

    Images are not decoded: {"bytes", "path"} of their file, so that what is wrong with them can be told.

    Raises:
        FileNotFoundError: no file matches.
        ValueError: files of another type, or no or several columns of images.
    """
    files = data.train_files if training else data.validation_files
    split = data.train_split if training else data.validation_split
    if files:
        paths = expand(files)
        builder = BUILDERS.get(Path(paths[0]).suffix)
        if builder is None:
            raise ValueError(f"{paths[0]} is none of: {', '.join(BUILDERS)}.")
        rows = datasets.load_dataset(builder, data_files=paths, split="train", streaming=data.streaming)
    elif data.dataset_name and split:
        rows = datasets.load_dataset(data.dataset_name, data.dataset_config_name, split=split, streaming=data.streaming)
    else:
        return None
    column = data.image_column or image_column(rows)
    if rows.column_names is not None and column not in rows.column_names:
        raise ValueError(f"there is no column {column!r} of images, only: {', '.join(rows.column_names)}.")
    rows = rows.cast_column(column, datasets.Image(decode=False))  # first: a stream decodes what it renames
    return rows if column == "image" else rows.rename_column(column, "image")


def expand(patterns: Sequence[str]) -> list[str]:
    """The files that patterns with * match, each pattern at least one."""
    files: list[str] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"no file matches {pattern}.")
        files += found
    return files


def image_column(rows: Any) -> str:
    """The only column that holds images."""
    names = [name for name, feature in (rows.features or {}).items() if isinstance(feature, datasets.Image)]
    if len(names) != 1:
        found = f"several columns of images ({', '.join(names)})" if names else "no column that is known to hold images"
        raise ValueError(f"the data has {found}; choose one with --image_column.")
    return names[0]


def row_name(row: dict[str, Any], number: int) -> str:
    """What to call a row's image in a message: its file, its key in a shard, or its number."""
    if "__key__" in row:
        return f"{row['__key__']} in {row['__url__']}"
    path = row["image"].get("path") if isinstance(row["image"], dict) else None
    return f"{path} (row {number})" if path else f"the image of row {number}"


def shuffled_share(rows: Any, seed: int, buffer: int, process: int, processes: int) -> Any:
    """One process's part of a training stream: whole shards where they divide evenly, else every n-th sample."""
    return split_dataset_by_node(rows.shuffle(seed=seed, buffer_size=buffer), process, processes)


def class_folders(root: str) -> dict[str, list[Path]]:
    """The files of a tree with one folder for each class, at any depth, by the class's name; hidden files are left.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no folder for a class, or one has no file.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"there is no folder {root}.")
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} has no folders; expected one for each class, with its images.")
    classes = {
        folder.name: sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        for folder in folders
    }
    for name, files in classes.items():
        if not files:
            raise ValueError(f"the class folder {Path(root) / name} has no images; fill or remove it.")
    return classes


def held_out(examples: Any, data: DataArguments, seed: int) -> tuple[Any, Any]:
    """The examples to train on, and the share `data.train_val_split` of them to validate on; None without one.

    Raises:
        ValueError: a share that is none, or one of a stream, which has no length.
    """
    if not 0 <= (data.train_val_split or 0) < 1:
        raise ValueError(f"--train_val_split is {data.train_val_split}, expected a share from 0 to below 1.")
    if not data.train_val_split:
        return examples, None
    if data.streaming:
        raise ValueError("--train_val_split needs data of a known length; give --validation_files for a stream.")
    indices = EpochOrder(len(examples), 1, seed).indices(0).tolist()
    count = max(1, round(data.train_val_split * len(examples)))
    return Subset(examples, indices[count:]), Subset(examples, indices[:count])
