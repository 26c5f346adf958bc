"""Images of detectors: sizes, pixels, padding, settings, saving, and what is said where a package is missing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import hf_pvt
from hf_pvt.images.resampling import between_neighbours

MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]  # as published, on 0 to 255
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
RANDOM = np.random.RandomState(0)
SMALL = {"shortest_edge": 80, "longest_edge": 133}


def photo(height: int, width: int) -> np.ndarray:
    return RANDOM.randint(0, 256, (height, width, 3), dtype=np.uint8)


def levels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised pixels as 0 to 255 again."""
    return pixel_values * STD + MEAN


@pytest.mark.parametrize(
    ("height", "width", "size", "padded"),
    [
        (480, 640, (800, 1067), (800, 1088)),  # 1066.67
        (427, 640, (800, 1199), (800, 1216)),  # 1199.06
        (640, 427, (1199, 800), (1216, 800)),
        (500, 1000, (667, 1333), (672, 1344)),  # the longer side ends at 1333: 666.5
        (100, 1001, (133, 1333), (160, 1344)),  # 133.17
        (800, 1333, (800, 1333), (800, 1344)),
        (1600, 2400, (800, 1200), (800, 1216)),
    ],
    ids=str,
)
def test_published_sizes(height: int, width: int, size: tuple[int, int], padded: tuple[int, int]) -> None:
    """int(side * scale + 0.5), then the next multiple of 32."""
    batch = hf_pvt.detection_image_processor()(np.zeros((height, width, 3), np.uint8), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, *padded)
    assert batch["pixel_mask"].shape == (1, *padded) and batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_mask"][0, : size[0], : size[1]].all() and batch["pixel_mask"].sum() == size[0] * size[1]


@pytest.mark.parametrize("size", [(80, 107), (200, 240)], ids=["reduced", "enlarged"])
def test_pixels(size: tuple[int, int]) -> None:
    """Bilinear without antialiasing, rounded to levels, normalised, and only then padded with zeros."""
    image = photo(120, 160)
    processor = hf_pvt.detection_image_processor(size={"height": size[0], "width": size[1]})
    actual = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    exact = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].double(), size, mode="bilinear")[0]
    inside = levels(actual[:, : size[0], : size[1]])
    assert (inside - inside.round()).abs().max() < 1e-3
    assert (inside - exact).abs().max() < 0.5 + 1e-3
    assert not actual[:, size[0] :].any() and not actual[:, :, size[1] :].any()


def test_resize_of_opencv() -> None:
    """Within one level of what OpenCV 5.0 gives for the same pixels."""
    image = (np.arange(35) * 37 % 256).astype(np.uint8).reshape(5, 7, 1)
    reduced = [[15, 79, 144, 209], [20, 85, 149, 214], [25, 89, 154, 219]]
    assert np.abs(between_neighbours(image, (3, 4))[..., 0].astype(int) - reduced).max() <= 1
    enlarged = [[0, 25, 54, 82, 111, 140, 169, 198, 222], [4, 29, 58, 86, 115, 144, 172, 201, 226]]
    assert np.abs(between_neighbours(image, (4, 9))[:2, :, 0].astype(int) - enlarged).max() <= 1


def test_batch_of_two_sizes() -> None:
    """Each has the pixels that it has alone, padded to the largest height and the largest width."""
    processor = hf_pvt.detection_image_processor(size=SMALL)
    images = [photo(90, 150), photo(150, 90)]
    batch = processor(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 160, 160)
    for image, pixels, mask in zip(images, batch["pixel_values"], batch["pixel_mask"], strict=True):
        alone = processor(image, return_tensors="pt")["pixel_values"][0]
        assert pixels[:, : alone.shape[1], : alone.shape[2]].equal(alone)
        height, width = (80, 133) if image.shape[0] == 90 else (133, 80)
        assert mask[:height, :width].all() and mask.sum() == height * width
        assert not pixels[:, mask == 0].any()


