"""RetinaNet and Mask R-CNN on the CPU, part by part: one image of 800x1216, float32.

    python -m benchmarks.detection

Every measurement runs in a fresh process on an otherwise idle machine; candidates alternate, round after round, and the
numbers are medians. torchvision's detectors, on ResNet-50 and in their default form, are there as an order of size: the
papers compare with them. "head / limit" is the time of RetinaNet's head, or of Mask R-CNN's mask head, divided by what
its products alone would take at the best rate measured for one of them. Weights are random, so the last classifier is
scaled until there are as many detections as an image may have.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import hf_pvt
from hf_pvt.detection import modeling_two_stage_detector
from hf_pvt.detection.detector_classes import DETECTORS

from .machine import machine, memory
from .results import RESULTS

SIZE = (800, 1216)
VARIANTS = ("pvt-v2-b0", "pvt-v2-b2-li", "p2t-tiny")
OURS = tuple(f"{detector} {variant}" for detector in ("retinanet", "mask_rcnn") for variant in VARIANTS)
TORCHVISION = {"retinanet torchvision": "retinanet_resnet50_fpn", "mask_rcnn torchvision": "maskrcnn_resnet50_fpn"}
PARTS = ("backbone", "neck", "dense head", "pooling", "box head", "mask head", "post-processing")
MODULES = {"backbone": "backbone", "neck": "neck", "bbox_head": "dense head", "rpn_head": "dense head"}
MODULES |= {"box_head": "box head", "mask_head": "mask head"}


class Stopwatch:
    """Seconds spent in the parts of a detector; what is in none of them is decoding, NMS and packing."""

    def __init__(self, model: Any) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        for name, part in MODULES.items():
            if hasattr(model, name):
                module = getattr(model, name)
                module.forward = self.timed(module.forward, part)
        two_stage: Any = modeling_two_stage_detector  # whose name it is, wherever it comes from
        two_stage.pool_boxes = self.timed(two_stage.pool_boxes, "pooling")

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            self.seconds[part] += time.perf_counter() - start
            return result

        return run

    def read(self, total: float, forwards: int) -> dict[str, float]:
        """Seconds of each part of a forward, and start anew."""
        parts = {name: seconds / forwards for name, seconds in self.seconds.items()}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return parts | {"post-processing": total - sum(parts.values())}


def build(candidate: str) -> Any:
    if candidate in TORCHVISION:
        from torchvision.models import detection

        return getattr(detection, TORCHVISION[candidate])(weights=None, weights_backbone=None).eval()
    detector, variant = candidate.split()
    return busy(DETECTORS[detector](hf_pvt.detector_config(detector, variant)).eval())


@torch.inference_mode()
def busy(model: Any) -> Any:
    """The detector with so large weights in its last classifier that it finds as much as it may."""
    classifier = model.bbox_head.retina_cls if hasattr(model, "bbox_head") else model.box_head.fc_cls
    image = torch.randn(1, 3, *SIZE)
    while bool((model(image).pred_labels < 0).any()):
        classifier.weight.mul_(1.5)
    return model


@torch.inference_mode()
def measure(candidate: str) -> dict[str, float]:
    """Median seconds of a forward and of its parts, additional peak memory (MiB) and the share of copies."""
    torch.manual_seed(0)
    model, image = build(candidate), torch.randn(1, 3, *SIZE)
    forward = (lambda: model([image[0]])) if candidate in TORCHVISION else (lambda: model(image))
    forward()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    forward()
    result = {"extra_mib": memory("VmHWM") - before}
    stopwatch = None if candidate in TORCHVISION else Stopwatch(model)
    samples: list[dict[str, float]] = []
    for _ in range(5):
        start = time.perf_counter()
        forward()
        total = time.perf_counter() - start
        samples.append({"total": total} | (stopwatch.read(total, 1) if stopwatch else {}))
    result |= {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    if stopwatch is None:
        return result
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        forward()
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return result | {
        "copies": times.get("aten::copy_", 0) / sum(times.values()),
        "limit": head_flops(model) / best_rate(),
    }


def head_flops(model: Any) -> float:
    """Operations of RetinaNet's head on all levels, or of the mask head on all detections."""
    width = model.config.fpn_hidden_size
    with FlopCounterMode(display=False) as counter:
        if hasattr(model, "bbox_head"):
            levels = [torch.empty(1, width, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in model.config.strides]
            model.bbox_head(levels)
        else:
            count, side = model.config.max_detections, model.config.mask_pool_size
            model.mask_head(torch.empty(count, width, side, side), torch.zeros(count, dtype=torch.int64))
    return counter.get_total_flops()


def best_rate() -> float:
    """The best FLOP/s of the heads' 3x3 convolution, on the finest level's map and on pooled maps."""
    best = 0.0
    weight, bias = torch.randn(256, 256, 3, 3), torch.randn(256)
    for shape in ((1, 256, 100, 152), (100, 256, 14, 14)):
        feature_map = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for _ in range(8):
            start = time.perf_counter()
            output = torch.conv2d(feature_map, weight, bias, padding=1)
            best = max(best, 2 * output.numel() * 256 * 9 / (time.perf_counter() - start))
    return best


def row(candidate: str, samples: list[dict[str, float]]) -> str:
    """One line of the table: milliseconds, MiB, shares."""
    median = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    cells = [candidate, f"{1e3 * median['total']:.0f}"]
    cells += [f"{1e3 * median[part]:.0f}" if median.get(part) else "" for part in PARTS]
    cells.append(f"{median['extra_mib']:.0f}")
    if "limit" in median:
        head = median["mask head"] if candidate.startswith("mask") else median["dense head"]
        cells += [f"{100 * median['copies']:.1f}", f"{head / median['limit']:.2f}"]
    else:
        cells += ["", ""]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """The Markdown table of a run."""
    header = ["detector", "ms", *PARTS, "extra MiB", "copies, %", "head / limit"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(row(name, samples) for name, samples in results["samples"].items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", metavar="CANDIDATE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    samples: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in (*OURS, *TORCHVISION)}
    for _ in range(arguments.rounds):
        for candidate, measured in samples.items():
            command = [sys.executable, "-m", "benchmarks.detection", "--measure", candidate]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
            print(row(candidate, measured[-1:]), flush=True)
    results = {"machine": machine(), "rounds": arguments.rounds, "samples": samples}
    print(f"\n{results['machine']}\n\n{table(results)}")
    (RESULTS / "detection.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
