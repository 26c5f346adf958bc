"""Runs of the scripts in examples/, in this process or in others, and what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from paths import SUPPORT
from safetensors.torch import load_file
from torch import Tensor

# Other people's data and the network stay out of it; the child processes are as slow as one core.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> dict[str, Any]:
    """results.json of a script's `main`, run in this process."""
    reset()
    try:
        main(argv)
    finally:
        reset()
    return results(Path(argv[argv.index("--output_dir") + 1]))


def reset() -> None:
    """Forget what accelerate shares between its objects, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def launch(
    script: Path, argv: Sequence[str], processes: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, or in several that talk through gloo."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--num_processes", str(processes), "--main_process_port", "0"]  # a free port
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *argv]
    return subprocess.run(
        command, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True, timeout=240
    )


def launch_all(jobs: Sequence[tuple[str, str, Sequence[str]]], folder: Path) -> None:
    """Runs of scripts by (name, module, argv), one after another in the same two processes; see `job_series.py`.

    `reports` says what became of each.
    """
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps([[name, module, [*map(str, argv)]] for name, module, argv in jobs]))
    process = launch(SUPPORT / "job_series.py", [str(folder / "jobs.json")], processes=2)
    assert process.returncode == 0, process.stderr[-3000:]


def reports(folder: Path, name: str) -> list[dict[str, Any]]:
    """Of a job of `launch_all`, what each process says: its error and what it printed."""
    return [json.loads((folder / f"{name}-{process}.json").read_text()) for process in range(2)]


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")
