"""Converted folders in a virtual environment that has Transformers and not this package."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
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

pytestmark = pytest.mark.processes

MODELS = {
    "pvt": (PVT, "classifier"),
    "pvt_v2": (PVT_V2, "classifier"),
    "p2t": (P2T, "classifier"),
    "pvt_fpn": (PVT, "segmenter"),
    "pvt_v2_fpn": (PVT_V2, "segmenter"),
    "p2t_fpn": (P2T, "segmenter"),
}
REMOTE = ("p2t", "pvt_fpn", "pvt_v2_fpn", "p2t_fpn")

DETECTORS = {
    "retinanet": (RETINANET, "p2t"),
    "mask_rcnn": (MASK_RCNN, "pvt_v2"),
    "faster_rcnn": (FASTER_RCNN, "swin"),
    "atss": (ATSS, "pvt"),
    "gfl": (GFL, "pvt_v2"),
    "cascade_mask_rcnn": (CASCADE_MASK_RCNN, "pvt_v2"),
    "sparse_rcnn": (SPARSE_RCNN, "p2t"),
}

OPEN = """
import importlib.util, sys
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor, AutoModelForImageClassification, AutoModelForInstanceSegmentation, AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation, pipeline,
)

assert importlib.util.find_spec("hf_pvt") is None
folder, remote = sys.argv[1], sys.argv[2].split(",")
images = torch.load(f"{folder}/images.pt", weights_only=True)
found = {"interpreter": f"{sys.base_prefix} {sys.version}"}

def opened(auto_class, path, trust):
    model, problems = auto_class.from_pretrained(path, output_loading_info=True, **trust)
    processor = AutoImageProcessor.from_pretrained(path, **trust)
    with torch.no_grad():
        output = model.eval()(images)
    return model, {
        "module": type(model).__module__,
        "problems": {kind: sorted(keys) for kind, keys in problems.items()},
        "processor": [type(processor).__module__, type(processor).__name__],
        "output": {key: value for key, value in output.items() if isinstance(value, torch.Tensor)},
    }

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
    _, found[name] = opened(auto_class, path, trust)
    photo = f"{path}/images/{'china' if name.endswith('fpn') else 'cat'}.jpg"
    answers = pipeline(task, model=path, **trust)(photo)
    found[name] |= {
        "refusal": refusal,
        "answers": [answer["label"] for answer in answers],
        "sizes": [answer["mask"].size for answer in answers if "mask" in answer],
    }

photo = Image.linear_gradient("L").resize((90, 70)).convert("RGB")
for name in sys.argv[4].split(","):
    path, trust = f"{folder}/{name}", {"trust_remote_code": True}
    model, found[name] = opened(AutoModelForObjectDetection, path, trust)
    answers, masks = pipeline("object-detection", path, **trust)(photo), []
    if "mask_rcnn" in name:
        AutoModelForInstanceSegmentation.from_pretrained(path, **trust)
        masks = pipeline("image-segmentation", path, **trust)(photo, subtask="instance", threshold=0.05)
    found[name] |= {"answers": [box["label"] for box in answers], "sizes": [mask["mask"].size for mask in masks]}
    model.save_pretrained(f"{path}/again")
torch.save(found, f"{folder}/found.pt")
"""


@dataclass(frozen=True)
class Elsewhere:
    """The converted folders, the images, and what the other environment found, by folder."""

    folder: Path
    images: torch.Tensor
    found: dict[str, Any]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """All folders, opened by one process of the other environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, (family, kind) in MODELS.items():
        run(checkpoint(tiny(family, kind), folder / f"{name}.pth"), folder / name)
    for name, (detector, backbone) in DETECTORS.items():
        tiny_detector(detector, backbone).save_pretrained(folder / name)
        hf_pvt.detection_image_processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder / name)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.save(images, folder / "images.pt")
    venv.create(folder / "venv", symlinks=True)
    # Everything that is installed here but this package, whose own .pth file is not read from there.
    packages = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [folder / "venv" / "bin" / "python", "-c", OPEN, folder, *map(",".join, (REMOTE, MODELS, DETECTORS))],
        env=environment | {"HF_HOME": str(folder / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return Elsewhere(folder, images, torch.load(folder / "found.pt", weights_only=True))


def test_the_interpreter_is_this_one(elsewhere: Elsewhere) -> None:
    """The other environment differs by this package alone."""
    assert elsewhere.found["interpreter"] == f"{sys.base_prefix} {sys.version}"


def test_models_compute_the_same(elsewhere: Elsewhere) -> None:
    """No key missing or unknown, the same logits; native classes where there are such."""
    for name, (family, kind) in MODELS.items():
        found = elsewhere.found[name]
        assert not any(found["problems"].values()), (name, found["problems"])
        where = "transformers_modules." if name in REMOTE else "transformers.models."
        assert found["module"].startswith(where), (name, found["module"])
        with torch.no_grad():
            expected = tiny(family, kind)(elsewhere.images).logits
        # The second epsilon, which Transformers' own classes lack, moves logits by a little.
        limit = 1e-5 if name in REMOTE else 1e-4
        assert (found["output"]["logits"] - expected).abs().max() <= limit, name


def test_processors_and_pipelines(elsewhere: Elsewhere) -> None:
    for name, (family, kind) in MODELS.items():
        found = elsewhere.found[name]
        ours = AutoImageProcessor.from_pretrained(elsewhere.folder / name)
        assert found["processor"][1] == type(ours).__name__, name
        labels = family.tiny_config().id2label.values()
        assert found["answers"] and set(found["answers"]) <= set(labels), (name, found["answers"])
        assert set(found["sizes"]) == ({(640, 427)} if kind == "segmenter" else set()), (name, found["sizes"])


def test_only_what_is_needed_carries_code(elsewhere: Elsewhere) -> None:
    """And only that asks for trust."""
    for name in MODELS:
        config = json.loads((elsewhere.folder / name / "config.json").read_text())
        assert ("auto_map" in config) == (name in REMOTE), name
        assert bool(list((elsewhere.folder / name).glob("*.py"))) == (name in REMOTE), name
        assert ("trust_remote_code=True" in elsewhere.found[name]["refusal"]) == (name in REMOTE), name


def test_detectors(elsewhere: Elsewhere) -> None:
    """With the folder's own code: no key missing, the same outputs, pipelines, and what is saved from there opens."""
    for name, (detector, backbone) in DETECTORS.items():
        found, model = elsewhere.found[name], tiny_detector(detector, backbone)
        assert not any(found["problems"].values()), (name, found["problems"])
        assert found["module"].startswith("transformers_modules."), (name, found["module"])
        assert found["processor"][0].startswith("transformers_modules."), (name, found["processor"])
        assert set(found["answers"]) <= set(model.config.label2id), (name, found["answers"])
        assert set(found["sizes"]) == ({(90, 70)} if model.has_masks else set()), (name, found["sizes"])
        with torch.no_grad():
            expected = model(elsewhere.images)
            again = detector.model.from_pretrained(elsewhere.folder / name / "again")(elsewhere.images)
        for key, value in expected.items():
            assert found["output"][key].equal(value) and again[key].equal(value), (name, key)
