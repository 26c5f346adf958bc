"""Embeddings, class predictions or label maps of millions of images, as parquet shards.

    python examples/embed_images.py --model_name_or_path me/pvt-v2-b2 --input_dir photos --output_dir out/e

    torchrun --nproc_per_node 8 examples/embed_images.py --model_name_or_path me/p2t-small-ade20k --output masks \
        --input_files "shards/*.tar" --output_dir out/masks --on_bad_image skip --bf16

Input is a tree of images, parquet files, WebDataset shards, or a data set of the Hub; nothing is copied to the disk. It
is cut into units: files of a tree by `--unit_size`, everything else as it is sharded. A unit becomes one shard,
`part-<unit>-of-<units>.parquet`, which is whole or not there; examples/README.md lists its columns. So a run that was
interrupted continues where it stopped when it is started again, and processes need not speak to each other: of N
processes each takes every N-th unit.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from training import sources
from training.arguments import DataArguments, flag, parse
from training.images import BadImageError, decode_image
from training.launch import lost_processes, parent_command_lines, run_main
from training.whole_files import MaskFiles, unfinished, write_whole
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

import hf_pvt
from hf_pvt.image_inputs import image_size
from hf_pvt.image_processing_pvt import channels_of

# A row of a source: the image's file, its key in the output, its name in messages.
Row = tuple[Any, str, str]
Columns = dict[str, list[Any]]
BATCHES_AHEAD = 2
# In the output's folder; like `_job.json`, what begins so is passed over by readers of a folder of parquet files.
MASKS = Path("_masks")


@dataclass
class Arguments:
    """What to read, what to compute, where to write."""

    model_name_or_path: str | None = flag("A Hub id, a folder, or a published .pth or .safetensors file.")
    output: Literal["embeddings", "predictions", "masks"] = flag("What to compute.", "embeddings")
    masks_as_files: bool = flag("Label maps become PNG files in _masks/, and the shards name them.", False)
    output_dir: str = flag("Shards go here.", "out/embeddings")
    input_dir: str | None = flag("A folder of images, at any depth.")
    input_files: list[str] | None = flag("Parquet files or WebDataset shards (.tar); quoted * are expanded.")
    dataset_name: str | None = flag("A data set of the Hub, which is streamed.")
    dataset_config_name: str | None = flag("Its configuration.")
    split: str = flag("Its split.", "train")
    image_column: str | None = flag("Column of the images; default: the only one that holds images.")
    unit_size: int = flag("Images of a folder that become one shard.", 10_000)
    batch_size: int = flag("Images at once.", 32)
    num_workers: int = flag("Threads that read and resize images.", 4)
    top_k: int = flag("Labels of a prediction.", 5)
    bf16: bool = flag("Compute in bfloat16.", False)
    on_bad_image: Literal["error", "skip"] = flag(
        "Stop at a file that is no sound image, or list and skip it.", "error"
    )
    config: str | None = flag("A YAML file of flags; those of the command line come before it.")


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
    """The files of a tree but hidden ones, in the order of their names.

    Raises FileNotFoundError where there is none, ValueError where the masks of two would be the same file.
    """
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
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


class Embedder:
    """Pooled features (B, C) of classifiers."""

    output, head = "embeddings", "classifier"
    auto_class: Any = AutoModelForImageClassification

    def __init__(self, arguments: Arguments, device: torch.device) -> None:
        path = str(arguments.model_name_or_path)
        model = self.open(path)
        self.model = model.to(device).eval()
        # Of a Hub id without one, from_pretrained says so.
        has_processor = Path(path, "preprocessor_config.json").is_file() or not Path(path).exists()
        self.processor = AutoImageProcessor.from_pretrained(path) if has_processor else self.published_processor()
        self.channels = channels_of(self.processor.image_mean, self.processor.image_std)
        self.device, self.bf16, self.top_k = device, arguments.bf16, min(arguments.top_k, model.config.num_labels)

    def open(self, path: str) -> PreTrainedModel:
        """Raises ValueError where weights are missing, which Transformers would draw at random."""
        if Path(path).is_file():
            model, missing = hf_pvt.load_original(path), []
        else:
            model, info = self.auto_class.from_pretrained(path, output_loading_info=True)
            missing = sorted(name for name in info["missing_keys"] if self.needs(name))
        if missing or not hasattr(model, self.head):
            raise ValueError(f"{path} has no weights for {missing[0] if missing else self.head}; choose another model.")
        return model

    def needs(self, name: str) -> bool:
        return not name.startswith("classifier.")

    def published_processor(self) -> Any:
        return hf_pvt.classification_image_processor()

    def schema(self) -> dict[str, pa.DataType]:
        return {"embedding": pa.list_(pa.float32(), self.model.config.hidden_sizes[-1])}

    def prepare(self, image: Any) -> Tensor:
        """One image, (C, H, W)."""
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def __call__(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> Columns:
        """The columns of images (3, H, W) that were of these sizes (height, width)."""
        pixel_values = torch.stack(images).to(self.device)  # (B, 3, H, W)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.columns(pixel_values, sizes)

    def columns(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> Columns:
        features = self.model.base_model(pixel_values).pooler_output  # (B, C)
        return {"embedding": list(features.float().cpu().numpy())}


class Predictor(Embedder):
    """The most likely labels of classifiers."""

    output = "predictions"

    def needs(self, name: str) -> bool:
        return True

    def schema(self) -> dict[str, pa.DataType]:
        return {"labels": pa.list_(pa.int32()), "names": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}

    def columns(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> Columns:
        scores, labels = self.model(pixel_values).logits.float().softmax(-1).topk(self.top_k)  # (B, top_k)
        names = [[self.model.config.id2label[label] for label in row] for row in labels.tolist()]
        return {"labels": labels.tolist(), "names": names, "scores": scores.tolist()}


class Segmenter(Embedder):
    """Label maps at each image's own size, as PNG files of one channel."""

    output, head = "masks", "decode_head"
    auto_class = AutoModelForSemanticSegmentation

    def published_processor(self) -> Any:
        return hf_pvt.segmentation_image_processor(published_resampling=True)

    def schema(self) -> dict[str, pa.DataType]:
        return {"mask": pa.binary()}

    def __call__(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> Columns:
        """Images of one shape go through the model together."""
        masks: dict[int, bytes] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            alike = [index for index, image in enumerate(images) if image.shape == shape]
            columns = super().__call__([images[i] for i in alike], [sizes[i] for i in alike])
            masks |= zip(alike, columns["mask"], strict=True)
        return {"mask": [masks[index] for index in range(len(images))]}

    def columns(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> Columns:
        outputs = self.model(pixel_values)
        return {"mask": [png(m) for m in self.processor.post_process_semantic_segmentation(outputs, sizes)]}


def png(labels: Tensor) -> bytes:
    """A label map (H, W) as a PNG of 8 bits, of 16 where it has labels above 255."""
    array = labels.cpu().numpy()
    file = BytesIO()
    Image.fromarray(array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16)).save(file, "PNG")
    return file.getvalue()


class FileSegmenter(Segmenter):
    """Label maps as PNG files of their own."""

    def schema(self) -> dict[str, pa.DataType]:
        return {"mask_file": pa.string()}


OUTPUTS: dict[str, type[Embedder]] = {cls.output: cls for cls in (Embedder, Predictor, Segmenter)}


def embedder_class(arguments: Arguments) -> type[Embedder]:
    """Raises ValueError for files of what is no mask."""
    if not arguments.masks_as_files:
        return OUTPUTS[arguments.output]
    if arguments.output != "masks":
        raise ValueError(f"--masks_as_files needs --output masks, not {arguments.output}.")
    return FileSegmenter


def write_shard(
    path: Path, rows: Iterable[Row], compute: Embedder, arguments: Arguments, masks: MaskFiles | None = None
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
    rows: Iterable[Row], compute: Embedder, arguments: Arguments, bad: dict[str, str]
) -> Iterator[tuple[list[str], list[Tensor], list[tuple[int, int]]]]:
    """Keys, images and their sizes; threads are some batches ahead. Bad images are added to `bad`."""

    def load(row: Row) -> tuple[str, Tensor, tuple[int, int]] | BadImageError:
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


def check_same_job(output_dir: Path, job: dict[str, Any]) -> None:
    """That the shards in the folder are this job's.

    Raises:
        ValueError: naming what differs.
    """
    path = output_dir / "_job.json"
    with suppress(FileNotFoundError):
        before = json.loads(path.read_text())
        changed = [f"{key} was {before.get(key)} and is {job[key]}" for key in job if before.get(key) != job[key]]
        if changed:
            raise ValueError(f"{output_dir} holds shards of another job ({'; '.join(changed)}); choose another folder.")
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, job)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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


