"""Detections in pixels, segments, their forms, and Transformers' pipelines on them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_convert
from transformers import PreTrainedConfig, PreTrainedModel, pipeline
from transformers.utils import ModelOutput

import hf_pvt
from hf_pvt.detection.parts.mask_pasting import paste_masks


@dataclass
class DetectionOutput(ModelOutput):
    """What all detectors return, as far as post-processing reads it."""

    loss: Tensor | None = None
    pred_scores: Tensor | None = None
    pred_labels: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None


SIZES = [(60, 90), (200, 150)]
# Best first: two that overlap, one without area, one of a low score, one on the border; then nothing.
CORNERS = torch.tensor(
    [[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8], [1, 0.1, 1, 0.7], [0, 0, 0.3, 0.1], [0.5, 0.5, 1, 1]]
)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.06])
LABELS = torch.tensor([3, 0, 1, 3, 2])


def outputs(masks: bool = True) -> Any:
    """Two images: the detections above, and the first two of them with 0 and -1 behind."""
    boxes = torch.zeros(2, 6, 4)
    scores, labels = torch.zeros(2, 6), torch.full((2, 6), -1)
    for image, count in enumerate((5, 2)):
        boxes[image, :count] = box_convert(CORNERS[:count], "xyxy", "cxcywh")
        scores[image, :count], labels[image, :count] = SCORES[:count], LABELS[:count]
    cells = torch.rand(2, 6, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5
    return DetectionOutput(
        pred_scores=scores, pred_labels=labels, pred_boxes=boxes, pred_masks=cells if masks else None
    )


def pixels(indices: list[int], size: tuple[int, int]) -> Tensor:
    return CORNERS[indices] * torch.tensor([size[1], size[0]] * 2)


@pytest.fixture(scope="module")
def processor() -> Any:
    return hf_pvt.detection_image_processor()


# Boxes


@pytest.mark.parametrize("target_sizes", [SIZES, torch.tensor(SIZES), np.array(SIZES)], ids=["list", "tensor", "array"])
def test_object_detection(processor: Any, target_sizes: Any) -> None:
    """In the pixels of each image, without what has no area and without the places that hold nothing."""
    first, second = processor.post_process_object_detection(outputs(), target_sizes=target_sizes)
    torch.testing.assert_close(first["boxes"], pixels([0, 1, 3, 4], SIZES[0]))
    assert first["scores"].equal(SCORES[[0, 1, 3, 4]]) and first["labels"].equal(LABELS[[0, 1, 3, 4]])
    torch.testing.assert_close(second["boxes"], pixels([0, 1], SIZES[1]))
    assert first.keys() == {"scores", "labels", "boxes"}


@pytest.mark.parametrize(("threshold", "expected"), [(0, 4), (0.06, 3), (0.9, 0)])
def test_threshold(processor: Any, threshold: float, expected: int) -> None:
    """Scores above it, as Transformers counts: not those that reach it."""
    first, _ = processor.post_process_object_detection(outputs(), threshold)
    assert len(first["scores"]) == expected
    torch.testing.assert_close(first["boxes"], CORNERS[[0, 1, 3, 4]][:expected])


def test_rounding_leaves_boxes_inside(processor: Any) -> None:
    output = outputs(masks=False)
    output.pred_boxes[0, 0] = torch.tensor([0.7, 0.9, 0.60001, 0.20001])
    (box, *_), _ = (detections["boxes"] for detections in processor.post_process_object_detection(output, 0, SIZES))
    assert (box >= 0).all() and (box <= torch.tensor([90, 60, 90, 60])).all()


def test_half_precision(processor: Any) -> None:
    output = DetectionOutput(
        **{name: value.half() if value.is_floating_point() else value for name, value in outputs().items()}
    )
    first, _ = processor.post_process_instance_segmentation(output, target_sizes=SIZES)
    assert first["boxes"].dtype == first["scores"].dtype == torch.float32


# Masks


def whole(image: int, indices: list[int], threshold: float = 0.5) -> Tensor:
    boxes = pixels(indices, SIZES[image])
    return paste_masks(outputs().pred_masks[image, indices], boxes, SIZES[image], threshold)


def test_binary_maps(processor: Any) -> None:
    """Whole masks of all detections, in the order of scores, labels, boxes and segments_info."""
    results = processor.post_process_instance_segmentation(outputs(), target_sizes=SIZES, return_binary_maps=True)
    for image, (result, kept) in enumerate(zip(results, ([0, 1, 3, 4], [0, 1]), strict=True)):
        expected = whole(image, kept)
        assert result["segmentation"].shape == expected.shape and result["segmentation"].dtype == torch.bool
        assert (result["segmentation"] != expected).sum() <= 5
        assert result["labels"].equal(LABELS[kept])
        assert [segment["label_id"] for segment in result["segments_info"]] == LABELS[kept].tolist()
        assert [segment["id"] for segment in result["segments_info"]] == list(range(1, len(kept) + 1))
    info = {"id": 1, "label_id": 3, "was_fused": False, "score": 0.9}
    assert results[0]["segments_info"][0] == info
    half = processor.post_process_instance_segmentation(
        outputs(), mask_threshold=0.8, target_sizes=SIZES, return_binary_maps=True
    )[0]
    assert (half["segmentation"] != whole(0, [0, 1, 3, 4], 0.8)).sum() <= 5


def test_run_lengths(processor: Any) -> None:
    """The same masks as COCO's tools read them."""
    results = processor.post_process_instance_segmentation(outputs(), target_sizes=SIZES, return_coco_annotation=True)
    masks = processor.post_process_instance_segmentation(outputs(), target_sizes=SIZES, return_binary_maps=True)
    for result, expected in zip(results, masks, strict=True):
        decoded = np.stack([coco_mask.decode(encoding) for encoding in result["segmentation"]])
        assert np.array_equal(decoded, expected["segmentation"].numpy())
        assert result["segments_info"] == expected["segments_info"]


