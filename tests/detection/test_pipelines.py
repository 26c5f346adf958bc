"""Transformers' pipelines on detectors: a photograph in, what the model and the processor give by hand out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CASCADE_MASK_RCNN, DETECTORS, MASK_RCNN, RETINANET, DetectorRow, tiny_detector
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import AutoImageProcessor, pipeline

import hf_pvt

PHOTO = Image.fromarray(load_sample_image("flower.jpg"))
SMALL = {"shortest_edge": 96, "longest_edge": 160}


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture, own_warnings: pytest.WarningsRecorder) -> Any:
    """Not a word of warning."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in own_warnings] == []


def arguments(detector: DetectorRow, folder: Path | None) -> dict[str, Any]:
    """Of `pipeline`: the model as an object or as a folder."""
    model, processor = tiny_detector(detector), hf_pvt.detection_image_processor(size=SMALL)
    if folder is None:
        return {"model": model, "image_processor": processor}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert type(AutoImageProcessor.from_pretrained(folder)) is hf_pvt.PvtDetectionImageProcessor
    # What the package registers is enough. Left open, Transformers asks whether to trust a *video* processor, whose
    # name it makes of the image processor's.
    return {"model": str(folder), "trust_remote_code": False}


@pytest.mark.parametrize(
    ("detector", "as_folder"),
    [
        *((detector, True) for detector in DETECTORS),
        (RETINANET, False),
    ],
    ids=str,
)
def test_object_detection(detector: DetectorRow, as_folder: bool, tmp_path: Path, silent: None) -> None:
    results = pipeline("object-detection", **arguments(detector, tmp_path if as_folder else None))(PHOTO, threshold=0.1)
    model, processor = tiny_detector(detector), hf_pvt.detection_image_processor(size=SMALL)
    with torch.no_grad():
        output = model(**processor(PHOTO, return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(output, 0.1, [PHOTO.size[::-1]])
    assert results and [result["score"] for result in results] == pytest.approx(expected["scores"].tolist())
    assert [result["label"] for result in results] == [f"LABEL_{label}" for label in expected["labels"].tolist()]
    assert [list(result["box"].values()) for result in results] == expected["boxes"].int().tolist()


@pytest.mark.parametrize(("detector", "as_folder"), [(MASK_RCNN, True), (CASCADE_MASK_RCNN, False)], ids=str)
def test_instance_segmentation(detector: DetectorRow, as_folder: bool, tmp_path: Path, silent: None) -> None:
    segmenter = pipeline("image-segmentation", **arguments(detector, tmp_path if as_folder else None))
    results = segmenter(PHOTO, subtask="instance", threshold=0.1)
    model, processor = tiny_detector(detector), hf_pvt.detection_image_processor(size=SMALL)
    with torch.no_grad():
        output = model(**processor(PHOTO, return_tensors="pt"))
    (expected,) = processor.post_process_instance_segmentation(
        output, 0.1, overlap_mask_area_threshold=0.5, target_sizes=[PHOTO.size[::-1]]
    )
    assert results and [result["score"] for result in results] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
    assert [result["label"] for result in results] == [f"LABEL_{label}" for label in expected["labels"].tolist()]
    for number, result in enumerate(results, start=1):
        assert result["mask"].size == PHOTO.size
        mask = torch.from_numpy(np.array(result["mask"])) > 0
        assert mask.equal(expected["segmentation"] == number)


def test_images_of_16_bits(tmp_path: Path) -> None:
    """A grey TIFF is not clipped to white: the boxes are those of its 8 bits."""
    grey = np.asarray(PHOTO.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    detector = pipeline("object-detection", **arguments(RETINANET, None))
    assert detector(str(tmp_path / "deep.tif"), threshold=0.1) == detector(Image.fromarray(grey), threshold=0.1)
