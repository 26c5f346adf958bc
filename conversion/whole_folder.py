"""A folder that is there whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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
