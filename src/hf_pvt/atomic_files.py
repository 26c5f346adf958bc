"""Files and folders that are whole or not there."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def unfinished(path: Path) -> Path:
    """A file's name until it is whole: two processes, or two runs at once, do not write to the same."""
    return path.with_suffix(f".{socket.gethostname()}-{os.getpid()}.incomplete")


def write_whole(path: Path, content: bytes) -> None:
    """A file at once, for whoever looks."""
    aside = unfinished(path)
    aside.write_bytes(content)
    aside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """The same of what people read."""
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def written_whole(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `output` when the block ends well, and vanishes when it does not.

    Raises:
        FileExistsError: `output` exists, and `overwrite` is not set.
        OSError: the disk is full or the folder cannot be written.
    """
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another folder, or replace it with --overwrite.")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        whole = temporary / "whole"
        whole.mkdir()
        try:
            yield whole
        except SafetensorError as error:  # what a full disk is called there
            raise OSError(f"cannot write {output}: {error}") from error
        if output.exists():
            output.rename(temporary / "replaced")
        whole.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
