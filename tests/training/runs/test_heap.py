"""Which script asks for freed memory to be kept between steps; what that does is in tests/machine/test_heap.py."""

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

import demo_classification
import demo_detection
import demo_segmentation
import embed_images
import evaluate_model
import pytest
import run_image_classification
import script_runs

from hf_pvt.training import heap, launch


class Asked(Exception):
    """`keep_large_blocks` was called."""


class Passed(Exception):
    """What comes after it was reached."""


def raising(error: type[Exception]) -> Any:
    def function(*args: Any, **kwargs: Any) -> None:
        raise error

    return function


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the C library is another, nothing is called."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", raising(Asked))
    assert heap.keep_large_blocks.__wrapped__() is False


# Each script, where it gets the function, what it does next, and the flags that take it there.
SCRIPTS = {
    "train": (run_image_classification, launch, "share_of_cores", ["--train_dir", "x"]),
    "evaluate": (evaluate_model, evaluate_model, "lost_processes", ["model", "--validation_dir", "x"]),
    "embed": (embed_images, embed_images, "lost_processes", ["--model_name_or_path", "model"]),
    "demo_classification": (demo_classification, demo_classification, "digits", []),
    "demo_segmentation": (demo_segmentation, demo_segmentation, "scenes", []),
    "demo_detection": (demo_detection, demo_detection, "scenes", []),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each asks for it at its start, on a CPU, unless it is told not to."""
    script, caller, following, words = SCRIPTS[name]
    monkeypatch.setattr(caller, "keep_large_blocks", raising(Asked))
    monkeypatch.setattr(caller, following, raising(Passed))
    for flags, reached in (([], Asked), (["--default_heap"], Passed)):
        monkeypatch.setattr(sys, "argv", [name, *words, "--output_dir", str(tmp_path), *flags])
        script_runs.reset()
        with pytest.raises(reached):
            script.main()
    script_runs.reset()
