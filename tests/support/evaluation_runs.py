"""Small runs of examples/evaluate_model.py, in this process or others, which may be killed on the way."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate_model
from paths import SUPPORT
from script_runs import ENVIRONMENT, reset, results

SCRIPT = Path(evaluate_model.__file__)


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
    argv: list[str], processes: int = 1, killed_after: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A run in processes of its own, which are killed, or the first of them, when they have written so many units."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    script = [str(SCRIPT)]
    if killed_after is not None:
        script = [
            str(SUPPORT / "die_at.py"),
            "hf_pvt.evaluation.units",
            "Units.write",
            str(killed_after),
            "evaluate_model",
        ]
    command = [sys.executable, *(launcher if processes > 1 else []), *script, *argv]
    return subprocess.run(
        command, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True, timeout=240
    )


def units(output: Path) -> dict[str, int]:
    """The files of finished units, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in output.glob("unit-*.json")}
