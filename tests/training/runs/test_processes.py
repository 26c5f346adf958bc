"""Processes that are lost are missed; each sample of a stream goes to one process; errors are one sentence.

That two processes are one with the joint batch is in test_two_processes.py.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
import torch
from classification_runs import SCRIPT, digits, flags, launch, run, too_small
from PIL import Image
from script_runs import ENVIRONMENT, results
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hf_pvt.training import launch as launch_module
from hf_pvt.training.arguments import DataArguments, RunArguments
from hf_pvt.training.data.decoding import BadImageError, decode_image
from hf_pvt.training.data.labelled_images import Labels, Rows
from hf_pvt.training.data.loaders import Feed
from hf_pvt.training.data.samples import Sample
from hf_pvt.training.data.sources import open_split
from hf_pvt.training.launch import TrainingError, lost_processes, run_main, sentence, share_of_cores


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return too_small(tmp_path)


def test_processes_that_are_lost_are_missed(tiny: str, tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` runs one and says nothing; we say how to start two."""
    asked = ["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "run.py"]
    warning = lost_processes(1, [["bash"], asked])
    assert warning is not None and warning.startswith("1 of 2 processes that were asked for are running (")
    assert "ACCELERATE_USE_CPU=true" in warning
    assert lost_processes(2, [asked]) is None
    assert lost_processes(1, [["python", "run.py", "--num_processes", "2"]]) is None  # no launcher's flag


def test_what_a_launcher_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("num_processes: 5\n")
    for line, expected in {
        "torchrun --nproc_per_node 4 run.py": 4,
        "python -m torch.distributed.run --nproc-per-node=2 --nnodes=3 run.py": 6,
        "accelerate launch --num_processes=8 run.py": 8,
        f"accelerate launch --config_file {file} run.py": 5,
    }.items():
        assert lost_processes(expected, [line.split()]) is None, line
        assert str(lost_processes(expected - 1, [line.split()])).startswith(f"{expected - 1} of {expected} "), line


def test_slurm_s_tasks_and_idle_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "16")
    assert str(lost_processes(8, [])).startswith("8 of 16 processes")
    monkeypatch.delenv("SLURM_NTASKS")
    assert lost_processes(1, []) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert str(lost_processes(1, [])).startswith("one process is running, on one of 4 GPUs (")


def test_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, shared by the machine's processes; by default."""
    for cores, processes, workers in [(8, 1, 8), (8, 3, 2), (1, 4, 1)]:
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self, n=cores: list(range(n)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert share_of_cores() == workers, (cores, processes)


@pytest.mark.processes
def test_default_workers_read(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0], raising=False)
    values = {"from_scratch": tiny, "max_steps": 1, "per_device_train_batch_size": 8, "dataloader_num_workers": None}
    record = run(flags(digits(tmp_path / "data", 48, 8), tmp_path / "out", **values))
    assert record["arguments"]["dataloader_num_workers"] == 1 and record["metrics"]["examples"] == 8


@pytest.mark.processes
def test_the_launcher_s_silence_is_broken(tiny: str, tmp_path: Path) -> None:
    """The real thing."""
    data = digits(tmp_path / "data", 16, 8)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(SCRIPT)]
    values = {"validation_dir": None, "max_steps": 1, "per_device_train_batch_size": 8}
    argv = flags(data, tmp_path / "out", from_scratch=tiny, **values)
    environment = {k: v for k, v in (os.environ | ENVIRONMENT).items() if k != "ACCELERATE_USE_CPU"}
    process = subprocess.run([*launcher, *argv], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "1 of 2 processes that were asked for are running" in process.stderr
    assert results(tmp_path / "out")["num_processes"] == 1


# Streams


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), number % 256).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(folder: Path, shards: list[list[int]], bad: frozenset[int] = frozenset()) -> str:
    """Shards of images that are as grey as their number, with the number as label; a pattern for them."""
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=[*map(str, range(100))])}
    )
    folder.mkdir()
    for shard, numbers in enumerate(shards):
        images = [{"bytes": b"" if n in bad else png(n), "path": f"{n}.png"} for n in numbers]
        rows = {"picture": images, "label": numbers}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{shard}.parquet")
    return f"{folder}/*.parquet"


