"""Small runs of examples/evaluate_model.py, in this process or others, which may be killed on the way."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate_model
from script_runs import ENVIRONMENT, reset, results

SCRIPT = Path(evaluate_model.__file__)
# The process that has written so many units kills itself, as the system would.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
units, written = int(sys.argv.pop(1)), 0
import evaluate_model
write = evaluate_model.Units.write

def write_and_count(self, *found):
    global written
    write(self, *found)
    written += 1
    if written == units:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate_model.Units.write = write_and_count
evaluate_model.main()
"""


def flags(model: Path | str, output: Path, **values: Any) -> list[str]:
    """A command line with units of 20 samples; a flag that is True has no value."""
    chosen = {"output_dir": output, "unit_size": 20, "dataloader_num_workers": 0} | values
    words = [str(model)]
    for name, value in chosen.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def evaluate(model: Path | str, output: Path, **values: Any) -> dict[str, Any]:
    """results.json of a run in this process."""
    reset()
    try:
        evaluate_model.main(flags(model, output, **values))
    finally:
        reset()
    return results(output)


def launch(
    argv: list[str], processes: int = 1, killed_after: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A run in processes of its own, one of which dies after so many units."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    script = [str(SCRIPT)]
    if killed_after:
        driver = Path(argv[argv.index("--output_dir") + 1] + "-killed.py")
        driver.parent.mkdir(parents=True, exist_ok=True)
        driver.write_text(KILLED)
        script = [str(driver), str(SCRIPT.parent), str(killed_after)]
    command = [sys.executable, *(launcher if processes > 1 else []), *script, *argv]
    return subprocess.run(
        command, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True, timeout=240
    )


def units(output: Path) -> dict[str, int]:
    """The files of finished units, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("unit-*.json")}
