"""Converted folders in a virtual environment that has Transformers and not this package."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion_runs import checkpoint, run, tiny
from families import (
    ATSS,
    CASCADE_MASK_RCNN,
    FASTER_RCNN,
    GFL,
    MASK_RCNN,
    P2T,
    PVT,
    PVT_V2,
    RETINANET,
    SPARSE_RCNN,
    tiny_detector,
)
from transformers import AutoImageProcessor

import hf_pvt

MODELS = {
    "pvt": (PVT, "classifier"),
    "pvt_v2": (PVT_V2, "classifier"),
    "p2t": (P2T, "classifier"),
    "pvt_fpn": (PVT, "segmenter"),
    "pvt_v2_fpn": (PVT_V2, "segmenter"),
    "p2t_fpn": (P2T, "segmenter"),
}
REMOTE = ("p2t", "pvt_fpn", "pvt_v2_fpn", "p2t_fpn")

OPEN = """
import importlib.util, sys
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation, pipeline

assert importlib.util.find_spec("hf_pvt") is None
folder, remote = sys.argv[1], sys.argv[2].split(",")
images = torch.load(f"{folder}/images.pt", weights_only=True)
found = {}
for name in sys.argv[3].split(","):
    path, trust = f"{folder}/{name}", {"trust_remote_code": True} if name in remote else {}
    task = "image-segmentation" if name.endswith("fpn") else "image-classification"
    auto_class = AutoModelForSemanticSegmentation if name.endswith("fpn") else AutoModelForImageClassification
    refusal = ""
    if name in remote:
        try:
            auto_class.from_pretrained(path, trust_remote_code=False)
        except ValueError as error:
            refusal = str(error)
    model, problems = auto_class.from_pretrained(path, output_loading_info=True, **trust)
    processor = AutoImageProcessor.from_pretrained(path, **trust)
    photo = f"{path}/images/{'china' if name.endswith('fpn') else 'cat'}.jpg"
    answers = pipeline(task, model=path, **trust)(photo)
    with torch.no_grad():
        logits = model.eval()(images).logits
    found[name] = {
        "module": type(model).__module__,
        "problems": {kind: sorted(keys) for kind, keys in problems.items()},
        "logits": logits,
        "processor": type(processor).__name__,
        "answers": [answer["label"] for answer in answers],
        "sizes": [answer["mask"].size for answer in answers if "mask" in answer],
        "refusal": refusal,
    }
