"""The published resampling against scipy's interpolation; the processor, conversion and training follow one field."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_semantic_segmentation import RECIPES, SegmentationArguments, TrainingView
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_sample_image
from transformers import AutoImageProcessor

import hf_pvt
from hf_pvt.images.resampling import between_neighbours, resized
from hf_pvt.training.augmentation.segmentation import RandomScale
from hf_pvt.training.data.label_values import LabelValues
from hf_pvt.training.data.masks import Decoder

PHOTO = load_sample_image("china.jpg")  # (427, 640, 3)
BACKENDS = (hf_pvt.PvtSegmentationImageProcessor, hf_pvt.PvtSegmentationImageProcessorPil)

LABELS = LabelValues(["background", "object"], [0, 1], frozenset({255}))


def opencv(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """INTER_LINEAR by its definition: between the centres of the four nearest pixels, edges repeated; (H, W, C)."""
    rows, columns = ((np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(size, pixels.shape[:2], strict=True))
    places = np.meshgrid(rows, columns, indexing="ij")
    channels = [
        map_coordinates(pixels[..., c].astype(float), places, order=1, mode="nearest") for c in range(pixels.shape[2])
    ]
    return np.stack(channels, axis=2)


@pytest.mark.parametrize("size", [(213, 320), (512, 768), (100, 641), (64, 64), (427, 640)], ids=str)
def test_as_opencv(size: tuple[int, int]) -> None:
    """Half a level is the rounding, the rest float32 coordinates; PIL's antialiasing is far from it."""
    expected = opencv(PHOTO, size)
    found = np.asarray(resized(Image.fromarray(PHOTO), size, published=True)).astype(float)
    assert np.abs(found - expected).max() <= 0.505
    floats = between_neighbours(PHOTO[..., :2].astype(np.float32) / 255, size)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, expected[..., :2] / 255, atol=1e-4)
    antialiased = np.asarray(resized(Image.fromarray(PHOTO), size)).astype(float)
    assert (np.abs(antialiased - expected).mean() > 2) == (size[0] < 427)


@pytest.mark.parametrize("backend", BACKENDS, ids=["torchvision", "pil"])
def test_processor(backend: type, tmp_path: Path) -> None:
    """To the scale, then to the multiple, as the published code: an image, an array of other channels, a tensor."""
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "size": {"shortest_edge": 200}}
    processor = backend(published_resampling=True, **plain)
    once = np.rint(opencv(PHOTO, (200, 300)))
    expected = np.moveaxis(opencv(once, (224, 320)), 2, 0)
    found = 255 * np.asarray(processor(Image.fromarray(PHOTO))["pixel_values"][0])
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1.6
    assert np.abs(found - expected).mean() < 0.4
    tensor = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    assert np.abs(255 * np.asarray(processor(tensor)["pixel_values"][0]) - expected).max() < 2.1
    four = backend(published_resampling=True, **plain | {"image_mean": [0.0] * 4, "image_std": [1.0] * 4})
    pixels = np.dstack((PHOTO, PHOTO[..., 0]))
    found_of_four = 255 * np.asarray(four(pixels)["pixel_values"][0])
    difference = np.abs(found_of_four - found[[0, 1, 2, 0]])
    # A tie may be rounded either way: how PyTorch's vectors end depends on threads and channels.
    assert difference.max() < 1.01 and (difference > 0.01).mean() < 1e-3
    default = 255 * np.asarray(backend(**plain)(Image.fromarray(PHOTO))["pixel_values"][0])
    assert np.abs(default - expected).mean() > 2
    processor.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).published_resampling
    assert not hf_pvt.segmentation_image_processor().published_resampling


@pytest.mark.parametrize("published", [False, True])
def test_training_follows_the_processor(published: bool) -> None:
    fields = {k: v for k, v in RECIPES["finetune"].items() if k in SegmentationArguments.__dataclass_fields__}
    task = SegmentationArguments(**fields | {"published_resampling": published})  # type: ignore[arg-type]
    processor = hf_pvt.segmentation_image_processor(published_resampling=published)
    assert TrainingView(task, Decoder(LABELS), processor).scale.published_resampling == published
    image, labels = Image.fromarray(PHOTO), np.zeros((427, 640), dtype=np.int64)
    scaled, _ = RandomScale(200, 2048, 1, 1, published)(image, labels)
    assert (np.abs(np.asarray(scaled) - opencv(PHOTO, (200, 300))).mean() < 0.3) == published
    assert (RECIPES["ade20k"]["published_resampling"], RECIPES["finetune"]["published_resampling"]) == (True, False)
