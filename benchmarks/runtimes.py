"""PVTv2-B0 and B2 on one thread of a CPU, in every runtime that they can be taken to.

    python -m benchmarks.runtimes --prepare FOLDER     export and compile, some minutes; what is there is not made again
    python -m benchmarks.runtimes FOLDER               time them, on an otherwise idle machine

One image, one thread, random weights. Every measurement runs in a fresh process; candidates alternate, round after
round, and the ratios are medians over the rounds. transformers.js runs in headless Chromium, on WebAssembly.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .browser import seconds_in_browser
from .fresh_process import in_fresh_process
from .machine import machine
from .results import RESULTS

ROOT = Path(__file__).parent.parent
VARIANTS = ("pvt-v2-b0", "pvt-v2-b2")
SIZES = (224, 512)
CANDIDATES = {
    "eager": "PyTorch",
    "packed": "packed",
    "compiled": "torch.compile",
    "aoti": "AOTInductor",
    "fp32": "ONNX Runtime",
    "int8": "ONNX Runtime, int8",
    "browser": "transformers.js in Chromium",
}
SECONDS = 2.0
ONNX_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}


def prepare(variant: str, folder: Path) -> None:
    """The model's folder with its weights, ONNX files and compiled program, each compared with the model."""
    sys.path.insert(0, str(ROOT / "conversion"))
    from exported_programs import write_programs
    from onnx_files import write_files

    import hf_pvt

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        hf_pvt.PvtV2ForImageClassification(hf_pvt.variant_config(variant, num_labels=1000)).save_pretrained(folder)
        hf_pvt.classification_image_processor().save_pretrained(folder)
    model = hf_pvt.PvtV2ForImageClassification.from_pretrained(folder).eval()
    if not (folder / "onnx").exists():  # random weights have nothing that 8 bits could spoil
        write_files(model, hf_pvt.classification_image_processor(), folder, int8=True, int8_limit=torch.inf)
    if not (folder / "model_aoti.pt2").exists():
        write_programs(model, folder, pt2=False, aoti=True)
    for size in SIZES:
        with torch.inference_mode():
            torch.compile(model, dynamic=False)(torch.randn(1, 3, size, size))  # into the cache on disk


def forward_of(candidate: str, folder: Path) -> Callable[[torch.Tensor], Any]:
    """A function of images (1, 3, H, W)."""
    if candidate in ONNX_FILES:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / "onnx" / ONNX_FILES[candidate], options)
        return lambda images: session.run(None, {"pixel_values": images.numpy()})
    if candidate == "aoti":
        program = torch._inductor.aoti_load_package(str(folder / "model_aoti.pt2"))
        return lambda images: program(pixel_values=images)
    import hf_pvt

    model = hf_pvt.PvtV2ForImageClassification.from_pretrained(folder).eval()
    if candidate == "packed":
        return hf_pvt.pack_for_cpu(model)
    return torch.compile(model, dynamic=False) if candidate == "compiled" else model


def measure(candidate: str, folder: Path) -> dict[str, float]:
    """Median seconds of a forward at each size, in this fresh process."""
    if candidate == "browser":
        return seconds_in_browser(folder, SIZES, SECONDS)
    torch.set_num_threads(1)
    forward, medians = forward_of(candidate, folder), {}
    with torch.inference_mode():
        for size in SIZES:
            images, seconds = torch.randn(1, 3, size, size), list[float]()
            forward(images)
            end = time.perf_counter() + SECONDS
            while len(seconds) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                forward(images)
                seconds.append(time.perf_counter() - start)
            medians[str(size)] = statistics.median(seconds)
    return medians


def run(folder: Path, rounds: int) -> dict[str, Any]:
    """All variants and candidates, alternating, `rounds` times: seconds by variant, size and candidate."""
    samples: dict[str, Any] = {
        variant: {str(size): {name: [] for name in CANDIDATES} for size in SIZES} for variant in VARIANTS
    }
    for variant in VARIANTS:
        for _ in range(rounds):
            for candidate in CANDIDATES:
                for size, seconds in in_fresh_process(measure, candidate, folder / variant).items():
                    samples[variant][size][candidate].append(round(seconds, 5))
    return {"machine": machine(), "rounds": rounds, "samples": samples}


def table(results: dict[str, Any]) -> str:
    """The Markdown table of a run: milliseconds of PyTorch, and how many times as long the others take."""
    header = ["variant, size", "PyTorch, ms", *list(CANDIDATES.values())[1:]]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for variant, sizes in results["samples"].items():
        for size, samples in sizes.items():
            cells = [f"`{variant}`, {size}", f"{1e3 * statistics.median(samples['eager']):.0f}"]
            for candidate in list(CANDIDATES)[1:]:
                pairs = zip(samples[candidate], samples["eager"], strict=True)
                cells.append(f"{statistics.median(theirs / ours for theirs, ours in pairs):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the prepared models")
    parser.add_argument("--prepare", action="store_true", help="make what is missing there, instead of timing")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="to prepare")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(arguments.folder.resolve() / "inductor"), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    if arguments.prepare:
        for variant in arguments.variants:
            (arguments.folder / variant).mkdir(parents=True, exist_ok=True)
            prepare(variant, arguments.folder / variant)
        return
    results = run(arguments.folder, arguments.rounds)
    print(f"\n{results['machine']}\n\n{table(results)}")
    (RESULTS / "runtimes.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
