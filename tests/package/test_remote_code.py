"""The code that saved folders carry: flat, of known files, and that folders of earlier versions still open."""

import ast
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import DETECTORS, FAMILIES, tiny_detector
from paths import FIXTURES
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

import hf_pvt

SOURCE = Path(hf_pvt.__file__).parent
FOLDERS = ("cpu", "heads", "images", "pyramid", "detection", "detection/parts")
FILES = FIXTURES / "saved" / "code_files.json"
# What writes to Transformers' tables, what images are read and prepared with, what the papers say.
NOT_A_MODELS_CODE = {"registration.py", "variants.py", *(file.name for file in (SOURCE / "images").glob("*.py"))}


def carried() -> Iterator[Path]:
    """Every file that a saved folder may carry."""
    for folder in FOLDERS:
        yield from (file for file in (SOURCE / folder).glob("*.py") if file.name != "__init__.py")
    yield SOURCE / "remote_code.py"


def test_no_two_files_have_one_name() -> None:
    """In a saved folder they lie beside each other."""
    counts = Counter(file.name for file in carried())
    assert len(counts) > 60 and {name for name, count in counts.items() if count > 1} == set()


@pytest.mark.parametrize("file", list(carried()), ids=lambda file: file.name)
def test_imports_can_be_flattened(file: Path) -> None:
    """Relative ones, of files, at the left margin: Transformers asks the Hub for whatever else looks like a sibling."""
    lines = file.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module and lines[node.lineno - 1].startswith("from ."), (file, node.lineno)
            target = file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
            assert target.is_file(), (file, node.lineno)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        assert not any(str(name).split(".")[0] == "hf_pvt" for name in names), (file, getattr(node, "lineno", 0))


def kinds() -> dict[str, Any]:
    """Everything that can be saved, by its kind."""
    models = {
        f"{family} {task}": getattr(family, task)(family.tiny_config())
        for family in FAMILIES
        for task in ("classifier", "segmenter")
    }
    return models | {
        **{str(detector): tiny_detector(detector) for detector in DETECTORS},
        "segmentation_image_processor": hf_pvt.segmentation_image_processor(),
        "detection_image_processor": hf_pvt.detection_image_processor(),
    }


def test_the_files_of_each_kind(tmp_path: Path) -> None:
    """None but those of the fixture, so that growth is seen in review; a RetinaNet has at most 39."""
    found: dict[str, list[str]] = {}
    for kind, saved in kinds().items():
        saved.save_pretrained(tmp_path / kind)
        found[kind] = sorted(file.name for file in (tmp_path / kind).glob("*.py"))
        if not kind.endswith("processor"):
            assert not NOT_A_MODELS_CODE & set(found[kind]), kind
    assert found == json.loads(FILES.read_text())
    assert len(found["retinanet"]) <= 39


def test_folders_of_0_1_0(tmp_path: Path) -> None:
    """Saved before the package had folders, with the code of then: the outputs are what they were."""
    with zipfile.ZipFile(FIXTURES / "saved" / "0_1_0.zip") as archive:
        archive.extractall(tmp_path)
    recorded = load_file(tmp_path / "outputs.safetensors")
    for name, auto_class in (
        ("segmenter", AutoModelForSemanticSegmentation),
        ("detector", AutoModelForObjectDetection),
    ):
        assert (tmp_path / name / "cpu_inference.py").is_file()
        model = auto_class.from_pretrained(tmp_path / name)
        assert type(model).__module__.startswith("hf_pvt.")
        assert type(AutoImageProcessor.from_pretrained(tmp_path / name)).__module__.startswith("hf_pvt.")
        with torch.no_grad():
            logits = model.double().eval()(recorded["pixel_values"].double()).logits  # float32 rounds by processor
        assert (logits - recorded[name]).abs().max() < 1e-9 * recorded[name].abs().max()
