"""Freed memory is kept between steps: page faults of a step, and what forked processes inherit."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import classification_runs
import pytest
import script_runs
from paths import EXAMPLES

pytestmark = [pytest.mark.machine, pytest.mark.processes]

# Runs the training script, and prints the page faults of each step.
FAULTS_OF_STEPS = """
import json, resource, sys
sys.path.insert(0, sys.argv.pop(1))
import run_image_classification
from hf_pvt.training.loop import Loop
one_step, faults = Loop._one_step, []

def counted(self, batches):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    one_step(self, batches)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

Loop._one_step = counted
run_image_classification.main()
print(json.dumps(faults))
"""
# With 128 MiB that were used and freed: how much more memory there is now, how much of it a forked process has, and
# what a block of 48 MiB that is used again and again costs that process and its parent, in page faults.
FORKED = """
import json, os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from hf_pvt.training.heap import keep_large_blocks

def memory():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024

def fewest_faults():
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(12 * 2**20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)

torch.set_num_threads(1)
assert keep_large_blocks()
before = memory()
torch.ones(32 * 2**20)
kept = memory() - before
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, json.dumps([memory() - before, fewest_faults()]).encode())
    os._exit(0)
os.wait()
print(json.dumps([kept, *json.loads(os.read(reader, 99)), fewest_faults()]))
"""
PAGES = 2**20 // os.sysconf("SC_PAGE_SIZE")  # of a MiB


def last_line(code: str, *words: str | Path) -> Any:
    """What code in a process of its own prints last, as JSON."""
    command = [sys.executable, "-c", code, str(EXAMPLES), *map(str, words)]
    environment = os.environ | script_runs.ENVIRONMENT
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_faults_of_training_steps(tmp_path: Path) -> None:
    """A run soon has next to none in a step; with the flag, as many as ever.

    At 640 pixels the images of a step are over 32 MiB: such blocks glibc maps whatever it has learnt. Of smaller ones
    it may have kept enough by chance, as of some blocks of a single step here: medians are compared.
    """
    data = classification_runs.digits(tmp_path / "digits", 32, 0)
    scratch = classification_runs.too_small(tmp_path)
    values = {
        "image_size": 640,
        "per_device_train_batch_size": 8,
        "max_steps": 7,
        "validation_dir": None,
        "train_val_split": 0,
    }
    kept, default = (
        last_line(FAULTS_OF_STEPS, *classification_runs.few_steps(data, scratch, tmp_path / name, **values), *flags)
        for name, flags in (("kept", []), ("default", ["--default_heap"]))
    )
    assert 10 * statistics.median(kept[-3:]) < statistics.median(default[-3:])
    assert statistics.median(default[-3:]) > 32 * PAGES


def test_forked_processes() -> None:
    """A worker shares no freed memory with its parent, and gives its own large blocks back; the parent goes on."""
    kept, inherited, faults_of_child, faults_of_parent = last_line(FORKED)
    assert kept > 120
    assert inherited < 4
    assert faults_of_child > 40 * PAGES
    assert faults_of_parent < PAGES
