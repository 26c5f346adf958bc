"""Small runs of examples/run_image_classification.py, in this process or others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import run_image_classification
from accelerate.state import AcceleratorState, GradientState
from families import PVT_V2, Family
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SCRIPT = Path(run_image_classification.__file__)
IMAGE_SIZE = 32
# Other people's data and the network stay out of it; the child processes are as slow as one core.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def digits(root: Path, training: int | None = None, validation: int | None = None) -> Path:
    """scikit-learn's scans as class folders of PNG files, a fifth held out; or the first so many of both."""
    scans = load_digits()
    parts = train_test_split(np.arange(1797), test_size=0.2, stratify=scans.target, random_state=0)
    for name, indices, count in zip(("train", "validation"), parts, (training, validation), strict=True):
        for index in indices[:count]:
            folder = root / name / str(scans.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((scans.images[index] * 255 / 16).astype(np.uint8)).save(folder / f"{index:04}.png")
    return root


def configuration(family: Family, folder: Path, **overrides: Any) -> str:
    """A folder with the configuration of a model that is small, but learns."""
    # The published heads, which cannot be read off a published checkpoint.
    fields = {"hidden_sizes": (32, 64, 80, 128), "num_attention_heads": (1, 2, 5, 8), "depths": (1, 1, 1, 1)}
    fields |= {"mlp_ratios": (4, 4, 4, 4), **overrides}
    if family.name == "pvt":
        fields["image_size"] = IMAGE_SIZE
    family.tiny_config(**fields).save_pretrained(folder / family.name)
    return str(folder / family.name)


def too_small(folder: Path, **overrides: Any) -> str:
    """The configuration of a PVTv2 that is too small to learn, and quick."""
    fields = {"hidden_sizes": (8, 16, 20, 32), "mlp_ratios": (2, 2, 2, 2), "drop_path_rate": 0.1}
    return configuration(PVT_V2, folder, **(fields | overrides))


def flags(data: Path, output: Path, **values: Any) -> list[str]:
    """A command line: the digits of `data`, and no augmentation that the digits do not stand."""
    defaults = {
        "train_dir": data / "train",
        "validation_dir": data / "validation",
        "output_dir": output,
        "image_size": IMAGE_SIZE,
        "horizontal_flip": 0,
        "crop_scale": 0.7,
        "layer_decay": 1,
        "dataloader_num_workers": 0,
    }
    chosen = {name: value for name, value in (defaults | values).items() if value is not None}
    return [part for name, value in chosen.items() for part in (f"--{name}", str(value))]


def few_steps(data: Path, scratch: str, output: Path, **values: Any) -> list[str]:
    """Six steps of sixteen images: two epochs."""
    defaults = {"from_scratch": scratch, "per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 1e-3}
    return flags(data, output, **(defaults | values))


def run(argv: list[str]) -> dict[str, Any]:
    """results.json of a run in this process."""
    reset()
    try:
        run_image_classification.main(argv)
    finally:
        reset()
    return results(Path(argv[argv.index("--output_dir") + 1]))


def reset() -> None:
    """Forget what accelerate shares between its objects, as a new process would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def launch(argv: list[str], processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, or in several that talk through gloo."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--num_processes", str(processes), "--main_process_port", "0"]  # a free port
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *argv]
    return subprocess.run(
        command, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True, timeout=240
    )


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model" / "model.safetensors")