torch.save(found, f"{folder}/found.pt")
"""


def run_elsewhere(folder: Path, script: str, *arguments: str) -> None:
    """In the environment of `folder`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [folder / "venv" / "bin" / "python", "-c", script, *arguments],
        env=environment | {"HF_HOME": str(folder / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The folders that convert.py writes, opened in the other environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, (family, kind) in MODELS.items():
        run(checkpoint(tiny(family, kind), folder / f"{name}.pth"), folder / name)
    torch.manual_seed(0)
    torch.save(torch.randn(1, 3, 64, 64), folder / "images.pt")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    # Everything that is installed here but this package, whose own .pth file is not read from there.
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    (Path(packages) / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    run_elsewhere(folder, OPEN, str(folder), ",".join(REMOTE), ",".join(MODELS))
    return {"folder": folder, "found": torch.load(folder / "found.pt", weights_only=True)}


@pytest.mark.parametrize("name", MODELS)
def test_opens_elsewhere(name: str, elsewhere: dict[str, Any]) -> None:
    """No key missing or unknown, the same logits, and the pipeline answers; native classes without any trust."""
    found = elsewhere["found"][name]
    assert not any(found["problems"].values()), found["problems"]
    family, kind = MODELS[name]
    model = tiny(family, kind)
    with torch.no_grad():
        expected = model(torch.load(elsewhere["folder"] / "images.pt", weights_only=True)).logits
    # The second epsilon, which Transformers' own classes lack, moves logits by a little.
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5 if name in REMOTE else 1e-4)
    where = "transformers_modules." if name in REMOTE else "transformers.models."
    assert found["module"].startswith(where)
    assert set(found["answers"]) <= set(model.config.id2label.values()) and found["answers"]
    assert set(found["sizes"]) == ({(640, 427)} if kind == "segmenter" else set())
    assert ("trust_remote_code=True" in found["refusal"]) == (name in REMOTE)


@pytest.mark.parametrize("name", MODELS)
def test_processor_elsewhere(name: str, elsewhere: dict[str, Any]) -> None:
    ours = AutoImageProcessor.from_pretrained(elsewhere["folder"] / name)
    assert elsewhere["found"][name]["processor"] == type(ours).__name__


def test_only_what_is_needed_carries_code(elsewhere: dict[str, Any]) -> None:
    for name in MODELS:
        config = json.loads((elsewhere["folder"] / name / "config.json").read_text())
        assert ("auto_map" in config) == (name in REMOTE)
        assert bool(list((elsewhere["folder"] / name).glob("*.py"))) == (name in REMOTE)


def test_the_interpreter_is_this_one(elsewhere: dict[str, Any]) -> None:
    """The other environment differs by this package alone."""
    prefix = subprocess.run(
        [elsewhere["folder"] / "venv" / "bin" / "python", "-c", "import sys; print(sys.base_prefix, sys.version)"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert prefix == f"{sys.base_prefix} {sys.version}"


DETECTORS = {
    "retinanet": (RETINANET, "p2t"),
    "mask_rcnn": (MASK_RCNN, "pvt_v2"),
    "faster_rcnn": (FASTER_RCNN, "swin"),
    "atss": (ATSS, "pvt"),
    "gfl": (GFL, "pvt_v2"),
    "cascade_mask_rcnn": (CASCADE_MASK_RCNN, "pvt_v2"),
    "sparse_rcnn": (SPARSE_RCNN, "p2t"),
}

OPEN_DETECTORS = """
import importlib.util, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, AutoModelForObjectDetection, pipeline

assert importlib.util.find_spec("hf_pvt") is None
folder, found = sys.argv[1], {}
images = torch.load(f"{folder}/images.pt", weights_only=True)
photo = Image.linear_gradient("L").resize((90, 70)).convert("RGB")
for name in sys.argv[2].split(","):
    path, trust = f"{folder}/{name}", {"trust_remote_code": True}
    model, problems = AutoModelForObjectDetection.from_pretrained(path, output_loading_info=True, **trust)
    processor = AutoImageProcessor.from_pretrained(path, **trust)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    assert not any(problems.values()), problems
    with torch.no_grad():
        output = model(images)
    assert all(box["label"] in model.config.label2id for box in pipeline("object-detection", path, **trust)(photo))
    if "mask_rcnn" in name:
        AutoModelForInstanceSegmentation.from_pretrained(path, **trust)
        masks = pipeline("image-segmentation", path, **trust)(photo, subtask="instance", threshold=0.05)
        assert masks and {mask["mask"].size for mask in masks} == {photo.size}, masks
    found[name] = {key: value for key, value in output.items() if value is not None}
    model.save_pretrained(f"{path}/again")
torch.save(found, f"{folder}/found.pt")
"""


def test_detectors_elsewhere(elsewhere: dict[str, Any], tmp_path: Path) -> None:
    """With the folder's own code: no key missing, the same outputs, pipelines, and what is saved from there opens."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    for name, (detector, backbone) in DETECTORS.items():
        tiny_detector(detector, backbone).save_pretrained(tmp_path / name)
        hf_pvt.detection_image_processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(
            tmp_path / name
        )
    run_elsewhere(elsewhere["folder"], OPEN_DETECTORS, str(tmp_path), ",".join(DETECTORS))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, (detector, backbone) in DETECTORS.items():
        with torch.no_grad():
            expected = tiny_detector(detector, backbone)(images)
            again = detector.model.from_pretrained(tmp_path / name / "again")(images)
        for key, value in expected.items():
            assert found[name][key].equal(value) and again[key].equal(value), (name, key)
