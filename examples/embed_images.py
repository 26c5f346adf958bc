"""Embeddings, class predictions, label maps or detections of millions of images, as parquet shards.

    python examples/embed_images.py --model_name_or_path me/pvt-v2-b2 --input_dir photos --output_dir out/e

    torchrun --nproc_per_node 8 examples/embed_images.py --model_name_or_path me/p2t-small-ade20k --output masks \
        --input_files "shards/*.tar" --output_dir out/masks --on_bad_image skip --bf16

Input is a tree of images, parquet files, WebDataset shards, or a data set of the Hub; nothing is copied to the disk. It
is cut into units: files of a tree by `--unit_size`, everything else as it is sharded. A unit becomes one shard,
`part-<unit>-of-<units>.parquet`, which is whole or not there; examples/README.md lists its columns. So a run that was
interrupted continues where it stopped when it is started again, and processes need not speak to each other: of N
processes each takes every N-th unit.
"""

import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from hf_pvt.batch_inference.arguments import Arguments
from hf_pvt.batch_inference.mask_files import MaskFiles
from hf_pvt.batch_inference.output_kinds import output_class
from hf_pvt.batch_inference.shards import summarise, write_shard
from hf_pvt.batch_inference.units import open_source
from hf_pvt.training.arguments import parse
from hf_pvt.training.heap import keep_large_blocks
from hf_pvt.training.launch import lost_processes, parent_command_lines, run_main
from hf_pvt.training.progress import ProgressBar
from hf_pvt.training.run_fingerprint import check_same_job

# In the output's folder; like `_job.json`, what begins so is passed over by readers of a folder of parquet files.
MASKS = Path("_masks")


def main() -> None:
    (arguments,) = parse(Arguments, description=__doc__.splitlines()[0])
    if not arguments.model_name_or_path:
        raise ValueError("there is no model; give --model_name_or_path.")
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and not arguments.default_heap:
        keep_large_blocks()
    problem = lost_processes(processes, parent_command_lines())
    if problem:
        tqdm.write(f"warning: {problem}")
    source = open_source(arguments)
    compute = output_class(arguments)(arguments, device)
    output_dir = Path(arguments.output_dir)
    names = ("model_name_or_path", "output", "masks_as_files", "top_k", "threshold", "batch_size", "bf16")
    settings = {name: getattr(arguments, name) for name in names}
    check_same_job(output_dir, settings | {"units": source.units, "source": source.identity})
    shards = [output_dir / f"part-{unit:05d}-of-{source.units:05d}.parquet" for unit in range(source.units)]
    missing = [unit for unit in range(process, source.units, processes) if not shards[unit].is_file()]
    bar = ProgressBar(missing, desc=f"process {process}", unit="shard", disable=local != 0)
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
