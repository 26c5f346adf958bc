"""The README is true: its code runs, its tables are rendered, its commands exist. So is the demo."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from PIL import Image

from benchmarks.readme import render

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks, one after another, in an empty folder beside the published checkpoint they speak of."""
    monkeypatch.chdir(tmp_path)
    torch.save(reference.checkpoint("pvt-v2-b0"), "pvt_v2_b0.pth")
    namespace: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(block, namespace)
    assert type(namespace["model"]).__module__ == "hf_pvt.modeling_pvt_v2"
    scores = [result["score"] for result in namespace["classifier"](namespace["photo"], top_k=3)]
    assert scores == sorted(scores, reverse=True)
    assert len(blocks) == 5


def test_tables() -> None:
    """The tables are what the variants and the last benchmark say; `make readme` renders them."""
    assert render(README) == README


def test_commands() -> None:
    """Every `make` target that is named exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / document).read_text(), flags=re.MULTILINE))
        assert named <= targets


def test_demo(tmp_path: Path) -> None:
    """A shortened run of the main job learns, saves, loads and draws."""
    command = [sys.executable, ROOT / "examples/demo.py", "--epochs", "12", "--output_dir", tmp_path]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    accuracy = re.search(r"test accuracy: ([\d.]+)%", output)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert {file.name for file in (tmp_path / "digits-pvt-v2").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (1500, 900)
        assert len(picture.convert("RGB").getcolors(2**24)) > 1000
