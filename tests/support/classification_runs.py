"""Small runs of examples/run_image_classification.py, in this process or others."""

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import run_image_classification
import script_runs
from families import PVT_V2, Family
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SCRIPT = Path(run_image_classification.__file__)
IMAGE_SIZE = 32


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
    return script_runs.run(run_image_classification.main, argv)


def launch(argv: list[str], processes: int = 1, **environment: str) -> CompletedProcess[str]:
    """A run in processes of its own."""
    return script_runs.launch(SCRIPT, argv, processes, **environment)