def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__.splitlines()[0])
    if not arguments.model_name_or_path:
        raise ValueError("there is no model; give --model_name_or_path.")
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    problem = lost_processes(processes, parent_command_lines())
    if problem:
        tqdm.write(f"warning: {problem}")
    source = open_source(arguments)
    compute = embedder_class(arguments)(arguments, device)
    output_dir = Path(arguments.output_dir)
    names = ("model_name_or_path", "output", "masks_as_files", "top_k", "batch_size", "bf16")
    settings = {name: getattr(arguments, name) for name in names}
    check_same_job(output_dir, settings | {"units": source.units, "source": source.identity})
    shards = [output_dir / f"part-{unit:05d}-of-{source.units:05d}.parquet" for unit in range(source.units)]
    missing = [unit for unit in range(process, source.units, processes) if not shards[unit].is_file()]
    bar = tqdm(missing, desc=f"process {process}", unit="shard", disable=local != 0)
    images, started = 0, time.perf_counter()
    for unit in bar:
        folder = MASKS if source.one_tree else MASKS / f"{unit:05d}"
        masks = MaskFiles(output_dir, folder) if arguments.masks_as_files else None
        for count in write_shard(shards[unit], source.rows(unit), compute, arguments, masks):
            images += count
            bar.set_postfix(images_s=f"{images / (time.perf_counter() - started):.0f}")
    summarise(shards)


if __name__ == "__main__":
    run_main(main)
