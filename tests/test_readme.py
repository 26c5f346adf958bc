"""The README is true: its code runs, its tables are rendered, its commands exist. So is the demo."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from PIL import Image

from benchmarks.readme import TABLES, render

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
    assert namespace["loss"].item() > 0
    assert {result["label"] for result in namespace["results"]} <= set(namespace["id2label"].values())
    assert namespace["labels"].shape == (namespace["photo"].height, namespace["photo"].width)
    assert (tmp_path / "out/overlay.png").is_file()
    assert len(blocks) == 9


@pytest.mark.parametrize("document", TABLES, ids=lambda document: str(document.relative_to(ROOT)))
def test_tables(document: Path) -> None:
    """The tables are what the variants and the last benchmarks say; `make readme` renders them."""
    assert render(document) == document.read_text()


def test_commands() -> None:
    """Every `make` target that is named exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / document).read_text(), flags=re.MULTILINE))
        assert named <= targets


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples" / script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the tests share the cores
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def percentage(name: str, output: str) -> float:
    found = re.search(rf"{name}: ([\d.]+)%", output)
    assert found is not None
    return float(found[1])


def colours_of(path: Path) -> int:
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(2**24))


# `make test` runs the demos whole before these tests; they fail where they miss their goal.


def test_demo_classification(tmp_path: Path) -> None:
    """A shortened run of the main job learns, saves, loads and draws."""
    result = run("demo_classification.py", "--epochs", 12, "--output_dir", tmp_path)
    assert percentage("test accuracy", result.stdout) >= 97
    assert result.returncode == 0, result.stderr
    assert {file.name for file in (tmp_path / "digits-pvt-v2").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    assert colours_of(tmp_path / "demo.png") > 1000


def test_demo_segmentation(tmp_path: Path) -> None:
    """Less than half of the segmenter's run: it has learnt most of the digits, and says that it is not enough."""
    result = run("demo_segmentation.py", "--steps", 400, "--output_dir", tmp_path)
    assert 35 <= percentage("mean IoU", result.stdout) < 60
    assert result.returncode == 1 and "the mean IoU is below 60%" in result.stderr
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_p2t.py"} <= {
        file.name for file in (tmp_path / "digit-scenes-p2t").iterdir()
    }
    assert colours_of(tmp_path / "segmentation.png") > 1000
