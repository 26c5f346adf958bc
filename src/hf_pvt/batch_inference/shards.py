"""Parquet shards that are whole or not there, and the folder that they stand in."""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..atomic_files import unfinished, write_json
from ..images.image_inputs import image_size
from ..training.data.decoding import BadImageError, decode_image
from .arguments import Arguments
from .mask_files import MaskFiles
from .model_output import Inputs, Output, Size
from .units import Row

BATCHES_AHEAD = 2


def write_shard(
    path: Path, rows: Iterable[Row], compute: Output, arguments: Arguments, masks: MaskFiles | None = None
) -> Iterator[int]:
    """One unit's shard, batch by batch; gives the number of images of each. Bad ones are in the file's metadata.

    Raises BadImageError, unless they are skipped. What is half-written is removed.

    Args:
        masks: where label maps go, to be named in the shard.
    """
    aside = unfinished(path)
    schema = pa.schema({"key": pa.string()} | compute.schema())
    bad: dict[str, str] = {}
    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for keys, images, sizes in batches(rows, compute, arguments, bad):
                columns = compute(images, sizes)
                if masks is not None:
                    columns = {"mask_file": masks.write(keys, columns["mask"])}
                writer.write_table(pa.table({"key": keys} | columns, schema))
                yield len(keys)
            writer.add_key_value_metadata({"bad_images": json.dumps(bad)})
        if not path.is_file():  # another run may have been faster, and have tidied up
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def batches(
    rows: Iterable[Row], compute: Output, arguments: Arguments, bad: dict[str, str]
) -> Iterator[tuple[list[str], list[Inputs], list[Size]]]:
    """Keys, images and their sizes; threads are some batches ahead. Bad images are added to `bad`."""

    def load(row: Row) -> tuple[str, Inputs, Size] | BadImageError:
        source, key, name = row
        try:
            image = decode_image(source, name, compute.channels)
        except BadImageError as error:
            if arguments.on_bad_image == "error":
                raise
            return error
        return key, compute.prepare(image), image_size(image)

    with ThreadPoolExecutor(max(1, arguments.num_workers)) as pool:
        remaining = iter(rows)
        waiting: list[list[Future[Any]]] = []
        while True:
            while len(waiting) <= BATCHES_AHEAD:
                waiting.append([pool.submit(load, row) for row in islice(remaining, arguments.batch_size)])
            loaded = [future.result() for future in waiting.pop(0)]
            if not loaded:
                return
            bad |= {result.file: result.reason for result in loaded if isinstance(result, BadImageError)}
            sound = [result for result in loaded if not isinstance(result, BadImageError)]
            if sound:
                keys, images, sizes = (list(column) for column in zip(*sound, strict=True))
                yield keys, images, sizes


def summarise(shards: list[Path]) -> None:
    """`_bad_images.json` of all shards, by the process that finds them complete."""
    if not all(shard.is_file() for shard in shards):
        return
    files = [pq.ParquetFile(shard) for shard in shards]
    bad: dict[str, str] = {}
    for file in files:
        bad |= json.loads(file.metadata.metadata[b"bad_images"])
    write_json(shards[0].with_name("_bad_images.json"), bad)
    for left in shards[0].parent.glob("part-*.incomplete"):  # by runs that were killed
        left.unlink(missing_ok=True)
    tqdm.write(f"{sum(file.metadata.num_rows for file in files):,} images are done, {len(bad):,} bad ones were skipped")
    for name, reason in bad.items():
        tqdm.write(f"  {name} {reason}")