def test_other_paddings() -> None:
    image, tall = photo(60, 100), photo(100, 60)
    processor = hf_pvt.detection_image_processor(do_resize=False)
    assert processor([image], size_divisor=1, return_tensors="pt")["pixel_values"].shape == (1, 3, 60, 100)
    assert processor([image, tall], size_divisor=64, return_tensors="pt")["pixel_mask"].shape == (2, 128, 128)
    fixed = processor(image, pad_size={"height": 70, "width": 110}, return_tensors="pt")
    assert fixed["pixel_values"].shape == (1, 3, 70, 110) and fixed["pixel_mask"].sum() == 6000
    with pytest.raises(ValueError, match="Padding dimensions are negative"):
        processor(image, pad_size={"height": 50, "width": 110})
    unpadded = processor([image, tall], do_pad=False)
    assert [tuple(pixels.shape) for pixels in unpadded["pixel_values"]] == [(3, 60, 100), (3, 100, 60)]
    assert all(mask.all() for mask in unpadded["pixel_mask"])


def test_kinds_of_images(tmp_path: Path) -> None:
    """A file that a camera turned, grey, transparent on white, arrays and tensors: as a person sees them."""
    pixels = photo(48, 64)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn clockwise to see it
    image.save(tmp_path / "turned.png", exif=exif)
    transparent = np.dstack((pixels, np.full((48, 64), 255, np.uint8)))
    transparent[:, 32:, 3] = 0
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    seen: list[tuple[Any, np.ndarray]] = [
        (str(tmp_path / "turned.png"), np.rot90(pixels, -1)),
        (pixels, pixels),
        (torch.from_numpy(pixels).permute(2, 0, 1), pixels),
        (pixels[..., 0], grey),
        (Image.fromarray(pixels[..., 0]), grey),
        (Image.fromarray(transparent), np.where(transparent[..., 3:] > 0, pixels, 255)),
        (pixels.astype(np.uint16) * 256, pixels),
    ]
    processor = hf_pvt.detection_image_processor(do_resize=False)
    for given, expected in seen:
        actual = processor(given, return_tensors="pt")["pixel_values"][0]
        height, width = expected.shape[:2]
        difference = levels(actual[:, :height, :width]) - torch.from_numpy(expected.copy()).permute(2, 0, 1)
        assert difference.abs().max() < 1e-3


def test_floats_are_not_rounded() -> None:
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    processor = hf_pvt.detection_image_processor(size={"height": 32, "width": 64}, do_rescale=False)
    expected = F.interpolate(image[None], (32, 64), mode="bilinear")[0]
    torch.testing.assert_close(levels(processor(image, return_tensors="pt")["pixel_values"][0]), expected * 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resample": Image.Resampling.BICUBIC}, "resample is .*, but detectors resize as cv2 does"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, "annotations are not cropped"),
    ],
    ids=["filter", "crop"],
)
def test_settings_that_detectors_lack(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf_pvt.detection_image_processor()(photo(40, 40), **settings)


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come back, and the class is named for the Auto class."""
    monkeypatch.setattr(hf_pvt.detection.image_processing_detection, "write_remote_code", lambda *arguments: None)
    settings = {"size": SMALL, "size_divisor": 64, "category_ids": [7, 3], "return_segmentation_masks": True}
    hf_pvt.detection_image_processor(**settings).save_pretrained(tmp_path)
    loaded = hf_pvt.PvtDetectionImageProcessor.from_pretrained(tmp_path)
    assert loaded.auto_map == {"AutoImageProcessor": "image_processing_detection.PvtDetectionImageProcessor"}
    assert loaded(photo(90, 150), return_tensors="pt")["pixel_values"].shape == (1, 3, 128, 192)
    assert (loaded.category_ids, loaded.return_segmentation_masks) == ([7, 3], True)


WITHOUT = """
import sys
for name in ("torchvision", "faster_coco_eval"):
    sys.modules[name] = None
import hf_pvt, numpy
from hf_pvt.detection.coco_masks import encode_mask
for use in (hf_pvt.detection_image_processor, lambda: encode_mask(numpy.zeros((2, 3), bool))):
    try:
        use()
    except ImportError as error:
        print(error)
"""


@pytest.mark.processes
def test_without_the_extra() -> None:
    """The package and its detection parts can be imported; using them says what to install."""
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    install = 'which is not there; install it with pip install "hf_pvt[detection]".'
    assert result.stdout.splitlines() == [
        f"PvtDetectionImageProcessor needs torchvision, {install}",
        f"COCO's masks need faster-coco-eval, {install}",
    ]
