"""The README is true: its code runs, its tables are rendered, its commands exist. So is the demo."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from paths import ROOT
from PIL import Image
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from transformers import AutoModelForImageClassification

import hf_pvt
from benchmarks.readme import TABLES, render

README = (ROOT / "README.md").read_text()


def code_of(document: str) -> str:
    """All Python blocks, one after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", document, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The README's code, run in a folder with the published checkpoint that it speaks of and a demo of one step."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("readme")
        patch.chdir(folder)
        torch.save(reference.checkpoint("pvt-v2-b0"), "pvt_v2_b0.pth")
        names: dict[str, Any] = {"folder": folder}
        names["demo"] = run("demo_segmentation.py", "--steps", 1, "--output_dir", folder / "out/demo")
        exec(code_of(README), names)
        yield names


@pytest.mark.processes
def test_code(namespace: dict[str, Any]) -> None:
    assert namespace["classifier"].model is namespace["model"]
    scores = namespace["classifier"](namespace["photo"], top_k=3)
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    assert {score["label"] for score in scores} <= set(hf_pvt.imagenet_1k_id2label().values())
    assert namespace["loss"].item() > 0
    assert {result["label"] for result in namespace["results"]} <= {"background", *(f"digit {n}" for n in range(10))}
    assert namespace["labels"].shape == (64, 64)
    assert (namespace["folder"] / "out/overlay.png").is_file()
    assert set(namespace["terms"]) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    assert namespace["found"]["boxes"].shape == (len(namespace["found"]["scores"]), 4)
    assert (namespace["folder"] / "out/detections.png").is_file()


@pytest.mark.processes
def test_ecosystem(namespace: dict[str, Any]) -> None:
    """After the README: each library gets the pretrained weights, and gives numbers that depend on them."""
    names = dict(namespace)
    exec(code_of((ROOT / "docs" / "ecosystem.md").read_text()), names)
    pretrained = AutoModelForImageClassification.from_pretrained(names["folder"] / "out/pvt-v2-b0-imagenet").eval()
    assert names["probe"].score(names["vectors"], [0] * 11 + [1] * 11) > 0.9
    for model in (names["detr"], names["mask2former"]):
        weights = names["pyramid_of"](model).state_dict()
        torch.testing.assert_close(weights, pretrained.base_model.state_dict(), rtol=0, atol=0)
    adapted = names["adapted"].base_model.state_dict()
    torch.testing.assert_close(adapted, pretrained.base_model.state_dict(), rtol=0, atol=0)  # as LoRA starts
    assert names["trainer"].state.global_step == 2
    for variant, with_adapters in names["of_families"].items():
        check_adapters(variant, with_adapters)
    check_decoder_maps(names["encoder"], names["maps"])
    assert (names["folder"] / "out/trainer/model/model.safetensors").is_file()
    with torch.no_grad():
        expected = pretrained(names["images"]).logits.numpy()
    np.testing.assert_allclose(names["scores"], expected, atol=1e-5 * abs(expected).max())


@torch.no_grad()
def check_adapters(variant: str, with_adapters: nn.Module) -> None:
    """Every linear of the blocks has one, and nothing else; trained ones act as when merged."""
    adapted = {name.partition(".lora_A")[0] for name, _ in with_adapters.named_parameters() if ".lora_A." in name}
    linears = {
        name.removesuffix(".base_layer")
        for name, module in with_adapters.named_modules()
        if ".blocks." in name and type(module) is nn.Linear and ".lora_" not in name
    }
    assert adapted == linears and len(adapted) == 6 * sum(hf_pvt.VARIANTS[variant].architecture["depths"])
    torch.manual_seed(0)
    for name, parameter in with_adapters.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(std=0.1)
    image = torch.randn(1, 3, 224, 224)
    with_adapters.eval()
    actual = with_adapters(image).logits
    with with_adapters.disable_adapter():
        without = with_adapters(image).logits
    merged = with_adapters.merge_and_unload()(image).logits
    assert (merged - actual).norm() < 1e-5 * actual.norm()
    assert (without - actual).norm() > 1e-2 * actual.norm()


@torch.no_grad()
def check_decoder_maps(encoder: nn.Module, maps: list[torch.Tensor]) -> None:
    """Six maps, each half the one before; the last four are the backbone's, and a feature pyramid takes them."""
    sides = [(64 >> level, 96 >> level) for level in range(6)]
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (1, channels, *side) for channels, side in zip(encoder.out_channels, sides, strict=True)
    ]
    for actual, expected in zip(encoder(maps[0])[2:], encoder.backbone(maps[0]).feature_maps, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    decoder = FeaturePyramidNetwork(encoder.out_channels[2:], 16)
    decoded = decoder({str(level): feature_map for level, feature_map in enumerate(maps[2:])})
    assert [tuple(feature_map.shape) for feature_map in decoded.values()] == [(1, 16, *side) for side in sides[2:]]


def test_tables() -> None:
    """The tables are what the variants and the last benchmarks say; `make readme` renders them."""
    for document in TABLES:
        assert render(document) == document.read_text(), document


def test_commands() -> None:
    """Every `make` target that is named exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/ecosystem.md"):
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


# `make demo` runs the demos whole; they fail where they miss their goal.


@pytest.mark.processes
def test_demo_classification(tmp_path: Path) -> None:
    """One epoch is not enough: it saves, loads, draws, and says so."""
    result = run("demo_classification.py", "--epochs", 1, "--output_dir", tmp_path)
    assert percentage("test accuracy", result.stdout) < 95
    assert result.returncode == 1 and "the accuracy is below 95%" in result.stderr
    assert {file.name for file in (tmp_path / "digits-pvt-v2").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    assert colours_of(tmp_path / "demo.png") > 1000


@pytest.mark.processes
def test_demo_segmentation(namespace: dict[str, Any]) -> None:
    """One step teaches nothing: it saves, loads, draws, and says that it is not enough."""
    result, folder = namespace["demo"], namespace["folder"] / "out/demo"
    assert percentage("mean IoU", result.stdout) < 35
    assert result.returncode == 1 and "the mean IoU is below 35%" in result.stderr
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_p2t.py"} <= {
        file.name for file in (folder / "digit-scenes-p2t").iterdir()
    }
    assert colours_of(folder / "segmentation.png") > 1000


@pytest.mark.processes
def test_demo_detection(tmp_path: Path) -> None:
    """Two steps teach nothing: it saves, loads, draws, and says that each of its three numbers is too low."""
    result = run("demo_detection.py", "--steps", 2, "--output_dir", tmp_path)
    names = ("box AP50", "mask AP50", "digits found by the pipeline")
    assert max(percentage(name, result.stdout) for name in names) < 10
    assert result.returncode == 1 and f"{' and '.join(names)} below 35%" in result.stderr
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_mask_rcnn.py"} <= {
        file.name for file in (tmp_path / "digit-scenes-mask-rcnn").iterdir()
    }
    assert colours_of(tmp_path / "detection.png") > 1000
