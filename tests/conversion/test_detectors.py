"""convert.py and export_original.py on detectors: there and back, with cards whose code runs."""

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import card
import export_original
import pytest
import torch
from checkpoints import assert_same_weights
from conversion_runs import command, failure, run
from detector_checkpoints import CLASSES, ON_ALL_VARIANTS, layout_of, own_pyramid, tiny
from families import P2T, PVT, PVT_V2, Family, label_branch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    PreTrainedModel,
    ResNetConfig,
)

import hf_pvt
from hf_pvt import PUBLISHED_DETECTORS
from hf_pvt.detection.detector_classes import DETECTORS
from hf_pvt.original.detector_layouts import DETECTOR_LAYOUTS
from hf_pvt.original.pyramid_layouts import to_original

# Each on a family that it is published on. Two are quick; they find with anchors and with proposals.
ON_FAMILIES = {"retinanet": P2T, "mask_rcnn": PVT, **dict.fromkeys(set(DETECTORS) - set(ON_ALL_VARIANTS), PVT_V2)}


def detector(family: Family, model_type: str, **overrides: Any) -> PreTrainedModel:
    """A tiny one that finds something everywhere."""
    model = tiny(family, model_type, **overrides)
    if hasattr(model, "bbox_head"):
        label_branch(model).bias.data[0] = 0
    return model


def checkpoint(model: PreTrainedModel, path: Path, **weights: torch.Tensor) -> Path:
    """A file as MMDetection would have written it."""
    names = tuple(model.config.id2label.values()) if model.num_labels != len(CLASSES) else CLASSES
    torch.save({"meta": {"CLASSES": names}, "state_dict": to_original(model, layout_of(model)) | weights}, path)
    return path


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Conversion:
    """A detector, its checkpoint, the folder that convert.py wrote, and what it printed."""

    model: Any
    source: Path
    folder: Path
    printed: str


@pytest.fixture(
    scope="module",
    params=[
        model_type if model_type in ON_ALL_VARIANTS else pytest.param(model_type, marks=pytest.mark.slow)
        for model_type in DETECTORS
    ],
)
def conversion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    folder = tmp_path_factory.mktemp("conversion")
    family = ON_FAMILIES[request.param]
    model = detector(family, request.param)
    unused = {"backbone.head.weight": torch.randn(1000, 16)} if family is P2T else {}
    source = checkpoint(model, folder / "source.pth", **unused)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(source, folder / "converted")
    return Conversion(model, source, folder / "converted", printed.getvalue())


