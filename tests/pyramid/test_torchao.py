"""docs/ecosystem.md's 8-bit weights: the model computes with their values, whichever of its paths it takes.

torchao is installed into a folder of this test: beside the other packages, every import of Transformers would warn.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT, SUPPORT

DOCUMENT = ROOT / "docs" / "ecosystem.md"
PROGRAM = SUPPORT / "quantize_with_torchao.py"


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, dict[str, float]]:
    """What PROGRAM prints, in a process that has torchao beside the other packages."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages", "torchao"]
    subprocess.run(pip, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), str(SUPPORT)])}
    process = subprocess.run(
        [sys.executable, PROGRAM], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    printed: dict[str, dict[str, float]] = json.loads(process.stdout.splitlines()[-1])
    return printed


def test_weights_of_8_bits(changes: dict[str, dict[str, float]]) -> None:
    """All linears; what they change is their rounding, and a model of the rounded values gives the same."""
    lines = [line for line in PROGRAM.read_text().splitlines() if "torchao" in line or "quantize_(model" in line]
    assert [line.strip() for line in lines[1:]] == [
        line for line in DOCUMENT.read_text().splitlines() if "torchao.q" in line or "quantize_(model" in line
    ]
    assert set(changes) == {"PVT", "PVTv2", "PVTv2-Li", "P2T"}
    for change in changes.values():
        assert change["quantized"] == change["linears"] > 0
        assert 1e-5 < change["of_rounding"] < 0.1
        assert change["of_values"] < 5e-6
