"""Checkpoints that are whole or not there: written aside, sealed by a manifest, renamed, checked before they are read.

    output_dir/checkpoint-<step>              whole: complete.json lists every file with its size and hash
    output_dir/checkpoint-<step>.incomplete   being written, or being deleted, or left by a run that was killed

The newest is the one that was written last, as its manifest's `number` tells: a run that continues from an earlier one
leaves checkpoints of later steps behind, which are not its own.

All processes of a run have to see the same `output_dir`.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_model
from torch import nn

MANIFEST = "complete.json"
INCOMPLETE = ".incomplete"

logger = get_logger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or not be continued from."""


def save(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    state: dict[str, Any],
    keep: int | None = None,
    modules: Mapping[str, nn.Module] = MappingProxyType({}),
) -> Path:
    """Write `checkpoint-<step>`, then remove all but the newest `keep`. Every process has to call this.

    Model, optimizer and scaler are what `accelerator` has prepared.

    Args:
        state: what the manifest says beside the files, plain values: `latest` gives it back.
        modules: more weights to save, by name. (Accelerate reads objects registered with it as pickles.)

    Raises:
        CheckpointError: it could not be written, as on a full disk. What was there before is untouched, and nothing
            half-written is left.
    """
    path = output_dir / f"checkpoint-{step}"
    aside = path.with_name(path.name + INCOMPLETE)
    try:
        if accelerator.is_main_process:
            _remove(path)  # a torn one, or the run would have continued from it
            _remove(aside)
            aside.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(aside))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for name, module in modules.items():
                save_model(module, str(aside / f"{name}.safetensors"))
            _seal(aside, {"step": step, "number": 1 + max(map(_number, _sealed(output_dir)), default=0), **state})
            aside.rename(path)
            _sync(output_dir)
            _prune(output_dir, keep)
        accelerator.wait_for_everyone()
    except Exception as error:  # accelerate, PyTorch and safetensors each have their own for a full disk
        shutil.rmtree(aside, ignore_errors=True)
        last = latest(output_dir)
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {output_dir} ({reason}); "
            + (f"{last[0].name} is whole: make room and --resume." if last else "there is no earlier one: make room.")
        ) from error
    return path


def load(accelerator: Accelerator, path: Path, modules: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
    """Read what `save` wrote, as tensors and plain values only. DeepSpeed's and FSDP's shards are theirs to read."""
    accelerator.load_state(str(path))
    for name, module in modules.items():
        load_model(module, path / f"{name}.safetensors")


def latest(output_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its manifest; newer ones that are torn are named in a warning."""
    for path in _all(output_dir):
        problem = torn(path)
        if problem is None:
            return path, _read_manifest(path)
        logger.warning(f"{path} is passed over: {problem}.")
    return None


def agreed(accelerator: Accelerator, output_dir: Path, chosen: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """As `latest`, or the one that was `chosen`, found by the main process for all.

    Raises:
        CheckpointError: the chosen one is torn or not there.
    """
    found: list[Any] = [None]
    if accelerator.is_main_process:
        if chosen is None:
            found = [latest(output_dir)]
        else:
            problem = torn(chosen)
            found = [problem if problem else (chosen, _read_manifest(chosen))]
    broadcast_object_list(found)
    if isinstance(found[0], str):
        raise CheckpointError(f"{chosen} cannot be resumed from: {found[0]}.")
    return found[0]


def torn(path: Path) -> str | None:
    """What is wrong with a checkpoint, None where every file is as it was written."""
    try:
        files = _read_manifest(path)["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError):
        return f"its {MANIFEST} is damaged"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
        if _digest(file) != digest:
            return f"{name} is not what was written"
    return None


def changes(
    manifest: dict[str, Any], identity: dict[str, Any], path: Path, allowed: Set[str] = frozenset()
) -> dict[str, tuple[Any, Any]]:
    """The arguments in `allowed` that a run with `identity` has otherwise than the one that was saved: before and now.

    Raises:
        CheckpointError: naming the others that differ, which change the data's order or the schedule.
    """
    before = manifest["identity"]
    names = sorted(before.keys() | identity.keys())
    found = {name: (before.get(name), identity.get(name)) for name in names if before.get(name) != identity.get(name)}
    refused = sorted(found.keys() - allowed)
    if refused:
        listing = "; ".join(f"{name} was {found[name][0]} and is {found[name][1]}" for name in refused)
        raise CheckpointError(
            f"{path} belongs to another run: {listing}. Resume with the same arguments, or start anew in another "
            "--output_dir."
        )
    return found


def _all(output_dir: Path) -> list[Path]:
    """Folders with a checkpoint's name, the newest first; before them those whose manifest does not say."""
    paths = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(paths, key=lambda path: (_number(path), int(path.name.split("-")[1])), reverse=True)


def _sealed(output_dir: Path) -> list[Path]:
    return [path for path in _all(output_dir) if _number(path) < math.inf]


def _number(path: Path) -> float:
    """The place of a checkpoint in the order of writing; infinity where its manifest cannot be read."""
    try:
        return _read_manifest(path)["number"]
    except (OSError, ValueError, KeyError):
        return math.inf


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder when all of its files are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    manifest["files"] = {str(p.relative_to(folder)): (p.stat().st_size, _digest(p)) for p in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _prune(output_dir: Path, keep: int | None) -> None:
    for path in _sealed(output_dir)[keep:] if keep else []:
        _remove(path)
    for path in output_dir.glob(f"checkpoint-*{INCOMPLETE}"):
        _remove(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that none that is half deleted looks whole."""
    if path.exists() and path.suffix != INCOMPLETE:
        aside = path.with_name(path.name + INCOMPLETE)
        shutil.rmtree(aside, ignore_errors=True)
        path = path.rename(aside)
    shutil.rmtree(path, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
