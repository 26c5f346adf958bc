"""A run that is killed at any moment, while saving too, ends with the weights of a run that was not.

One process imports everything once; each run is a fork of it, killed with SIGKILL.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from classification_runs import ENVIRONMENT, digits, flags, too_small

KILLS = 20
STEPS = 8

# Reads the command line of the run, the output folder, and how often to kill; prints what it saw.
KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import run_image_classification

argv, output, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
chance = random.Random(0)

def start():
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    run_image_classification.main(argv)
    os._exit(0)

def wait(child):
    if os.waitpid(child, 0)[1]:
        sys.exit("a run failed")

def saving():
    return any(output.glob("checkpoint-*.incomplete"))

def kill(child, when_saving, seconds):
    "Whether it was saving, None where it had ended before"
    begin = time.monotonic()
    while when_saving and not saving() and not over(child):
        time.sleep(0.0005)
    time.sleep(chance.random() * (0.02 if when_saving else seconds))
    if over(child):
        return None
    os.kill(child, signal.SIGSTOP)
    torn = saving()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return torn

def over(child):
    "Whether it has ended; it stays to be waited for"
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is not None and ended.si_status:
        sys.exit("a run failed")
    return ended is not None

begin = time.monotonic()
wait(start())
seconds = time.monotonic() - begin
shutil.copytree(output / "model", output.with_name("whole"))
shutil.rmtree(output)

killed, torn, finished = 0, 0, 0
while killed < kills:
    while_saving = kill(start(), when_saving=killed % 2 == 0, seconds=seconds)
    if while_saving is None:
        finished += 1
        os.waitpid(-1, 0)
        shutil.rmtree(output)
    else:
        killed += 1
        torn += while_saving
wait(start())
print(json.dumps({"killed": killed, "torn": torn, "finished": finished}))
"""


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """Eight steps of two epochs with mixing, drop path and repeated augmentation, and a checkpoint after each."""
    data = digits(tmp_path / "data", 32, 4)
    scratch = too_small(tmp_path, drop_path_rate=0.2)
    recipe = {"recipe": "pvt-imagenet", "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_steps": STEPS}
    saving = {"checkpointing_steps": 1, "checkpoints_total_limit": 2, "ema_decay": 0.9, "logging_steps": 4}
    return [*flags(data, tmp_path / "out", from_scratch=scratch, **recipe, **saving), "--resume"]


def test_killed_at_random_moments(argv: list[str], tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[1] / "examples"), str(Path(__file__).parent)]
    process = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(argv), str(tmp_path / "out"), str(KILLS)],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    seen = json.loads(process.stdout.splitlines()[-1])
    assert seen["killed"] == KILLS and seen["torn"] >= 3
    killed, whole = (folder / "model.safetensors" for folder in (tmp_path / "out" / "model", tmp_path / "whole"))
    assert killed.read_bytes() == whole.read_bytes()
    left = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert left == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]
