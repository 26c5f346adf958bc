"""What a test without a marker may do."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_quick_tier_starts_no_process() -> None:
    for start in (subprocess.run, subprocess.Popen, subprocess.check_output):
        with pytest.raises(AssertionError, match="mark it processes"):
            start([sys.executable, "-c", ""])


def test_a_quick_test_ends_after_20_seconds(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("timeout").args == (20,)


@pytest.mark.processes
def test_others_may_start_one(request: pytest.FixtureRequest) -> None:
    assert subprocess.run([sys.executable, "-c", ""]).returncode == 0
    assert request.node.get_closest_marker("timeout").args == (600,)


def test_no_test_imports_another() -> None:
    """What two need is in tests/support, so that a file can move."""
    files = list(Path(__file__).parents[1].rglob("test_*.py"))
    assert len(files) > 80
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("from test_", "import test_"))], file