def test_map(processor: Any) -> None:
    """The better of two overlapping masks has the pixels; ids are those of segments_info."""
    result = processor.post_process_instance_segmentation(
        outputs(), overlap_mask_area_threshold=0.6, target_sizes=SIZES
    )[0]
    masks = whole(0, [0, 1, 3, 4])
    expected = torch.zeros(SIZES[0], dtype=torch.int32)
    for number, mask in ((3, masks[2]), (2, masks[1]), (1, masks[0])):  # the last is painted over the others
        expected[mask] = number
    assert (result["segmentation"] != expected).sum() <= 5 and result["segmentation"].dtype == torch.int32
    assert result["labels"].tolist() == [3, 0, 3] == [segment["label_id"] for segment in result["segments_info"]]
    torch.testing.assert_close(result["boxes"], pixels([0, 1, 3], SIZES[0]))


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, [3, 0, 3, 2]), (0.6, [3, 0, 3]), (0.9, [3, 3, 2])], ids=str)
def test_overlap(processor: Any, overlap: float, expected: list[int]) -> None:
    """Of the last mask half remains, of the second four fifths; when that is left out, it hides nothing."""
    result = processor.post_process_instance_segmentation(
        outputs(), overlap_mask_area_threshold=overlap, target_sizes=SIZES
    )[0]
    assert result["labels"].tolist() == expected == [segment["label_id"] for segment in result["segments_info"]]
    assert result["segmentation"].unique().tolist() == list(range(len(expected) + 1))


def test_masks_without_pixels(processor: Any) -> None:
    """They have no segment in the map, and keep their place in the other forms."""
    output = outputs()
    output.pred_masks[0, 0] = 0.1
    result = processor.post_process_instance_segmentation(output, 0.5, target_sizes=SIZES)[0]
    assert [segment["label_id"] for segment in result["segments_info"]] == [0]
    masks = processor.post_process_instance_segmentation(output, 0.5, target_sizes=SIZES, return_binary_maps=True)[0]
    assert masks["segmentation"].any(dim=(1, 2)).tolist() == [False, True]


