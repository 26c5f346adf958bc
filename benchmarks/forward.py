"""Forward passes of PVTv2-B2 on the CPU: ours against timm, Transformers and ONNX Runtime.

    python -m benchmarks.forward

Every measurement runs in a fresh process, so that no candidate inherits another's heap; candidates alternate, round
after round, and the ratios are medians over the rounds. All run float32 with random weights and as many threads as
there are cores, on an otherwise idle machine. The limit is what the forward's products alone would take at the best
rate that a matrix product of the model reaches on this machine.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

CASES = ((224, 1), (224, 8), (512, 1), (1024, 1))
CANDIDATES = ("ours", "timm", "timm channels-last", "transformers", "onnxruntime")
RESULTS = Path(__file__).parent / "results"
# Rows, inputs and outputs of the products that the limit's rate is the best of: linears of the four stages.
PRODUCTS = ((3136, 64, 512), (3136, 512, 64), (784, 128, 1024), (784, 1024, 128), (784, 320, 1280), (784, 1280, 320))


def build(candidate: str, size: int, batch: int) -> Callable[[torch.Tensor], Any]:
    """A candidate's forward, a function of images (B, 3, H, W)."""
    if candidate.startswith("ours"):
        from hf_pvt import PvtV2ForImageClassification, pack_for_cpu, variant_config

        ours = PvtV2ForImageClassification(variant_config("pvt-v2-b2", num_labels=1000)).eval()
        dtype = torch.bfloat16 if "bf16" in candidate else torch.float32
        return pack_for_cpu(ours, dtype) if "packed" in candidate else ours.to(dtype)
    if candidate == "transformers":
        from transformers import PvtV2Config, PvtV2ForImageClassification

        config = PvtV2Config(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3], num_labels=1000)
        return PvtV2ForImageClassification(config).eval()
    if candidate == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(onnx_file(size, batch), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images.numpy()})
    import timm

    model = timm.create_model("pvt_v2_b2").eval()
    if candidate == "timm":
        return model
    dtype = torch.bfloat16 if "bf16" in candidate else torch.float32
    model = model.to(dtype, memory_format=torch.channels_last)
    return lambda images: model(images.to(dtype, memory_format=torch.channels_last))


def onnx_file(size: int, batch: int) -> str:
    """timm's model exported at exactly this size, once per run of the benchmark."""
    return os.path.join(os.environ["HF_PVT_BENCHMARK_FOLDER"], f"{size}-{batch}.onnx")


def export(size: int, batch: int) -> None:
    import timm

    model = timm.create_model("pvt_v2_b2").eval()
    torch.onnx.export(model, (torch.randn(batch, 3, size, size),), onnx_file(size, batch), dynamo=True, verbose=False)


def measure(candidate: str, size: int, batch: int) -> dict[str, float]:
    """Median seconds, page faults and additional peak memory (MiB) of a forward, in this fresh process."""
    forward, images = build(candidate, size, batch), torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        if candidate != "onnxruntime":  # whose file takes this one size
            forward(torch.randn(1, 3, 64, 64))  # libraries are loaded and kernels compiled before memory is counted
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = memory("VmRSS")
        forward(images)
        extra = memory("VmHWM") - before
        seconds: list[float] = []
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        end = time.perf_counter() + 3.0
        while len(seconds) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            forward(images)
            seconds.append(time.perf_counter() - start)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"seconds": statistics.median(seconds), "faults": faults / len(seconds), "extra_mib": extra}


def memory(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} in /proc/self/status")


def best_product_rate() -> float:
    """The best FLOP/s of the model's products, through either library that PyTorch has for them."""
    best = 0.0
    with torch.inference_mode():
        for rows, inputs, outputs in PRODUCTS:
            tokens, weight, bias = torch.randn(1, rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
            column_map = tokens.unsqueeze(2).permute(0, 3, 1, 2)
            for product in (
                lambda t=tokens, w=weight, b=bias: F.linear(t, w, b),
                lambda m=column_map, w=weight, b=bias: F.conv2d(m, w[:, :, None, None], b),
            ):
                for _ in range(30):
                    start = time.perf_counter()
                    product()
                    best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - start))
    return best


def gmacs(size: int) -> float:
    """Multiply-accumulates of one image, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    from hf_pvt import PvtV2ForImageClassification, variant_config

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        config = variant_config("pvt-v2-b2", num_labels=1000, attn_implementation="eager")
        PvtV2ForImageClassification(config)(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.forward", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(rounds: int, candidates: tuple[str, ...]) -> dict[str, Any]:
    """All cases and candidates, alternating, `rounds` times."""
    cases = []
    for size, batch in CASES:
        if "onnxruntime" in candidates:
            in_fresh_process("--export", str(size), str(batch))
        samples: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in candidates}
        for _ in range(rounds):
            for candidate in candidates:
                samples[candidate].append(in_fresh_process("--measure", candidate, str(size), str(batch)))
        rate = in_fresh_process("--rate")["rate"]
        cases.append({"size": size, "batch": batch, "limit": 2e9 * gmacs(size) * batch / rate, "samples": samples})
        print(row(cases[-1]), flush=True)
    return {"machine": machine(), "rounds": rounds, "cases": cases}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{torch.get_num_threads()} threads, {model}, torch {torch.__version__.split('+')[0]}"


def row(case: dict[str, Any]) -> str:
    """One line of the table: our time, and each other candidate's time divided by ours."""
    samples = case["samples"]
    ours = [sample["seconds"] for sample in samples["ours"]]
    cells = [f"{case['size']}, {case['batch']}", f"{1e3 * statistics.median(ours):.0f}"]
    for candidate in CANDIDATES[1:]:
        if candidate in samples:
            ratios = sorted(s["seconds"] / o for s, o in zip(samples[candidate], ours, strict=True))
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
    cells.append(f"{statistics.median(ours) / case['limit']:.2f}")
    for candidate in ("ours", "timm"):
        cells.append(f"{statistics.median(s['extra_mib'] for s in samples[candidate]):.0f}")
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """The Markdown table of a run."""
    others = [candidate for candidate in CANDIDATES[1:] if candidate in results["cases"][0]["samples"]]
    header = ["size, batch", "ours, ms", *others, "ours / limit", "extra MiB, ours", "extra MiB, timm"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *map(row, results["cases"])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    parser.add_argument("--measure", nargs=3, metavar=("CANDIDATE", "SIZE", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, type=int, metavar=("SIZE", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--rate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        candidate, size, batch = arguments.measure
        print(json.dumps(measure(candidate, int(size), int(batch))))
    elif arguments.export:
        export(*arguments.export)
        print("{}")
    elif arguments.rate:
        print(json.dumps({"rate": best_product_rate()}))
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["HF_PVT_BENCHMARK_FOLDER"] = folder
            results = run(arguments.rounds, tuple(arguments.candidates))
        print(f"\n{results['machine']}\n\n{table(results)}")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "forward.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
