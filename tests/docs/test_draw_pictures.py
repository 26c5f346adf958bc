"""The README's pictures are of the demo's models."""

import sys
from pathlib import Path

import draw_pictures
import numpy as np
import pytest
import torch
from digit_scenes import scenes
from families import MASK_RCNN, P2T, tiny_detector
from PIL import Image

import hf_pvt


def difference(path: Path, expected: Image.Image) -> float:
    """The mean one of 255, of a file and what should be in it, from the left."""
    with Image.open(path) as file:
        pixels = np.asarray(file, dtype=float)[: expected.height, : expected.width]
    return float(np.abs(pixels - np.asarray(expected)).mean())


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    segmenter, detector = P2T.segmenter(P2T.tiny_config()).eval(), tiny_detector(MASK_RCNN)
    size = {"height": 96, "width": 96}
    for name, model, processor in (
        ("digit-scenes-p2t", segmenter, hf_pvt.segmentation_image_processor(size=size)),
        ("digit-scenes-mask-rcnn", detector, hf_pvt.detection_image_processor(size=size)),
    ):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    words = ["--demo_dir", str(tmp_path), "--output_dir", str(tmp_path / "pictures")]
    monkeypatch.setattr(sys, "argv", ["draw_pictures", *words])
    draw_pictures.main()
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    cat = Image.open(draw_pictures.CAT)
    apart, overlapping = (
        scenes(1, held_out=True, seed=draw_pictures.SEED, overlapping=overlap)[0] for overlap in (False, True)
    )
    labels = hf_pvt.segmentation_image_processor(size=size)
    boxes = hf_pvt.detection_image_processor(size=size)
    for name, expected in {
        "features": hf_pvt.draw_features(segmenter, cat),
        "attention": hf_pvt.draw_attention(segmenter, cat, draw_pictures.POINT, stage=2),
        "segmentation": draw_pictures.segmented(segmenter, labels, apart),
        "detection": draw_pictures.detected(detector, boxes, overlapping),
    }.items():
        assert difference(tmp_path / "pictures" / f"{name}.jpg", expected) < 8, name  # JPEG's
        assert np.asarray(expected).std() > 10


def test_without_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_pictures", "--demo_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no model in .*digit-scenes-p2t; run `make demo-full` first"):
        draw_pictures.main()
