"""What the benchmarks measure on this machine: against something larger, or what was waited for."""

import time

import pytest
import torch

from benchmarks import profile, training
from benchmarks.candidates import lacking
from benchmarks.fresh_process import in_fresh_process
from benchmarks.models import SEMANTIC_FPN

pytestmark = [pytest.mark.machine, pytest.mark.processes]


def test_fresh_process() -> None:
    assert in_fresh_process(sum, [1, 2]) == 3
    with pytest.raises(RuntimeError, match=r"int\('many',\) gave no result; its process ended with 1"):
        in_fresh_process(int, "many")


def measured(candidate: str, model: str, batch: int) -> dict[str, float]:
    case = training.Case(64, batch, "bfloat16", checkpointing=True)
    return in_fresh_process(training.measure_step, candidate, model, case, 0.0)


@pytest.mark.parametrize("model", ["pvt-v2-b0", "p2t-small", SEMANTIC_FPN])
def test_training_step(model: str) -> None:
    """Every model and each of its peers is timed; ours takes more memory for more images, and more time."""
    for candidate in training.CANDIDATES:
        if lacking(candidate, model, 64) is None:
            assert measured(candidate, model, 2)["seconds"] > 0, candidate
    few, many = measured("ours", model, 2), measured("ours", model, 128)
    assert many["seconds"] > 2 * few["seconds"]
    assert many["extra_mib"] > 2 * few["extra_mib"] > 0


def test_profile() -> None:
    """All of a call is in one of the columns; what was waited is beside the operators."""
    weight, waited = torch.randn(512, 512), []

    def call() -> None:
        start = time.perf_counter()
        time.sleep(0.02)
        waited.append(time.perf_counter() - start)
        torch.nn.functional.linear(weight, weight)

    shares = profile.shares(call)
    assert sum(shares[column] for column in profile.COLUMNS) == pytest.approx(shares["seconds"], abs=1e-5)
    assert shares["linears"] > 0 == shares["convolutions"]
    slept = sum(waited[profile.WARM_UP :]) / profile.REPETITIONS
    assert 0.9 * slept < shares[profile.BESIDE] < shares["seconds"]
