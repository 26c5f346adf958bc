"""Peak memory and time of segmenting large images through a sliding window, against all at once.

    python -m benchmarks.sliding

PVTv2-B0 with a Semantic FPN and 150 labels, window 512, stride 340. Every size runs in a fresh process; extra memory is
the peak beyond model and image, the result (8 bytes a pixel) included.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import hf_pvt
from hf_pvt.segmentation_inference import segment

from .machine import memory

SIZES = ((512, 512), (1024, 1024), (2048, 2048), (4096, 2048), (4096, 4096))
LARGEST_WHOLE = 2048 * 2048


def measure(height: int, width: int, whole: bool) -> dict[str, float]:
    """Seconds, and extra peak memory in MiB, of one image in this fresh process."""
    config = hf_pvt.variant_config("pvt-v2-b0", num_labels=150)
    model = hf_pvt.PvtV2ForSemanticSegmentation(config).eval()
    segment(model, torch.randn(1, 3, 64, 64))  # libraries are loaded before memory is counted
    image = torch.randn(1, 3, height, width)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, start = memory("VmRSS"), time.perf_counter()
    labels = segment(model, image) if whole else hf_pvt.segment_sliding(model, image, window=512)
    assert labels.shape == (1, height, width)
    return {"seconds": time.perf_counter() - start, "extra_mib": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=3, type=int, metavar=("HEIGHT", "WIDTH", "WHOLE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        height, width, whole = arguments.measure
        print(json.dumps(measure(height, width, bool(whole))))
        return
    print("| image | sliding, s | extra MiB | whole, s | extra MiB |\n| --- | --- | --- | --- | --- |")
    for height, width in SIZES:
        cells = [f"{height}x{width}"]
        for whole in (0, 1):
            if whole and height * width > LARGEST_WHOLE:
                cells += ["", ""]
                continue
            command = [sys.executable, "-m", "benchmarks.sliding", "--measure", str(height), str(width), str(whole)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            cells += [f"{result['seconds']:.1f}", f"{result['extra_mib']:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
