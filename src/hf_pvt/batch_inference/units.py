"""Many images in units: the files of a tree by their number, everything else as it is sharded."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.arguments import DataArguments
from ..training.data import sources
from .arguments import Arguments
from .mask_files import MaskFiles

# A row of a source: the image's file, its key in the output, its name in messages.
Row = tuple[Any, str, str]
# What lies beside images and describes them.
NO_IMAGES = (".json", ".csv")


@dataclass
class Source:
    """Units of rows, and what tells this source from another."""

    units: int
    rows: Callable[[int], Iterable[Row]]
    identity: dict[str, Any] = field(default_factory=dict)
    one_tree: bool = False  # keys are unique in all units, as paths are


def open_source(arguments: Arguments) -> Source:
    """Raises ValueError where there is not exactly one input, FileNotFoundError where it is empty."""
    given = [name for name in ("input_dir", "input_files", "dataset_name") if getattr(arguments, name)]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'no input'}; give one of input_dir, input_files, dataset_name.")
    if arguments.input_dir:
        return folder_source(Path(arguments.input_dir), arguments.unit_size, arguments.masks_as_files)
    data = DataArguments(
        dataset_name=arguments.dataset_name,
        dataset_config_name=arguments.dataset_config_name,
        train_split=arguments.split,
        train_files=arguments.input_files,
        image_column=arguments.image_column,
        streaming=True,
    )
    stream: Any = sources.open_split(data, training=True)
    units = stream.num_shards
    files = sources.expand(arguments.input_files or [])

    def rows(unit: int) -> Iterator[Row]:
        for number, row in enumerate(stream.shard(num_shards=units, index=unit)):
            image = row["image"]
            path = image.get("path") if isinstance(image, dict) else None
            key = row.get("__key__") or path or f"{unit}/{number}"
            yield image, key, sources.row_name(row, number)

    named = {"dataset": [arguments.dataset_name, arguments.dataset_config_name, arguments.split], "files": files}
    return Source(units, rows, named)


def folder_source(root: Path, unit_size: int, masks_as_files: bool = False) -> Source:
    """The files of a tree but hidden ones and tables of annotations, in the order of their names.

    Raises FileNotFoundError where there is none, ValueError where the masks of two would be the same file.
    """
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix.lower() not in NO_IMAGES)
    files = sorted(str(path.relative_to(root)) for path in found if path.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"there is no file in {root}.")
    if masks_as_files:
        masks = MaskFiles(root, Path())
        for file in files:
            masks.name(file)

    def rows(unit: int) -> Iterator[Row]:
        for name in files[unit * unit_size : (unit + 1) * unit_size]:
            yield root / name, name, str(root / name)

    digest = hashlib.sha256("\0".join(files).encode()).hexdigest()
    identity = {"files": len(files), "names": digest, "unit_size": unit_size}
    return Source(-(-len(files) // unit_size), rows, identity, one_tree=True)
