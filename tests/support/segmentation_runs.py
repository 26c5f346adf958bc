"""Small runs of examples/run_semantic_segmentation.py, in this process or others."""

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import run_semantic_segmentation as script
import script_runs
from families import PVT_V2, Family
from PIL import Image

SCRIPT = Path(script.__file__)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def configuration(folder: Path, family: Family = PVT_V2, **overrides: Any) -> Path:
    path = folder / f"configuration-{family}"
    family.tiny_config(drop_path_rate=0.0, classifier_dropout_prob=0.0, **overrides).save_pretrained(path)
    return path


def flags(data: Path, output: Path, **values: Any) -> list[str]:
    """Four steps of four images of 64 pixels."""
    defaults = {
        "train_dir": data,
        "output_dir": output,
        "shorter_side": 64,
        "longer_side": 256,
        "crop_size": 64,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "dataloader_num_workers": 0,
    }
    chosen = {name: value for name, value in (defaults | values).items() if value is not None}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """results.json of a run in this process."""
    return script_runs.run(script.main, arguments)


def launch(arguments: Sequence[str], processes: int = 1) -> CompletedProcess[str]:
    """A run in processes of its own."""
    return script_runs.launch(SCRIPT, arguments, processes)
