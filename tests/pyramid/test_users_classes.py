"""Classes that users derive from ours: their files stay with them.

This module stands for the user's file. RECOGNISED is a string of it that must not turn up in any folder.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import P2T, PVT_V2, RETINANET, tiny_detector
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageClassification
from transformers.utils import logging

import hf_pvt
from hf_pvt.detection.image_processing_detection import PvtDetectionImageProcessor
from hf_pvt.images.image_processing_pvt import PvtSegmentationImageProcessor, PvtSegmentationImageProcessorPil

RECOGNISED = "a string of the user's file"
DERIVED: dict[str, tuple[type, Any]] = {
    "segmenter": (hf_pvt.PvtV2ForSemanticSegmentation, PVT_V2.tiny_config),
    "classifier": (hf_pvt.P2tForImageClassification, P2T.tiny_config),
    "detector": (hf_pvt.RetinaNetForObjectDetection, lambda: tiny_detector(RETINANET).config),
    "segmentation processor": (PvtSegmentationImageProcessor, None),
    "segmentation processor on Pillow": (PvtSegmentationImageProcessorPil, None),
    "detection processor": (PvtDetectionImageProcessor, None),
}


def derived(kind: str) -> Any:
    """An instance of a class of this module, derived from ours."""
    base, config = DERIVED[kind]
    cls = type("Mine", (base,), {"__module__": __name__})
    return cls(config()) if config else cls()


def saved_config(folder: Path) -> dict[str, Any]:
    (file,) = (path for path in folder.glob("*config.json"))
    return json.loads(file.read_text())


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What Transformers' loggers say."""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    return caplog


@pytest.mark.parametrize("kind", DERIVED)
def test_users_file_is_not_saved(kind: str, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    """No code, no auto_map that nothing could load, one sentence; and the class itself opens the folder."""
    mine = derived(kind)
    mine.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.py"))
    assert not any(RECOGNISED.encode() in path.read_bytes() for path in tmp_path.iterdir())
    assert "auto_map" not in saved_config(tmp_path)
    (said,) = [message for message in warnings.messages if "carries no code" in message]
    assert "Mine.from_pretrained" in said and __name__ in said
    again = type(mine).from_pretrained(tmp_path)
    if isinstance(mine, torch.nn.Module):
        states = zip(mine.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(ours.equal(theirs) for ours, theirs in states)
    else:
        assert again.to_dict() == mine.to_dict()


def test_folder_of_ours_saved_again(tmp_path: Path) -> None:
    """What the folder's configuration said of our code does not stay with a user's class."""
    hf_pvt.P2tForImageClassification(P2T.tiny_config()).save_pretrained(tmp_path / "ours")
    assert "auto_map" in saved_config(tmp_path / "ours")
    mine = type("Mine", (hf_pvt.P2tForImageClassification,), {"__module__": __name__})
    mine.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "mine")
    assert "auto_map" not in saved_config(tmp_path / "mine")


@pytest.mark.parametrize("kind", ["classifier", "detector", "detection processor"])
def test_registered_class_is_saved(kind: str, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    """As Transformers does it: the file of the class, and an auto_map that names it; ours says nothing."""
    mine = derived(kind)
    auto_class = {"classifier": "AutoModelForImageClassification", "detector": "AutoModelForObjectDetection"}.get(
        kind, "AutoImageProcessor"
    )
    type(mine).register_for_auto_class(auto_class)
    mine.save_pretrained(tmp_path)
    module = __name__.rpartition(".")[2]
    assert saved_config(tmp_path)["auto_map"] == {auto_class: f"{module}.Mine"}
    assert (tmp_path / f"{module}.py").read_bytes() == Path(__file__).read_bytes()
    assert not [message for message in warnings.messages if "carries no code" in message]


def test_registration_is_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers registers whatever class it opens from a folder's own code."""
    monkeypatch.setattr(hf_pvt.P2tForImageClassification, "_auto_class", "AutoModelForImageClassification")
    derived("classifier").save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.py")) and "auto_map" not in saved_config(tmp_path)


def test_users_configuration(tmp_path: Path) -> None:
    """A configuration of the user's in a model of ours: the folder opens with our classes."""
    config_class = type("MineConfig", (hf_pvt.P2tConfig,), {"__module__": __name__})
    hf_pvt.P2tForImageClassification(config_class(**P2T.tiny_config().to_diff_dict())).save_pretrained(tmp_path)
    assert saved_config(tmp_path)["auto_map"]["AutoConfig"] == "configuration_p2t.P2tConfig"
    assert saved_config(tmp_path)["auto_map"]["AutoModel"] == "modeling_p2t.P2tModel"
    model = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model).__name__ == "P2tForImageClassification"
    assert not [path for path in tmp_path.rglob("*.py") if RECOGNISED in path.read_text()]


def test_class_that_fsdp_makes(tmp_path: Path) -> None:
    """FSDP2 puts a class of PyTorch's before ours, whose module is PyTorch's: the folder carries ours all the same."""
    model = hf_pvt.P2tForImageClassification(P2T.tiny_config())
    model.save_pretrained(tmp_path / "plain")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model)
        model.save_pretrained(tmp_path / "sharded", state_dict=weights)
    finally:
        distributed.destroy_process_group()
    assert type(model).__module__.startswith("torch.")
    plain, sharded = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("plain", "sharded")
    )
    assert plain == sharded


SCRIPT = f'''
"""{RECOGNISED}"""
import hf_pvt

class Mine(hf_pvt.PvtV2ForSemanticSegmentation):
    pass

class MineProcessor(hf_pvt.images.image_processing_pvt.PvtSegmentationImageProcessor):
    pass

config = hf_pvt.PvtV2Config(hidden_sizes=(8, 16, 20, 32), depths=(1, 1, 1, 1))
Mine(config).save_pretrained("saved")
MineProcessor().save_pretrained("saved")
'''


@pytest.mark.processes
@pytest.mark.parametrize("where", ["script", "notebook"])
def test_users_script(where: str, tmp_path: Path) -> None:
    """A real __main__: a file, or, as in a notebook, none."""
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, *(["train.py"] if where == "script" else ["-c", SCRIPT])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any(RECOGNISED.encode() in path.read_bytes() for path in (tmp_path / "saved").iterdir())
    assert result.stderr.count("carries no code") == 2
