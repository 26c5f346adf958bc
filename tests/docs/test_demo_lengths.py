"""The demos' two lengths: the short one, and with `--full` the one that takes its time."""

import sys
from pathlib import Path
from typing import Any

import demo_classification
import demo_detection
import demo_segmentation
import pytest


class Trained(Exception):
    """What `train` was called with."""


def train(*arguments: Any) -> None:
    raise Trained(*arguments)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def run(demo: Any, *flags: str) -> tuple[Any, ...]:
        monkeypatch.setattr(demo, "train", train)
        monkeypatch.setattr(sys, "argv", ["demo", "--default_heap", "--output_dir", str(tmp_path), *flags])
        with pytest.raises(Trained) as called:
            demo.main()
        return called.value.args

    return run


@pytest.mark.parametrize("flags", [(), ("--full",)], ids=["short", "full"])
@pytest.mark.parametrize("demo", [demo_segmentation, demo_detection], ids=["segmentation", "detection"])
def test_scenes(demo: Any, flags: tuple[str, ...], trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, scenes and number of steps are one recipe's."""
    recipe = demo.FULL if flags else demo.SHORT
    some = demo.scenes(3, held_out=False, seed=0, layout=recipe.layout)
    asked = []
    monkeypatch.setattr(demo, "scenes", lambda count, **kind: asked.append((count, kind["layout"])) or some)
    pixel_values, labels, used, steps = trained(demo, *flags)
    assert asked == [(recipe.scenes, recipe.layout)]
    assert pixel_values.shape == (3, 3, recipe.layout.side, recipe.layout.side) and len(labels) == 3
    assert used is recipe and steps == recipe.steps
    assert trained(demo, *flags, "--steps", "7")[-1] == 7


def test_epochs(trained: Any) -> None:
    assert trained(demo_classification)[-1] == demo_classification.SHORT.epochs
    assert trained(demo_classification, "--full")[-1] == demo_classification.FULL.epochs == 40
    assert trained(demo_classification, "--epochs", "2")[-1] == 2
    assert (demo_segmentation.FULL.steps, demo_detection.FULL.steps) == (1200, 1100)
