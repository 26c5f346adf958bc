"""Seconds, page faults and memory of one candidate's forward, in the process that calls it."""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .candidates import CANDIDATES, missing
from .machine import memory

SECONDS_OF_SAMPLES, SAMPLES = 1.0, 3
# A call that takes so long is one sample: what the first has to do beside computing is nothing to it.
LONG_CALL = 2.0
WARM_UP_SIZE = 64


@torch.inference_mode()
def measure(candidate: str, model: str, size: int, batch: int) -> dict[str, float]:
    """What a forward takes; its extra memory is what it needs beyond model and images."""
    torch.manual_seed(0)
    forward, images = CANDIDATES[candidate].build(model, size, batch), torch.randn(batch, 3, size, size)
    if CANDIDATES[candidate].any_size and not missing(candidate, model, WARM_UP_SIZE):
        # Libraries are loaded and kernels compiled before memory is counted.
        forward(torch.randn(1, 3, WARM_UP_SIZE, WARM_UP_SIZE))
    return sample(lambda: forward(images))


def sample(call: Callable[[], Any]) -> dict[str, float]:
    """Median seconds, page faults and extra peak memory (MiB) of a call, in a process that has done little else."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, faults, start = memory("VmRSS"), page_faults(), time.perf_counter()
    call()
    seconds = [time.perf_counter() - start]
    extra = memory("VmHWM") - before
    if seconds[0] < LONG_CALL:
        seconds, faults = [], page_faults()
        while len(seconds) < SAMPLES or sum(seconds) < SECONDS_OF_SAMPLES:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    faults = page_faults() - faults
    return {
        "seconds": round(statistics.median(seconds), 6),
        "faults": round(faults / len(seconds)),
        "extra_mib": round(extra, 1),
    }


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
