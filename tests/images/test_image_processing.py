"""The image processor against the published evaluation, written with torchvision, on real photographs."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2
from torchvision.transforms.functional import crop
from transformers import AutoImageProcessor, PvtImageProcessor, PvtImageProcessorPil

import hf_pvt

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONE_LEVEL = 1 / 255 / min(STD)  # of 8 bits: torchvision resizes tensors with coarser weights than PIL


def published(photo: Image.Image, crop_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the papers evaluate, and the same with the crop's corner truncated, as Transformers' crop has it."""
    resized = v2.Resize(int(crop_size / 0.875), interpolation=v2.InterpolationMode.BICUBIC)(photo)
    corner = (resized.height - crop_size) // 2, (resized.width - crop_size) // 2
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return to_tensor(v2.CenterCrop(crop_size)(resized)), to_tensor(crop(resized, *corner, crop_size, crop_size))


@pytest.mark.parametrize("processor_class", [PvtImageProcessor, PvtImageProcessorPil])
@pytest.mark.parametrize(
    ("name", "size", "crop_size"),
    [
        ("china.jpg", (640, 427), 224),
        ("flower.jpg", (500, 400), 384),
        ("flower.jpg", (300, 300), 224),
        ("china.jpg", (427, 640), 384),
    ],
    ids=str,
)
def test_published_evaluation(name: str, size: tuple[int, int], crop_size: int, processor_class: type) -> None:
    photo = Image.fromarray(load_sample_image(name)).resize(size)
    settings = hf_pvt.classification_image_processor(crop_size).to_dict()
    settings.pop("image_processor_type")
    pixel_values = processor_class(**settings)(photo, return_tensors="pt")["pixel_values"][0]
    expected, truncated = published(photo, crop_size)
    if processor_class is PvtImageProcessorPil:
        torch.testing.assert_close(pixel_values, truncated)
    else:
        difference = (pixel_values - truncated).abs()
        assert difference.max() < 2.001 * ONE_LEVEL
        assert (difference > 1.001 * ONE_LEVEL).float().mean() < 1e-5
    margin = abs(max(size) * int(crop_size / 0.875) // min(size) - crop_size)
    if margin % 2 == 0 and int(crop_size / 0.875) % 2 == crop_size % 2:
        assert torch.equal(truncated, expected)


@pytest.mark.parametrize(("crop_size", "edge"), [(224, 256), (384, 438)])
def test_file(crop_size: int, edge: int, tmp_path: Path) -> None:
    """Transformers' own class and format, so that it means the same without this package."""
    processor = hf_pvt.classification_image_processor(crop_size)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "PvtImageProcessor"
    assert written["size"] == {"shortest_edge": edge}
    assert written["crop_size"] == {"height": crop_size, "width": crop_size}
    assert written["resample"] == Image.Resampling.BICUBIC
    assert written["image_mean"] == list(MEAN)
    assert written["image_std"] == list(STD)
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(
        loaded(photo, return_tensors="pt")["pixel_values"], processor(photo, return_tensors="pt")["pixel_values"]
    )


def test_grey_and_transparent_images() -> None:
    """Images of other modes come in as RGB."""
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    processor = hf_pvt.classification_image_processor()
    grey = processor(photo.convert("L"), return_tensors="pt")["pixel_values"]
    as_colours = processor(photo.convert("L").convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(grey, as_colours)
    assert processor(photo.convert("RGBA"), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
