"""A packed PVTv2-B2 on the CPU, float32 and bfloat16: against ONNX Runtime, and against timm in bfloat16.

    python -m benchmarks.serving

Measured as in `benchmarks.forward`: fresh processes that alternate, medians of ratios, an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import tempfile
from typing import Any

from .forward import CASES, RESULTS, in_fresh_process, machine

# Each of ours, and those that its time is compared with.
PEERS = {
    "ours packed": ("ours", "onnxruntime"),
    "ours packed bf16": ("ours bf16", "timm channels-last bf16"),
}
CANDIDATES = (*PEERS, *(other for others in PEERS.values() for other in others))


def run(rounds: int) -> dict[str, Any]:
    """All cases and candidates, alternating, `rounds` times."""
    cases = []
    for size, batch in CASES:
        in_fresh_process("--export", str(size), str(batch))
        samples: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
        for _ in range(rounds):
            for candidate, seconds in samples.items():
                seconds.append(in_fresh_process("--measure", candidate, str(size), str(batch))["seconds"])
        cases.append({"size": size, "batch": batch, "samples": samples})
        print(row(cases[-1]), flush=True)
    return {"machine": machine(), "rounds": rounds, "cases": cases}


def row(case: dict[str, Any]) -> str:
    """One line of the table: milliseconds of ours, and how many times longer the others take."""
    samples, cells = case["samples"], [f"{case['size']}, {case['batch']}"]
    for ours, others in PEERS.items():
        cells.append(f"{1e3 * statistics.median(samples[ours]):.0f}")
        for other in others:
            ratios = sorted(theirs / own for theirs, own in zip(samples[other], samples[ours], strict=True))
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """The Markdown table of a run."""
    header = ["size, batch", "packed, ms", "not packed", "onnxruntime"]
    header += ["packed bf16, ms", "not packed bf16", "timm channels-last bf16"]
    return "\n".join([f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *map(row, results["cases"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_PVT_BENCHMARK_FOLDER"] = folder
        results = run(arguments.rounds)
    print(f"\n{results['machine']}\n\n{table(results)}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
