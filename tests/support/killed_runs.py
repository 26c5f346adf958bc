"""Runs of a training script that are killed at any moment with SIGKILL, while saving too, and continued.

One process imports everything once; each run is a fork of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from paths import EXAMPLES, SUPPORT
from script_runs import ENVIRONMENT

# Reads the script's module, the command line of the run, the output folder, and how often to kill; prints what it saw.
KILLER = """
import importlib, json, os, random, shutil, signal, sys, time
from pathlib import Path

script = importlib.import_module(sys.argv[1])
argv, output, kills = json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
chance = random.Random(0)

def start():
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    script.main(argv)
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


def killed_and_continued(script: str, argv: list[str], output: Path, kills: int) -> dict[str, int]:
    """How often the runs of a script's module were `killed`, `torn` while saving, and `finished` before they could be.

    `output` is the folder that `argv` names, with --resume; beside it `whole` becomes the model of a run in one piece.
    """
    paths = [str(EXAMPLES), str(SUPPORT)]
    process = subprocess.run(
        [sys.executable, "-c", KILLER, script, json.dumps(argv), str(output), str(kills)],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def same_weights(output: Path) -> bool:
    """Whether the killed run and the whole one ended with the same file of weights."""
    killed, whole = (folder / "model.safetensors" for folder in (output / "model", output.with_name("whole")))
    return killed.read_bytes() == whole.read_bytes()
