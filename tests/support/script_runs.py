"""Runs of the scripts in examples/, in this process or in others, and what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
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


def two_workers(code: str, *words: str) -> list[Any]:
    """What two processes at once print last, as JSON; each has its number as its first word, then `words`."""
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(process), *words], stdout=subprocess.PIPE, text=True)
        for process in range(2)
    ]
    return [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers]


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")
