"""Runs that are killed with SIGKILL at chosen moments, of a step and of a checkpoint's writing, and continued."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paths import EXAMPLES, SUPPORT
from script_runs import ENVIRONMENT

# One process imports everything once; each run is a fork of it, which kills itself. Reads the script's module, the
# command line of the run, the output folder and the moments; prints what each kill has left unfinished.
KILLER = """
import importlib, json, os, shutil, signal, sys
from pathlib import Path
from hf_pvt.training import checkpoints
from hf_pvt.training.loop import Loop

script = importlib.import_module(sys.argv[1])
argv, output = json.loads(sys.argv[2]), Path(sys.argv[3])

def die_at(owner, name, call=1, of=lambda *args: True, part=lambda whole, *args: None):
    "Of the calls of a function that are meant, this one does a part of its work and kills the process"
    whole, calls = getattr(owner, name), 0

    def function(*args, **kwargs):
        nonlocal calls
        if of(*args):
            calls += 1
            if calls == call:
                part(whole, *args)
                os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, name, function)

def half_a_file(save, module, file):
    save(module, file)
    os.truncate(file, os.path.getsize(file) // 2)

MOMENTS = {
    "in a step": lambda: die_at(Loop, "_next", 3),
    "half a file": lambda: die_at(checkpoints, "save_model", 2, part=half_a_file),
    "half a manifest": lambda: die_at(
        Path, "write_text", of=lambda path, text: path.name == checkpoints.MANIFEST,
        part=lambda write, path, text: write(path, text[: len(text) // 2]),
    ),
    "before the name": lambda: die_at(Path, "rename", of=lambda path, target: path.name.endswith(".incomplete")),
    "after the name": lambda: die_at(checkpoints, "_prune"),
    "half deleted": lambda: die_at(
        shutil, "rmtree", of=lambda path, *_: path.exists() and path.parent == output,
        part=lambda remove, path, *_: min(path.iterdir()).unlink(),
    ),
    "before the model's name": lambda: die_at(Path, "rename", of=lambda path, target: target.name == "model"),
}

def run(moment=None):
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if moment:
            MOMENTS[moment]()
        script.main(argv)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != (signal.SIGKILL if moment else 0):
        sys.exit(f"the run with {moment} ended with {status}")

run()
shutil.copytree(output / "model", output.with_name("whole"))
shutil.rmtree(output)
left = {}
for moment in sys.argv[4:]:
    run(moment)
    left[moment] = sorted(path.name for path in output.glob("*.incomplete"))
run()
print(json.dumps(left))
"""


def killed_and_continued(script: str, argv: list[str], output: Path, moments: Sequence[str]) -> dict[str, list[str]]:
    """What is unfinished in the output folder after each kill of a script's module.

    `output` is the folder that `argv` names, with --resume; beside it `whole` becomes the model of a run in one piece.
    """
    paths = [str(EXAMPLES), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-c", KILLER, script, json.dumps(argv), str(output), *moments],
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def same_weights(output: Path) -> bool:
    """Whether the killed run and the whole one ended with the same file of weights."""
    killed, whole = (folder / "model.safetensors" for folder in (output / "model", output.with_name("whole")))
    return killed.read_bytes() == whole.read_bytes()
