"""All published variants with both heads as ONNX files: writes conversion/onnx.md.

    python tests/tools/verify_onnx.py                 all of them
    python tests/tools/verify_onnx.py pvt-v2-b0       the rows of this one; the others stay as they are

Weights are drawn from the published keys (see `reference`).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

import hf_pvt
from hf_pvt import VARIANTS

sys.path.insert(0, str(Path(__file__).parents[2] / "conversion"))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import onnx_files
import reference
from exported_outputs import VERIFIED
from paths import ROOT

TABLE = ROOT / "conversion" / "onnx.md"
TASKS = ("classification", "segmentation")
HEADER = (
    "| variant | task | fp32, MB | fp16, MB | int8, MB | fp32 differs by | fp16 differs by | int8 changes by |\n"
    f"{'| --- ' * 8}|\n"
)


def row(variant: str, task: str) -> str:
    """One line of the table.

    Raises:
        ValueError: a file differs from the model by more than its limit.
    """
    weights = reference.checkpoint(variant) if task == "classification" else reference.segmentation_checkpoint(variant)
    processors = (hf_pvt.classification_image_processor(), hf_pvt.segmentation_image_processor(do_reduce_labels=True))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / "weights.pth")
        model = hf_pvt.load_original(Path(folder) / "weights.pth").eval()
        processor = processors[TASKS.index(task)]
        # Drawn weights carry no margin between labels, so that the table reports what a limit would refuse.
        files = onnx_files.write_files(model, processor, Path(folder), fp16=True, int8=True, int8_limit=torch.inf)
    cells = [f"`{variant}`", task, *(f"{file.bytes / 1e6:.1f}" for file in files)]
    return f"| {' | '.join(cells + [f'{file.change:.1e}' for file in files])} |"


def written_rows() -> dict[tuple[str, str], str]:
    """The rows of the committed table, by variant and task."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    cells = ((line, line.split("|")) for line in lines if line.startswith("| `"))
    return {(some[1].strip(" `"), some[2].strip()): line for line, some in cells}


def document(rows: dict[tuple[str, str], str]) -> str:
    sizes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in VERIFIED)
    ordered = [rows[variant, task] for task in TASKS for variant in VARIANTS if (variant, task) in rows]
    return (
        f"# All published variants as ONNX files\n\nWritten by `python tests/tools/verify_onnx.py` (hf_pvt "
        f"{hf_pvt.__version__}): each file in ONNX Runtime against the model in PyTorch, with weights drawn from the "
        f"published keys. fp32 and fp16: the largest difference at {sizes} (batch x height x width), as a share of the "
        f"outputs' largest value (limits {onnx_files.LIMIT:.0e} and {onnx_files.HALF_LIMIT:.0e}); all were traced at "
        "another size. int8: the root mean square of the change on the example photographs, as a share of the outputs' "
        "standard deviation; on drawn weights it says what rounding does to a network that learnt nothing, and "
        "`export_onnx.py` measures it again on yours.\n\n" + HEADER + "\n".join(ordered) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    chosen = parser.parse_args().variants or list(VARIANTS)
    unknown = sorted(set(chosen) - set(VARIANTS))
    if unknown:
        parser.error(f"unknown variants {', '.join(unknown)}, expected some of: {', '.join(VARIANTS)}.")
    for variant in tqdm(chosen, unit="variant"):
        for task in TASKS:
            made = row(variant, task)  # for minutes, in which another process may add its own
            TABLE.write_text(document(written_rows() | {(variant, task): made}), encoding="utf-8")


if __name__ == "__main__":
    main()
