"""Where the time of PVTv2-B2 goes: operators by kind, and what is beside them.

    python -m benchmarks.profile

Each case runs in a fresh process, under PyTorch's profiler, whose own work is in all numbers: some microseconds an
operator. What is beside the operators, as module calls and checks in Python, is the rest of the time. At larger sizes
products of attention are among the linears: see `hf_pvt.cpu.query_bands`. What is measured is merged into the results
of this processor, as by `python -m benchmarks`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .candidates import CANDIDATES
from .fresh_process import in_fresh_process
from .machine import processor, processor_text, versions
from .results import Results, case_name, load, record, save
from .tables import header, line
from .training import Case, training_step

MODEL = "pvt-v2-b2"
FORWARDS: tuple[tuple[str, int, int], ...] = (("packed", 224, 1), ("packed", 512, 1), ("packed", 1024, 1))
FORWARDS += tuple((f"{candidate} bf16", size, batch) for candidate, size, batch in FORWARDS)
STEPS = (Case(224, 8, "float32"), Case(224, 8, "bfloat16"), Case(32, 64, "bfloat16"))
REPETITIONS, WARM_UP = 5, 3

# Of an operator's name, in this order.
KINDS = {
    "linears": ("linear_pointwise", "addmm", "::mm"),
    "convolutions": ("convolution",),
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "activations": ("gelu",),
    "norms": ("layer_norm",),
    "optimizer": ("adamw",),
}
OTHER, BESIDE = "other operators", "beside operators"
COLUMNS = (*KINDS, OTHER, BESIDE)


def kind(operator: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operator.lower() for part in parts)), OTHER)


def shares(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call by kind of operator, and all of it."""
    for _ in range(WARM_UP):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(REPETITIONS):
            call()
        total = (time.perf_counter() - start) / REPETITIONS
    parts = dict.fromkeys(COLUMNS, 0.0)
    for event in profiler.key_averages():
        parts[kind(event.key)] += event.self_cpu_time_total / 1e6 / REPETITIONS
    parts[BESIDE] = total - sum(parts.values())
    return {name: round(value, 6) for name, value in parts.items()} | {"seconds": round(total, 6)}


def shares_of_forward(candidate: str, size: int, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    forward, images = CANDIDATES[candidate].build(MODEL, size, batch), torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        return shares(partial(forward, images))


def shares_of_step(case: Case) -> dict[str, float]:
    return shares(training_step("ours", MODEL, case)[0])


def profile_table(results: Results) -> str:
    """Milliseconds, a case a line."""
    lines = header("case", "ms", *COLUMNS)
    for case, candidates in results["profile"][MODEL].items():
        for candidate, measured in candidates.items():
            milliseconds = (f"{1e3 * statistics.median(measured[name]):.1f}" for name in ("seconds", *COLUMNS))
            lines.append(line(f"{candidate}: {case}", *milliseconds))
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.splitlines()[0]).parse_args()
    results, run = load(processor()), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    results["runs"][run] = {"versions": versions(), "rounds": 1}
    print(processor_text(results["processor"]))
    measured = results["profile"].setdefault(MODEL, {})
    for candidate, size, batch in FORWARDS:
        case = measured.setdefault(case_name(size, batch), {})
        record(case, candidate, run, [in_fresh_process(shares_of_forward, candidate, size, batch)])
    for step in STEPS:
        case = measured.setdefault(step.name, {})
        record(case, "training step", run, [in_fresh_process(shares_of_step, step)])
    save(results)
    print(profile_table(results))


if __name__ == "__main__":
    main()