class Process(SimpleNamespace):
    """One process's accelerator, alone in the world."""

    device = torch.device("cpu")

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


def feeds(pattern: str, processes: int, workers: int, tmp_path: Path, **data: Any) -> Iterator[tuple[Feed, Rows]]:
    run = RunArguments(per_device_train_batch_size=4, dataloader_num_workers=workers)
    arguments = DataArguments(train_files=[pattern], streaming=True, shuffle_buffer=8, **data)
    for index in range(processes):
        rows = open_split(arguments, training=True)
        images = Rows(rows, "label", Labels([*map(str, range(100))]))
        yield Feed(Process(process_index=index, num_processes=processes), arguments, run, seed=0), images  # type: ignore[arg-type]


def prepare(example: Any) -> Sample:
    source, name, label = example
    assert decode_image(source, name).getpixel((0, 0))[0] == label
    return {"labels": label, "noise": torch.rand(())}


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` sleeps ten seconds after each epoch of a shuffled stream (apache/arrow issue 45214)."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def shards(count: int) -> list[list[int]]:
    return [part.tolist() for part in np.array_split(np.arange(48), count)]


@pytest.mark.parametrize(("count", "workers"), [(4, 0), pytest.param(4, 2, marks=pytest.mark.processes), (3, 0)])
def test_training_takes_each_sample_of_a_stream_once_per_epoch(count: int, workers: int, tmp_path: Path) -> None:
    """Whole shards for each of two processes, or of three shards every second sample; over two epochs."""
    pattern = parquet(tmp_path / "shards", shards(count))
    shares = []
    for feed, images in feeds(pattern, 2, workers, tmp_path):
        batches = iter(feed.training(images, prepare, None, 100)(0))
        shares.append([[label for _ in range(6) for label in next(batches)["labels"].tolist()] for _ in range(2)])
    for epoch in (0, 1):
        assert sorted(shares[0][epoch] + shares[1][epoch]) == list(range(48))
    assert shares[0][0] != shares[0][1]  # shuffled anew


@pytest.mark.parametrize(("count", "workers"), [(4, 0), (3, 0), pytest.param(3, 2, marks=pytest.mark.processes)])
def test_evaluation_counts_each_sample_of_a_stream_once(count: int, workers: int, tmp_path: Path) -> None:
    pattern = parquet(tmp_path / "shards", shards(count))
    found = []
    for feed, images in feeds(pattern, 2, workers, tmp_path):
        for batch in feed.evaluation(images, prepare) or ():
            found += batch["labels"][batch["counted"]].tolist()
    assert sorted(found) == list(range(48))


def test_a_stream_continues_where_it_stopped(tmp_path: Path) -> None:
    pattern = parquet(tmp_path / "shards", [list(range(0, 20)), list(range(20, 40))])
    ((feed, images),) = feeds(pattern, 1, 0, tmp_path)
    whole, rest = (iter(feed.training(images, prepare, None, 100)(step)) for step in (0, 13))
    expected = [next(whole) for _ in range(16)][13:]  # of the second epoch
    for batch in expected:
        again = next(rest)
        assert again["labels"].equal(batch["labels"]) and again["noise"].equal(batch["noise"])


def test_bad_images_of_a_stream(tmp_path: Path) -> None:
    pattern = parquet(tmp_path / "shards", [list(range(0, 10)), list(range(10, 20))], bad=frozenset({3, 19}))
    ((feed, images),) = feeds(pattern, 1, 0, tmp_path)
    batches = feed.evaluation(images, prepare)
    assert batches is not None
    with pytest.raises(BadImageError, match=r"^3\.png \(row 3\) is empty\.$"):
        list(batches)
    ((feed, images),) = feeds(pattern, 1, 0, tmp_path, on_bad_image="skip")
    found = list(feed.evaluation(images, prepare) or ())
    assert sum(batch["counted"].sum() for batch in found) == 18
    assert {file for batch in found for file in batch["bad"]} == {"3.png (row 3)", "19.png (row 19)"}
    batches = iter(feed.training(images, prepare, None, 100)(0))
    seen = [label for _ in range(9) for label in next(batches)["labels"].tolist()]
    assert len(seen) == 36 and sorted(set(seen)) == [n for n in range(20) if n not in (3, 19)]


@pytest.mark.processes
def test_two_processes_train_and_evaluate_on_streams(tiny: str, tmp_path: Path) -> None:
    """As people start them: seven validation samples in three shards, of which each has its part; all count once."""
    training = parquet(tmp_path / "training", [list(range(0, 10)), list(range(10, 20))])
    validation = parquet(tmp_path / "validation", [[1, 2, 3], [4, 5], [6, 7]])
    values = {"train_dir": None, "validation_dir": None, "train_files": training, "validation_files": validation}
    values |= {"streaming": True, "from_scratch": tiny, "max_steps": 4, "learning_rate": 1e-3, "shuffle_buffer": 4}
    argv = flags(tmp_path, tmp_path / "out", per_device_train_batch_size=2, **values)
    process = launch(argv, processes=2, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert process.returncode == 0, process.stderr[-3000:]
    record = results(tmp_path / "out")
    assert record["num_processes"] == 2 and record["metrics"]["examples"] == 7 and record["steps"] == 4


def test_a_stream_needs_steps(tiny: str, tmp_path: Path) -> None:
    pattern = parquet(tmp_path / "shards", [[1, 2, 3]])
    values = {"train_dir": None, "validation_dir": None, "train_files": pattern, "streaming": True}
    with pytest.raises(ValueError, match=r"^a stream has no length; say with --max_steps how long to train\.$"):
        run(flags(tmp_path, tmp_path / "out", from_scratch=tiny, **values))


def test_parquet_and_web_dataset_without_streaming(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pattern = parquet(tmp_path / "shards", [list(range(0, 10)), list(range(10, 20))])
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "0.tar", "w") as archive:
        for number in range(8):
            for suffix, content in (("png", png(number)), ("cls", str(number % 3).encode())):
                entry = tarfile.TarInfo(f"sample{number}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    common = {"from_scratch": tiny, "max_steps": 2, "learning_rate": 1e-3, "validation_dir": None, "train_dir": None}
    common |= {"per_device_train_batch_size": 4, "train_val_split": 0.25}
    record = run(flags(tmp_path, tmp_path / "parquet", train_files=pattern, **common))
    assert record["metrics"]["examples"] == 5
    record = run(flags(tmp_path, tmp_path / "webdataset", train_files=f"{tmp_path}/tar/*.tar", **common))
    assert record["metrics"]["examples"] == 2
    assert (tmp_path / "webdataset" / "model" / "config.json").read_text().count("LABEL") == 0


def test_errors_of_workers_are_one_sentence() -> None:
    wrapped = (
        "Caught BadImageError in DataLoader worker process 0.\nTraceback:\n  ...\nimages.BadImageError: a.png is empty."
    )
    assert sentence(BadImageError(wrapped)) == "a.png is empty."
    assert sentence(TrainingError("two\n lines")) == "two lines"


@pytest.mark.parametrize("launcher", ["", "python bin/accelerate launch run.py", "torchrun run.py"])
def test_an_error_is_told_beside_the_launchers(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun gives our sentence as the root cause; of accelerate's own traceback we say that it is that."""

    def fails() -> None:
        raise ValueError("there is no folder.")

    report = tmp_path / "error.json"
    monkeypatch.setattr(launch_module, "parent_command_lines", lambda: [["bash"], launcher.split()])
    if "torchrun" in launcher:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    with pytest.raises(SystemExit, match="1"):
        run_main(fails)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: there is no folder." and len(lines) == (2 if "accelerate" in launcher else 1)
    if "torchrun" in launcher:
        assert ProcessFailure(0, 1, 1, str(report)).message == "there is no folder."