def test_nothing_found(processor: Any) -> None:
    arguments = {"outputs": outputs(), "threshold": 0.99, "target_sizes": SIZES}
    first = processor.post_process_instance_segmentation(**arguments)[0]
    assert first["segmentation"].shape == SIZES[0] and not first["segmentation"].any()
    assert first["segments_info"] == [] and first["boxes"].shape == (0, 4)
    masks = processor.post_process_instance_segmentation(**arguments, return_binary_maps=True)[0]
    assert masks["segmentation"].shape == (0, *SIZES[0])
    assert (
        processor.post_process_instance_segmentation(**arguments, return_coco_annotation=True)[0]["segmentation"] == []
    )


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("object_detection", DetectionOutput(loss=torch.zeros(())), {}, "no detections, as in training mode"),
    ("object_detection", outputs(), {"target_sizes": SIZES[:1]}, "got 1 target sizes for 2 images"),
    ("instance_segmentation", outputs(), {}, "pass target_sizes"),
    ("instance_segmentation", outputs(False), {"target_sizes": SIZES}, "the model has no masks"),
    ("instance_segmentation", outputs(), {"target_sizes": [*SIZES, (3, 4)]}, "got 3 target sizes for 2 images"),
    (
        "instance_segmentation",
        outputs(),
        {"target_sizes": SIZES, "return_binary_maps": True, "return_coco_annotation": True},
        "two forms of the masks; choose one",
    ),
]


def test_refused(processor: Any) -> None:
    for method, output, settings, message in REFUSED:
        with pytest.raises(ValueError) as caught:
            getattr(processor, f"post_process_{method}")(output, **settings)
        assert re.search(message, str(caught.value)), (method, settings, caught.value)


# Pipelines


class FixedDetector(PreTrainedModel):
    """Gives the same detections for whatever image."""

    config_class = PreTrainedConfig
    main_input_name = "pixel_values"
    _checkpoint_conversion_mapping: dict[str, str] = {}

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> DetectionOutput:
        return DetectionOutput(**{name: value[:1] for name, value in outputs().items()})


@pytest.fixture
def photo() -> Iterator[Image.Image]:
    yield Image.fromarray(np.random.RandomState(0).randint(0, 256, (*SIZES[0], 3), dtype=np.uint8))


def detector() -> FixedDetector:
    return FixedDetector(PreTrainedConfig(id2label={i: f"label {i}" for i in range(4)})).eval()


def test_object_detection_pipeline(processor: Any, photo: Image.Image) -> None:
    found = pipeline("object-detection", model=detector(), image_processor=processor)(photo, threshold=0.1)
    assert [detection["label"] for detection in found] == ["label 3", "label 0", "label 3"]
    assert found[1] == {
        "score": pytest.approx(0.8), "label": "label 0", "box": {"xmin": 27, "ymin": 18, "xmax": 81, "ymax": 48}
    }  # fmt: skip


@pytest.mark.parametrize("subtask", ["instance", None])
def test_segmentation_pipeline(processor: Any, photo: Image.Image, subtask: str | None) -> None:
    """With instances asked for, and as what the processor can do."""
    segment = pipeline("image-segmentation", model=detector(), image_processor=processor)
    settings = {} if subtask is None else {"subtask": subtask}
    found = segment(photo, threshold=0.1, overlap_mask_area_threshold=0.8, **settings)
    assert [detection["label"] for detection in found] == ["label 3", "label 0", "label 3"]
    masks = whole(0, [0, 1, 3])
    masks[1] &= ~masks[0]
    for detection, mask in zip(found, masks, strict=True):
        assert detection["mask"].size == photo.size
        assert ((np.asarray(detection["mask"]) > 0) != mask.numpy()).sum() <= 5
