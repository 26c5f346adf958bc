"""Checkpoints are whole or not there. Being killed while saving is in runs/test_kill.py."""

import errno
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from hf_pvt.training import checkpoints
from hf_pvt.training.checkpoints import CheckpointError


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One process on the CPU; the state that accelerate shares between its objects is gone afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


class Run:
    """A linear model in training, prepared by accelerate."""

    def __init__(self, accelerator: Accelerator) -> None:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        self.accelerator = accelerator
        self.model, self.optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.average = nn.Linear(3, 2)

    def step(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, step: int, keep: int | None = None) -> Path:
        modules = {"average": self.average}
        return checkpoints.save(self.accelerator, folder, step, {"position": 10 * step}, keep, modules)

    def load(self, path: Path) -> None:
        checkpoints.load(self.accelerator, path, {"average": self.average})

    def weights(self) -> list[Tensor]:
        moments = [state["exp_avg"] for state in self.optimizer.optimizer.state.values()]
        return [p.detach().clone() for p in (*self.model.parameters(), *moments, *self.average.parameters())]


@pytest.fixture
def run(accelerator: Accelerator) -> Run:
    return Run(accelerator)


def test_what_is_saved_comes_back(run: Run, tmp_path: Path) -> None:
    run.step()
    path = run.save(tmp_path, 5)
    before = run.weights()
    run.step()
    nn.init.zeros_(run.average.weight)
    assert not torch.equal(run.weights()[0], before[0])
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[0] == path == tmp_path / "checkpoint-5"
    assert found[1]["step"] == 5 and found[1]["position"] == 50
    run.load(path)
    torch.testing.assert_close(run.weights(), before, rtol=0, atol=0)


def test_the_last_ones_are_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-9.incomplete").mkdir()  # of a run that was killed
    (tmp_path / "model").mkdir()
    for step in (2, 10, 9):
        run.save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9", "model"]


def test_the_newest_is_the_one_written_last(run: Run, tmp_path: Path) -> None:
    """A run that continues from step 1 keeps its own second step, not the third of the run it left; nor a torn one."""
    for step in (1, 2, 3, 7):
        run.save(tmp_path, step)
    (tmp_path / "checkpoint-7" / "complete.json").unlink()
    run.save(tmp_path, 2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-7"]
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[0].name == "checkpoint-2"


TEARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / "complete.json").unlink(), "it has no complete.json"),
    "half a manifest": (
        lambda path: (path / "complete.json").write_text((path / "complete.json").read_text()[:40]),
        "its complete.json is damaged",
    ),
    "truncated": (
        lambda path: (path / "optimizer.bin").write_bytes((path / "optimizer.bin").read_bytes()[:-9]),
        "optimizer.bin has ",
    ),
    "missing": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
    "other bytes": (
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1] + b"!"),
        "model.safetensors is not what was written",
    ),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over(
    tear: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, newest = run.save(tmp_path, 9), run.save(tmp_path, 10)
    damage, problem = TEARS[tear]
    damage(newest)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.agreed(run.accelerator, tmp_path, None)
    assert found is not None and found[0] == whole and found[1]["step"] == 9
    assert f"{newest} is passed over: {problem}" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-10 cannot be resumed from: "):
        checkpoints.agreed(run.accelerator, tmp_path, newest)
    # When the run comes there again, it replaces the torn one.
    assert run.save(tmp_path, 10) == newest and checkpoints.torn(newest) is None


def test_a_folder_that_was_not_renamed_is_no_checkpoint(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path, 3).rename(tmp_path / "checkpoint-3.incomplete")
    assert checkpoints.latest(tmp_path) is None and checkpoints.latest(tmp_path / "nowhere") is None


def test_the_chosen_one_is_taken(run: Run, tmp_path: Path) -> None:
    chosen = run.save(tmp_path, 3)
    run.save(tmp_path, 4)
    found = checkpoints.agreed(run.accelerator, tmp_path, chosen)
    assert found is not None and found[0] == chosen


@pytest.mark.parametrize("failing", ["save_state", "fsync", "manifest"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    failing: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    previous = run.save(tmp_path, 1)
    content = {path.name: path.read_bytes() for path in previous.iterdir()}
    target = {
        "save_state": (run.accelerator, "save_state"),
        "fsync": (checkpoints.os, "fsync"),
        "manifest": (json, "dumps"),
    }
    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(*target[failing], full)
        run.save(tmp_path, 2, keep=1)
    assert str(caught.value) == (
        f"the checkpoint of step 2 could not be written to {tmp_path} ([Errno 28] No space left on device); "
        "checkpoint-1 is whole: make room and --resume."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert {path.name: path.read_bytes() for path in previous.iterdir()} == content


FULL = """
import resource, sys, torch
from pathlib import Path
from accelerate import Accelerator
from hf_pvt.training import checkpoints
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(100, 100)
model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
model(torch.ones(1, 100)).sum().backward()
optimizer.step()
folder = Path(sys.argv[1])
checkpoints.save(accelerator, folder, 1, {})
for limit in (20_000, 60_000):  # the weights have 40 kB, the optimizer 80
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoints.save(accelerator, folder, 2, {})
    except checkpoints.CheckpointError as error:
        print(error)
"""


@pytest.mark.processes
def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    """The kernel cuts files off, and each library that writes one fails in its own way: weights, then the optimizer."""
    examples = str(Path(checkpoints.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env={"PYTHONPATH": examples}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    errors = process.stdout.splitlines()
    assert len(errors) == 2
    for error in errors:
        assert error.startswith(f"the checkpoint of step 2 could not be written to {tmp_path} (")
        assert error.endswith("; checkpoint-1 is whole: make room and --resume.")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.torn(tmp_path / "checkpoint-1") is None


def test_another_run_is_refused(tmp_path: Path) -> None:
    manifest = {"identity": {"seed": 0, "global_batch": 32, "recipe": "finetune"}}
    same = {"seed": 0, "global_batch": 32, "recipe": "finetune"}
    assert checkpoints.changes(manifest, same, tmp_path) == {}
    assert checkpoints.changes(manifest, same | {"seed": 1}, tmp_path, {"seed"}) == {"seed": (0, 1)}
    with pytest.raises(CheckpointError) as caught:
        checkpoints.changes(manifest, {"seed": 1, "global_batch": 64, "recipe": "finetune"}, tmp_path)
    assert f"{tmp_path} belongs to another run: global_batch was 32 and is 64; seed was 0 and is 1." in str(
        caught.value
    )


def test_no_code_is_run(run: Run, tmp_path: Path) -> None:
    """Even a checkpoint that was forged, manifest and all, is read as plain values."""
    path = run.save(tmp_path, 1)
    trace = tmp_path / "trace"

    class Call:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path.touch, (trace,)  # type: ignore[return-value]

    torch.save({"state": {}, "param_groups": [], "note": Call()}, path / "optimizer.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        run.load(path)
    assert not trace.exists()
    shutil.rmtree(path)
