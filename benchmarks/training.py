"""One training step of PVTv2-B2 on the CPU: ours against timm and Transformers.

    python -m benchmarks.training

A step is forward, cross-entropy, backward and AdamW. "ours" is what the scripts in examples/ do, which tell glibc to
keep large blocks; all others have the heap as it is. Every measurement runs in a fresh process, candidates alternate,
round after round, and the ratios are medians over the rounds. All have random weights and the same fused AdamW, and
drop no paths; bfloat16 is autocast. `--cases` measures some cases anew and leaves the others' results.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .machine import machine, memory
from .results import RESULTS

VARIANT = "pvt-v2-b2"
CANDIDATES = ("ours", "ours, default heap", "timm", "timm channels-last", "transformers")
# Size, batch, type, and whether activations are computed twice.
CASES: dict[str, tuple[int, int, str, bool]] = {
    f"{size}, {batch}, {dtype}{', checkpointing' if checkpointing else ''}": (size, batch, dtype, checkpointing)
    for size, batch, checkpointing in ((224, 8, False), (512, 1, False), (512, 1, True), (32, 64, False))
    for dtype in ("float32", "bfloat16")
}
MIB = 2**20
SECONDS_OF_SAMPLES, SAMPLES, WARM_UP = 3.0, 3, 2


def build(candidate: str, variant: str, checkpointing: bool) -> nn.Module:
    """A model to train; its output, or the output's `logits`, are (B, 1000)."""
    if candidate.startswith("timm"):
        import timm

        model = timm.create_model(variant.replace("pvt-v2", "pvt_v2").replace("-", "_"))
        model.set_grad_checkpointing(checkpointing)
        return model.to(memory_format=torch.channels_last) if "channels-last" in candidate else model
    import transformers

    import hf_pvt

    config = hf_pvt.variant_config(variant, num_labels=1000, drop_path_rate=0.0)
    if candidate == "transformers":
        fields = hf_pvt.VARIANTS[variant].architecture | {"num_labels": 1000, "drop_path_rate": 0.0}
        model = transformers.PvtV2ForImageClassification(transformers.PvtV2Config(**fields))
    else:
        model = hf_pvt.PvtV2ForImageClassification(config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


def measure_step(
    candidate: str, variant: str, size: int, batch: int, dtype: str, checkpointing: bool = False
) -> dict[str, float]:
    """Median seconds and page faults of a step, and peak MiB beyond weights, gradients and AdamW's moments.

    To be called in a process of its own.

    Args:
        candidate: of `CANDIDATES`.
        variant: of PVTv2.
        dtype: "float32" or "bfloat16".
    """
    if candidate == "ours":
        from examples.training.heap import keep_large_blocks

        keep_large_blocks()
    torch.manual_seed(0)
    model = build(candidate, variant, checkpointing).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))
    if candidate == "timm channels-last":
        images = images.to(memory_format=torch.channels_last)
    before = memory("VmRSS")
    seconds: list[float] = []
    faults = 0
    while len(seconds) < WARM_UP + SAMPLES or sum(seconds[WARM_UP:]) < SECONDS_OF_SAMPLES:
        faults = page_faults() if len(seconds) == WARM_UP else faults
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            output = model(images)
            loss = F.cross_entropy(getattr(output, "logits", output).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    del seconds[:WARM_UP]
    states = 3 * sum(parameter.nbytes for parameter in model.parameters()) / MIB
    return {
        "seconds": round(statistics.median(seconds), 5),
        "faults": round((page_faults() - faults) / len(seconds)),
        "extra_mib": round(memory("VmHWM") - before - states, 1),
    }


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def in_fresh_process(candidate: str, case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.training", "--measure", candidate, case]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run(rounds: int, cases: list[str]) -> dict[str, Any]:
    """The last results, with the candidates of these cases measured anew, alternating, `rounds` times."""
    path = RESULTS / "training.json"
    results = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    if results.get("machine") != machine():
        results = {"machine": machine(), "cases": {}}
    for case in cases:
        samples: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in CANDIDATES}
        for _ in range(rounds):
            for candidate, measured in samples.items():
                measured.append(in_fresh_process(candidate, case))
        results["cases"][case] = samples
        print(row(case, samples), flush=True)
    results["cases"] = {case: results["cases"][case] for case in CASES if case in results["cases"]}
    return results


def row(case: str, samples: dict[str, list[dict[str, float]]]) -> str:
    """One line of the table: our time and page faults, how many times longer the others take, memory."""

    def median(candidate: str, name: str) -> float:
        return statistics.median(sample[name] for sample in samples[candidate])

    cells = [case, f"{1e3 * median('ours', 'seconds'):.0f}"]
    for candidate in CANDIDATES[1:]:
        pairs = zip(samples[candidate], samples["ours"], strict=True)
        ratios = sorted(theirs["seconds"] / own["seconds"] for theirs, own in pairs)
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
    cells += [f"{median(candidate, 'faults'):,.0f}" for candidate in CANDIDATES[:3]]
    cells += [f"{median(candidate, 'extra_mib'):.0f}" for candidate in CANDIDATES[:4]]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """The Markdown table of a run."""
    header = ["size, batch, type", "ours, ms", *CANDIDATES[1:]]
    header += [f"page faults, {candidate}" for candidate in CANDIDATES[:3]]
    header += [f"MiB, {candidate}" for candidate in CANDIDATES[:4]]
    rows = [row(case, samples) for case, samples in results["cases"].items()]
    return "\n".join([f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--measure", nargs=2, metavar=("CANDIDATE", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        candidate, case = arguments.measure
        print(json.dumps(measure_step(candidate, VARIANT, *CASES[case])))
        return
    results = run(arguments.rounds, arguments.cases)
    print(f"\n{results['machine']}\n\n{table(results)}")
    save(results)


def save(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    written = Path(RESULTS / "training.written")
    written.write_text(json.dumps(results, indent=1) + "\n")
    written.replace(RESULTS / "training.json")


if __name__ == "__main__":
    main()
