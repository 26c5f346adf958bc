"""All 68 published checkpoints through the commands, there and back: `make verify` writes conversion/verification.md.

Each checkpoint is drawn from the published keys (see `reference`), converted by one command, opened with the Auto
class, compared with the recorded outputs of the published implementation, and exported to its original layout again.
Of detectors only the backbone is compared here, inside the recorded segmenter, where its weights have the same names.

    python tests/tools/verify_conversions.py --tasks atss gfl     only these; the table keeps its other rows
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

import hf_pvt
from hf_pvt import PUBLISHED_DETECTORS, VARIANTS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import detector_keys
import reference
from detection_reference import weight
from paths import ROOT

TABLE = ROOT / "conversion" / "verification.md"
DETECTORS = tuple(dict.fromkeys(row.model_type.replace("_", "-") for row in PUBLISHED_DETECTORS.values()))
TASKS = ("classification", "segmentation", *DETECTORS)


@dataclass(frozen=True)
class Result:
    """One row: `error` is relative to the outputs' scale."""

    variant: str
    task: str
    keys: int
    error: float
    bit_equal: bool

    @property
    def passed(self) -> bool:
        return self.bit_equal and self.error < reference.tolerance(self.variant)


def run(script: str, *arguments: object) -> None:
    """A command of conversion/, in a process of its own."""
    subprocess.run([sys.executable, str(ROOT / "conversion" / script), *map(str, arguments)], check=True)


def published_file(variant: str, task: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Name and weights of the published checkpoint."""
    name = variant.replace("-", "_")
    if task == "classification":
        return f"{name}.pth", reference.checkpoint(variant)
    if task != "segmentation":
        row = PUBLISHED_DETECTORS[f"{task}-{variant}"]
        keys = detector_keys.published_keys(row)
        return f"{task}_{name}.pth", {key: weight(row.model_type, key, shape) for key, shape in keys.items()}
    return f"fpn_{name}.pth", reference.segmentation_checkpoint(variant)


def verify(variant: str, task: str, folder: Path, run: Callable[..., None] = run) -> Result:
    """One checkpoint, there and back; `run` takes the name of a command and its arguments."""
    name, weights = published_file(variant, task)
    torch.save(weights if task == "classification" else {"meta": {}, "state_dict": weights}, folder / name)
    run("convert.py", folder / name, folder / "converted")
    error = ERRORS[task](variant, folder)
    run("export_original.py", folder / "converted", folder / "again.pth")
    again = torch.load(folder / "again.pth", weights_only=True)
    again = again if task == "classification" else again["state_dict"]
    equal = weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)
    return Result(variant, task, len(weights), error, equal)


@torch.inference_mode()
def classification_error(variant: str, folder: Path) -> float:
    model = AutoModelForImageClassification.from_pretrained(folder / "converted")
    ((height, width),) = reference.recorded_sizes(variant, "logits")
    logits = model(reference.image(height, width)).logits
    return reference.relative_error(logits, reference.logits(variant, height, width))


def segmentation_error(variant: str, folder: Path) -> float:
    return segmenter_error(variant, AutoModelForSemanticSegmentation.from_pretrained(folder / "converted"))


def detection_error(variant: str, folder: Path) -> float:
    """Of the recorded segmenter with the detector's backbone."""
    torch.save({"meta": {}, "state_dict": reference.segmentation_checkpoint(variant)}, folder / "fpn.pth")
    segmenter = hf_pvt.load_original(folder / "fpn.pth")
    detector = AutoModelForObjectDetection.from_pretrained(folder / "converted")
    segmenter.base_model.load_state_dict(detector.backbone.state_dict())
    return segmenter_error(variant, segmenter)


@torch.inference_mode()
def segmenter_error(variant: str, model: PreTrainedModel) -> float:
    """Of the logits and of the four maps, whichever is larger."""
    errors = []
    for size in reference.recorded_sizes(variant, "semantic_fpn"):
        logits = model(reference.image(*size)).logits
        shape, samples = reference.segmentation_logits(variant, *size)
        assert tuple(logits.shape) == shape
        errors.append(reference.relative_error(reference.samples(logits, 2048), samples))
    for size in reference.recorded_sizes(variant, "features"):
        maps = model(reference.image(*size), output_hidden_states=True).hidden_states
        for feature_map, (_, samples) in zip(maps, reference.features(variant, *size), strict=True):
            errors.append(reference.relative_error(reference.samples(feature_map), samples))
    return max(errors)


ERRORS = {
    "classification": classification_error,
    "segmentation": segmentation_error,
    **dict.fromkeys(DETECTORS, detection_error),
}


def variants_of(task: str) -> list[str]:
    """Those with a published checkpoint for the task."""
    if task not in DETECTORS:
        return list(VARIANTS)
    return [variant for variant in VARIANTS if f"{task}-{variant}" in PUBLISHED_DETECTORS]


def row(result: Result) -> str:
    return (
        f"| `{result.variant}` | {result.task} | {result.keys} | {result.error:.1e} "
        f"| {'equal to the bit' if result.bit_equal else 'DIFFERS'} | {'passed' if result.passed else 'FAILED'} |"
    )


def table(results: list[Result], earlier: str = "") -> str:
    """Every task's results in their order; rows of an earlier table where there are none."""
    header = "| variant | task | keys | outputs against the reference | there and back | |\n" + "| --- " * 6 + "|\n"
    rows = {(result.variant, result.task): row(result) for result in results}
    for line in earlier.splitlines():
        if line.startswith("| `"):
            variant, task = line.split(" | ")[:2]
            rows.setdefault((variant.strip("|` "), task), line)
    order = [(variant, task) for task in TASKS for variant in variants_of(task)]
    return header + "\n".join(rows[key] for key in order if key in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="only these; other rows are kept")
    arguments = parser.parse_args()
    results = []
    for task in arguments.tasks:
        for variant in tqdm(variants_of(task), desc=task):
            with tempfile.TemporaryDirectory() as folder:
                results.append(verify(variant, task, Path(folder)))
    earlier = TABLE.read_text(encoding="utf-8") if tuple(arguments.tasks) != TASKS else ""
    TABLE.write_text(
        f"# All published checkpoints, there and back\n\nWritten by `make verify` (hf_pvt {hf_pvt.__version__}): "
        "`convert.py`, the Auto class, `export_original.py`. Weights are drawn from the published keys; errors are the "
        "largest difference from the published implementation's outputs (of detectors: with their backbone), relative "
        "to their scale (limit "
        f"{reference.tolerance('pvt-tiny'):.0e}; {reference.tolerance('pvt-large'):.0e} for "
        f"{', '.join(reference.DEEPEST)}).\n\n{table(results, earlier)}",
        encoding="utf-8",
    )
    failed = [f"{result.variant} {result.task}" for result in results if not result.passed]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
