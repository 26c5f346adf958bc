"""The guide for medical images: its four commands, on a stained tissue whose nuclei are marked with 255."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from paths import ROOT
from PIL import Image
from script_runs import reset
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu
from sklearn.metrics import f1_score

GUIDE = (ROOT / "examples" / "README.md").read_text()
GUIDE = GUIDE[GUIDE.index("### Medical images") : GUIDE.index("## Evaluate")]
COMMANDS = re.findall(r"^```bash\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
# What makes them a matter of seconds.
SMALL = {
    "run_semantic_segmentation": "--shorter_side 64 --longer_side 128 --max_steps 12 --per_device_train_batch_size 4 "
    "--learning_rate 1e-3 --warmup_steps 0 --layer_decay 1 --dataloader_num_workers 0 --overlays 1",
    "evaluate_model": "--dataloader_num_workers 0 --unit_size 2",
    "embed_images": "--num_workers 1",
}
TILE = 64
HELD_OUT = 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiles of a slide, the last of which are held out, and are the new images too."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    slide = immunohistochemistry()[:256, :384]
    stain = rgb2hed(slide)[..., 2]  # of the brown nuclei
    nuclei = stain > threshold_otsu(stain)
    corners = [(top, left) for top in range(0, 256, TILE) for left in range(0, 384, TILE)]
    for number, (top, left) in enumerate(corners):
        place = (slice(top, top + TILE), slice(left, left + TILE - 8 * (number % 2)))  # of two sizes
        data = "held-out-cells" if number >= len(corners) - HELD_OUT else "cells"
        for part, pixels in (("images", slide[place]), ("masks", (255 * nuclei[place]).astype(np.uint8))):
            path = tmp_path / data / part / f"tile-{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "new-cells").symlink_to(tmp_path / "held-out-cells" / "images")
    torch.save(reference.checkpoint("pvt-v2-b0"), tmp_path / "pvt_v2_b0.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_four_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They run as they stand; the Dice that is printed is that of the PNG files that are drawn."""
    names = [match[1] for block in COMMANDS[1:] if (match := re.search(r"(\w+)\.py", block))]
    assert len(COMMANDS) == 4 and names == list(SMALL)
    subprocess.run(["bash", "-c", COMMANDS[0]], check=True)
    for name, block in zip(names, COMMANDS[1:], strict=True):
        words = shlex.split(block.replace("\\\n", " "))
        assert words[:2] == ["python", f"examples/{name}.py"]
        reset()
        monkeypatch.setattr(sys, "argv", [name, *words[2:], *SMALL[name].split()])
        importlib.import_module(name).main()
    printed = capsys.readouterr().out

    masks = sorted((folder / "held-out-cells" / "masks").iterdir())
    drawn = folder / "out" / "cells-masks" / "_masks"
    assert [path.name for path in sorted(drawn.iterdir())] == [mask.name for mask in masks]
    pairs = [(np.array(Image.open(mask)), np.array(Image.open(drawn / mask.name))) for mask in masks]
    assert {truth.shape for truth, _ in pairs} == {(TILE, TILE), (TILE, TILE - 8)}
    assert all(truth.shape == found.shape and {*np.unique(found)} <= {0, 1} for truth, found in pairs)
    truth = np.concatenate([truth.ravel() == 255 for truth, _ in pairs])
    found = np.concatenate([found.ravel() == 1 for _, found in pairs])
    dice = [f1_score(truth, found, pos_label=label) for label in (0, 1)]
    metrics = json.loads((folder / "out" / "cells-measured" / "results.json").read_text())["metrics"]
    assert metrics["examples"] == HELD_OUT
    assert metrics["per_category_dice"] == pytest.approx(dice, abs=1e-12)
    assert metrics["mean_dice"] == pytest.approx(np.mean(dice), abs=1e-12)
    assert f"mean_dice {np.mean(dice):.4f}" in printed
    assert f"per_category_dice: background {dice[0]:.4f}, nucleus {dice[1]:.4f}" in printed
    assert dice[1] > 0.5  # it has learnt something
