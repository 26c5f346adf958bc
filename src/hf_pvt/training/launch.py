"""From a command line to an `Accelerator`, and from an error to one sentence."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin
from huggingface_hub import HfApi
from tqdm import tqdm

from .arguments import OptimizationArguments, RunArguments
from .checkpoints import CheckpointError
from .heap import keep_large_blocks

logger = get_logger(__name__)

LAUNCHER = re.compile(r"accelerate.*\blaunch\b|torchrun|torch\.distributed\.run")
HOW_TO = "GPUs: accelerate launch --multi_gpu --num_processes N; CPU: ACCELERATE_USE_CPU=true before the same"


def start(optimization: OptimizationArguments, run: RunArguments) -> Accelerator:
    """This process's accelerator, with logging and the heap set up, and lost processes warned of.

    Fills in the loader's workers.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for talkative in ("httpx", "accelerate", "torch", "fsspec"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    accelerator = Accelerator(
        mixed_precision=optimization.mixed_precision,
        # The data's end is not the accumulation's: our batches are complete.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=run.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=run.report_to,
        project_dir=run.output_dir,
    )
    if accelerator.device.type == "cpu" and not run.default_heap:
        keep_large_blocks()
    if run.dataloader_num_workers is None:
        run.dataloader_num_workers = share_of_cores()
    if accelerator.state.deepspeed_plugin is not None:
        # It would look for this in a prepared DataLoader, and ours deal the samples themselves.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = run.per_device_train_batch_size
    if run.push_to_hub and accelerator.is_main_process:
        HfApi().create_repo(str(run.hub_model_id), exist_ok=True)  # what is not allowed fails before the training
    problem = lost_processes(accelerator.num_processes, parent_command_lines())
    if problem:
        logger.warning(problem)
    return accelerator


def share_of_cores() -> int:
    """The cores that this process may run on, divided by the processes of this machine."""
    # Where a container or SLURM allows fewer cores than there are, more workers would only wait for each other.
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def parent_command_lines() -> list[list[str]]:
    """The command lines of the processes that this one was started by."""
    lines = []
    for parent in psutil.Process().parents():
        try:
            lines.append(parent.cmdline())
        except psutil.Error:
            break  # another user's
    return lines


def lost_processes(num_processes: int, command_lines: list[list[str]]) -> str | None:
    """A warning where fewer processes run than were asked for.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing.
    """
    asked = max([*map(_processes_of, command_lines), int(os.environ.get("SLURM_NTASKS", 1))], default=1)
    if asked > num_processes:
        return f"{num_processes} of {asked} processes that were asked for are running ({HOW_TO})."
    gpus = torch.cuda.device_count()
    if num_processes == 1 and gpus > 1:
        return f"one process is running, on one of {gpus} GPUs ({HOW_TO})."
    return None


def _processes_of(command_line: list[str]) -> int:
    """How many processes a launcher's command line, or its configuration file, asks for."""
    line = " ".join(command_line)
    if not LAUNCHER.search(line):
        return 1
    per_node = re.search(r"--nproc[_-]per[_-]node[ =](\d+)", line)
    nodes = re.search(r"--nnodes[ =](\d+)(?!\S*:)", line)
    if per_node:
        return int(per_node[1]) * (int(nodes[1]) if nodes else 1)
    number = re.search(r"--num[_-]processes[ =](\d+)", line)
    if number:
        return int(number[1])
    chosen = re.search(r"--config[_-]file[ =](\S+)", line)
    file = Path(chosen[1] if chosen else default_config_file)
    config = yaml.safe_load(file.read_text()) if file.suffix in (".yaml", ".yml") and file.is_file() else {}
    return int((config or {}).get("num_processes", 1))


class TrainingError(RuntimeError):
    """A run that cannot go on."""


EXPECTED = (ValueError, OSError, ImportError, CheckpointError, TrainingError)


def run_main(main: Callable[[], object]) -> None:
    """Call `main`; an expected error becomes one line on stderr, and the exit status 1.

    A launcher prints a traceback of its own below, which is to say the same, or to be known for what it is.
    HF_PVT_TRACEBACK=1 in the environment shows where the error came from.
    """
    try:
        main()
    except EXPECTED as error:
        if os.environ.get("HF_PVT_TRACEBACK"):
            raise
        # On a line of its own where a bar is shown; in one write, into which another process's cannot fall.
        tqdm.write(f"error: {sentence(error)}\n", file=sys.stderr, end="")
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")  # what torchrun gives as the root cause
        if report:
            Path(report).write_text(json.dumps({"message": sentence(error), "timestamp": int(time.time())}))
        elif any(LAUNCHER.search(" ".join(line)) for line in parent_command_lines()):
            sys.stderr.write("The traceback below is the launcher's and says no more; --quiet leaves it out.\n")
        sys.exit(1)


def sentence(error: Exception) -> str:
    """The error's message; what a worker of a DataLoader raised stands at the end of its traceback."""
    text = str(error).strip() or type(error).__name__
    if text.startswith("Caught "):
        return text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