def test_there_and_back(conversion: Conversion, tmp_path: Path) -> None:
    """What is written opens with the Auto classes; the original comes back to the bit, with P2T's classifier."""
    model, folder = conversion.model, conversion.folder
    auto_class = AutoModelForInstanceSegmentation if model.has_masks else AutoModelForObjectDetection
    loaded, problems = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_weights(loaded, model)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is hf_pvt.PvtDetectionImageProcessor and processor.category_ids is None
    assert processor.return_segmentation_masks == model.has_masks
    facts = json.loads((folder / "conversion.json").read_text())
    assert facts["layout"] == layout_of(model).source and facts["difference"] == 0
    task = "instance-segmentation" if model.has_masks else "detection"
    assert f"{layout_of(model).source}, no published variant, {task}, 5 labels" in conversion.printed
    license = "cc-by-nc-sa-4.0" if model.config.backbone_config.model_type == "p2t" else "apache-2.0"
    assert f"license: {license}" in card_of(folder)
    for name in ("cat", "coffee"):
        with (
            Image.open(folder / f"images/{name}.jpg") as photo,
            Image.open(folder / f"images/{name}-labels.jpg") as drawn,
        ):
            assert photo.size == drawn.size and photo.tobytes() != drawn.tobytes()
    command(export_original.main, folder, tmp_path / "again.pth")
    expected, again = (torch.load(path, weights_only=True) for path in (conversion.source, tmp_path / "again.pth"))
    assert again["meta"] == expected["meta"] and again["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(again["state_dict"][key], weight) for key, weight in expected["state_dict"].items())


def test_the_code_of_a_card_runs(conversion: Conversion) -> None:
    folder = conversion.folder
    text = card_of(folder).replace('hf_hub_download("org/converted", ', f'str("{folder}/" + ')
    text = text.replace("org/converted", str(folder))
    with Image.open(folder / "images/cat.jpg") as photo:
        polygon = [40.0, 40.0, 200.0, 40.0, 200.0, 160.0, 40.0, 160.0]
        cat = {"category_id": 1, "bbox": [40, 40, 160, 120], "area": 19200, "iscrowd": 0, "segmentation": [polygon]}
        scope: dict[str, Any] = {
            "images": [photo.convert("RGB")], "annotations": [{"image_id": 7, "annotations": [cat]}]
        }  # fmt: skip
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for code in blocks:
        exec(code, scope)
    assert torch.isfinite(scope["loss"]) and scope["loss"] > 0
    assert len(scope["backbone"].channels) == conversion.model.config.backbone_levels


def test_own_pyramids_come_back(tmp_path: Path) -> None:
    """MMDetection's own layout, not the authors'."""
    model = detector(PVT, "retinanet")
    weights = own_pyramid(to_original(model, layout_of(model)))
    torch.save({"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": weights}, tmp_path / "source.pth")
    run(tmp_path / "source.pth", tmp_path / "converted")
    command(export_original.main, tmp_path / "converted", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)


@pytest.mark.slow
def test_faster_rcnn(tmp_path: Path) -> None:
    """An object detector; the papers report none."""
    model = detector(PVT_V2, "mask_rcnn", with_masks=False)
    run(checkpoint(model, tmp_path / "source.pth"), tmp_path / "converted")
    assert_same_weights(AutoModelForObjectDetection.from_pretrained(tmp_path / "converted"), model)
    text = card_of(tmp_path / "converted")
    assert "pipeline_tag: object-detection" in text and "an object detector (Faster R-CNN) for 5 labels" in text


def test_80_labels_are_cocos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the ids of its annotations, and without a figure of the paper for another architecture."""
    model = detector(PVT_V2, "retinanet", num_labels=80)
    torch.save({"state_dict": to_original(model, layout_of(model))}, tmp_path / "source.pth")
    run(tmp_path / "source.pth", tmp_path / "converted")
    assert "80 labels (COCO)" in capsys.readouterr().out
    assert AutoImageProcessor.from_pretrained(tmp_path / "converted").category_ids == hf_pvt.coco_category_ids()
    config = hf_pvt.RetinaNetConfig.from_pretrained(tmp_path / "converted")
    assert config.id2label == hf_pvt.coco_id2label()
    assert "reported" not in card_of(tmp_path / "converted")


@pytest.mark.slow
def test_saved_folders(tmp_path: Path) -> None:
    """What a training leaves becomes a repository too."""
    model = detector(P2T, "mask_rcnn")
    model.save_pretrained(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "converted")
    assert_same_weights(AutoModelForInstanceSegmentation.from_pretrained(tmp_path / "converted"), model)


def test_another_backbone(tmp_path: Path) -> None:
    """Of one that is none of ours, nothing is known."""
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    other = hf_pvt.RetinaNetForObjectDetection(hf_pvt.RetinaNetConfig(backbone_config=resnet, fpn_hidden_size=8))
    other.save_pretrained(tmp_path / "resnet")
    message = failure(tmp_path / "resnet", tmp_path / "other")
    assert message.endswith("holds a detector on a backbone of the type 'resnet', expected one of: pvt, pvt_v2, p2t.")


def test_the_licence_is_the_backbones(tmp_path: Path) -> None:
    source = checkpoint(detector(P2T, "retinanet"), tmp_path / "source.pth")
    message = failure(source, tmp_path / "converted", "--push-to-hub", "org/p2t-detector", "--dry-run")
    assert "the weights of p2t are cc-by-nc-sa-4.0" in message


def test_the_papers_figures_are_the_authors_models() -> None:
    """MMDetection's own were trained by others."""
    for layout in DETECTOR_LAYOUTS:
        if layout.model_type == "pvt_v2":
            row = PUBLISHED_DETECTORS[f"{layout.detector.replace('_', '-')}-pvt-v2-b2"]
            provenance = card.Provenance("a.pth", layout.source, "0", "1", "cat.jpg", 0.0)
            converted = card.Card(**vars(card.published_detector_card(row)) | {"provenance": provenance})
            assert bool(converted.reported) == ("on published" in layout.source), layout.source
            assert "None" not in converted.render(), layout.source
