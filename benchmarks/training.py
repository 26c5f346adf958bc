"""Training steps on the CPU: ours against timm and Transformers.

    python -m benchmarks.training
    python -m benchmarks.training --models pvt-v2-b0 p2t-small --rounds 5

A step is forward, cross-entropy, backward and AdamW. "ours" is what the scripts in examples/ do, which tell glibc to
keep large blocks; all others have the heap as it is. Every measurement runs in a fresh process, candidates alternate,
round after round. All have random weights and the same fused AdamW, and drop no paths; bfloat16 is autocast. What is
measured is merged into the results of this processor, as by `python -m benchmarks`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .candidates import lacking, stock_transformers, timm_model
from .fresh_process import in_fresh_process
from .machine import memory, processor, processor_text, versions
from .measuring import page_faults
from .models import MODELS, SEMANTIC_FPN, ours
from .results import Results, case_name, load, median, ratio, record, save
from .tables import Notes, cell, header, line, title

CANDIDATES = ("ours", "ours, default heap", "timm", "timm channels-last", "transformers")
DTYPES = ("float32", "bfloat16")
MIB = 2**20
SAMPLES, WARM_UP = 3, 2


class Case(NamedTuple):
    """`checkpointing`: activations are computed twice."""

    size: int
    batch: int
    dtype: str
    checkpointing: bool = False

    @property
    def name(self) -> str:
        return ", ".join([case_name(self.size, self.batch), self.dtype, *["checkpointing"] * self.checkpointing])


EVERY_WAY = ((224, 8, False), (512, 1, False), (512, 1, True), (32, 64, False))  # size, batch, checkpointing
CASES: dict[str, list[Case]] = {model: [Case(224, 8, dtype) for dtype in DTYPES] for model in MODELS} | {
    "pvt-v2-b2": [Case(size, batch, dtype, again) for size, batch, again in EVERY_WAY for dtype in DTYPES],
    SEMANTIC_FPN: [Case(512, 1, dtype) for dtype in DTYPES],
}


def build(candidate: str, model: str, checkpointing: bool) -> Any:
    """A model to train; its output, or the output's `logits`, are (B, classes) or (B, labels, H/4, W/4)."""
    if candidate.startswith("timm"):
        built: Any = timm_model(model)
        built.set_grad_checkpointing(checkpointing)
        return built.to(memory_format=torch.channels_last) if "channels-last" in candidate else built
    built = stock_transformers(model) if candidate == "transformers" else ours(model, drop_path_rate=0.0)
    if checkpointing:
        built.gradient_checkpointing_enable()
    return built


def training_step(candidate: str, model: str, case: Case) -> tuple[Callable[[], None], nn.Module]:
    """A step, and what it trains. To be called in a process of its own, whose heap it may set."""
    if candidate == "ours":
        from hf_pvt.training.heap import keep_large_blocks

        keep_large_blocks()
    torch.manual_seed(0)
    trained = build(candidate, model, case.checkpointing).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)
    images = torch.randn(case.batch, 3, case.size, case.size)
    if candidate == "timm channels-last":
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "bfloat16"):
            output = trained(images)
            logits = getattr(output, "logits", output).float()
            if logits.dim() == 4:
                logits = F.interpolate(logits, size=case.size, mode="bilinear")  # (B, labels, H, W)
            loss = F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, trained


def measure_step(candidate: str, model: str, case: Case, seconds_of_samples: float = 3.0) -> dict[str, float]:
    """Median seconds and page faults of a step, and peak MiB beyond weights, gradients and AdamW's moments.

    To be called in a process of its own.
    """
    step, trained = training_step(candidate, model, case)
    before = memory("VmRSS")
    seconds: list[float] = []
    faults = 0
    while len(seconds) < WARM_UP + SAMPLES or sum(seconds[WARM_UP:]) < seconds_of_samples:
        faults = page_faults() if len(seconds) == WARM_UP else faults
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    del seconds[:WARM_UP]
    states = 3 * sum(parameter.nbytes for parameter in trained.parameters()) / MIB
    return {
        "seconds": round(statistics.median(seconds), 5),
        "faults": round((page_faults() - faults) / len(seconds)),
        "extra_mib": round(memory("VmHWM") - before - states, 1),
    }


def run_case(model: str, case: Case, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The samples of all candidates that train this model, alternating."""
    samples: dict[str, list[dict[str, float]]] = {
        name: [] for name in CANDIDATES if not lacking(name, model, case.size)
    }
    for _ in range(rounds):
        for candidate, measured in samples.items():
            measured.append(in_fresh_process(measure_step, candidate, model, case))
    return samples


def training_table(results: Results, models: Iterable[str]) -> str:
    """Milliseconds of ours, the others' time divided by it, page faults and memory."""
    with_faults, with_memory = CANDIDATES[:3], CANDIDATES
    titles = ["model", "size, batch, type", "ours, ms", *map(title, CANDIDATES[1:])]
    titles += [f"page faults, {title(name)}" for name in with_faults]
    titles += [f"MiB, {title(name)}" for name in with_memory]
    notes, lines = Notes(), header(*titles)
    for model in models:
        for case in CASES[model]:
            measured = results["training"].get(model, {}).get(case.name)
            if not measured:
                continue
            columns = [(name, lambda c, n: ratio(c, n, "ours")) for name in CANDIDATES[1:]]
            columns += [(name, lambda c, n: f"{median(c, n, 'faults'):,.0f}") for name in with_faults]
            columns += [(name, lambda c, n: f"{median(c, n, 'extra_mib'):.0f}") for name in with_memory]
            cells = [cell(notes, name, lacking(name, model, case.size), measured, value) for name, value in columns]
            lines.append(line(f"`{model}`", case.name, f"{1e3 * median(measured, 'ours'):.0f}", *cells))
    return "\n".join([*lines, "", notes.text()]).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", type=int, help="Pixels of a side; by default all.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    results, run = load(processor()), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    results["runs"][run] = {"versions": versions(), "rounds": arguments.rounds}
    print(processor_text(results["processor"]))
    for model in arguments.models:
        for case in CASES[model]:
            if arguments.sizes and case.size not in arguments.sizes:
                continue
            measured = results["training"].setdefault(model, {}).setdefault(case.name, {})
            for candidate, samples in run_case(model, case, arguments.rounds).items():
                record(measured, candidate, run, samples)
            save(results)
            numbers = (f"{name} {1e3 * median(measured, name):.0f} ms" for name in CANDIDATES if name in measured)
            print(f"{model}, {case.name}: {', '.join(numbers)}", flush=True)


if __name__ == "__main__":
    main()
