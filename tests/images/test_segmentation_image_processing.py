"""Images and label maps of segmenters: sizes, modes, both backends, and back to label maps."""

import base64
from io import BytesIO
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping

import hf_pvt

BACKENDS = (hf_pvt.PvtSegmentationImageProcessor, hf_pvt.PvtSegmentationImageProcessorPil)
PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 427x640
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

backends = pytest.mark.parametrize("backend", BACKENDS, ids=["torchvision", "pil"])


def in_turn(*cases: Any) -> list[tuple[Any, ...]]:
    """Each case with one backend: what is tested is written once for both, so they take turns."""
    return [(backend, *case) for backend, case in zip(cycle(BACKENDS), cases, strict=False)]


def pixels(batch: Any) -> torch.Tensor:
    """The first image as 0 to 255, (3, H, W)."""
    return (torch.as_tensor(batch["pixel_values"][0]) * STD + MEAN) * 255


def data_url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# Sizes


@pytest.mark.parametrize(
    ("backend", "height", "width", "expected"),
    in_turn(
        (427, 640, (512, 768)),  # 512 x 767.4
        (512, 512, (512, 512)),
        (100, 1000, (224, 2048)),  # the longer side ends at 2048: 204.8 x 2048
        (1000, 100, (2048, 224)),
        (683, 512, (704, 512)),
        (33, 33, (512, 512)),
    ),
)
def test_sizes(backend: Any, height: int, width: int, expected: tuple[int, int]) -> None:
    batch = backend()(np.zeros((height, width, 3), dtype=np.uint8), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, *expected)


@backends
def test_other_sizes(backend: Any) -> None:
    assert backend(size={"height": 96, "width": 70})(PHOTO)["pixel_values"][0].shape == (3, 96, 96)
    assert backend(size={"height": 96, "width": 70}, size_divisor=1)(PHOTO)["pixel_values"][0].shape == (3, 96, 70)
    assert backend(size={"shortest_edge": 64})(PHOTO)["pixel_values"][0].shape == (3, 64, 96)
    assert backend(do_resize=False)(PHOTO)["pixel_values"][0].shape == (3, 427, 640)
    rounded = backend(size_divisor=1)(np.zeros((400, 603, 3), dtype=np.uint8))["pixel_values"][0]
    assert rounded.shape == (3, 512, 772)  # 771.84
    two = backend()([PHOTO, PHOTO.rotate(90, expand=True)])["pixel_values"]
    assert [tuple(image.shape) for image in two] == [(3, 512, 768), (3, 768, 512)]


# Pixels


@pytest.mark.parametrize(
    ("image", "resample"),
    [
        (PHOTO, Image.Resampling.BILINEAR),
        (PHOTO, Image.Resampling.BICUBIC),
        (PHOTO, Image.Resampling.NEAREST),
        (Image.fromarray(data.astronaut()), Image.Resampling.BICUBIC),
        (Image.fromarray(data.coins()), Image.Resampling.BILINEAR),
        (np.asarray(PHOTO), Image.Resampling.BICUBIC),
        (data_url(PHOTO), Image.Resampling.NEAREST),
    ],
    ids=["bilinear", "bicubic", "nearest", "astronaut", "coins", "array", "data URL"],
)
def test_backends_agree(image: Any, resample: Image.Resampling) -> None:
    """Enlarged and reduced; the filter may be PIL's, its number, or torchvision's."""
    for size in ({"shortest_edge": 512, "longest_edge": 2048}, {"shortest_edge": 96}):
        expected = pixels(BACKENDS[1](size=size)(image, resample=resample))
        for chosen in (resample, int(resample), pil_torch_interpolation_mapping[resample]):
            actual = pixels(BACKENDS[0](size=size)(image, resample=chosen))
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@backends
def test_values_are_those_of_pil(backend: Any) -> None:
    expected = torch.from_numpy(np.asarray(PHOTO.resize((768, 512), Image.Resampling.BILINEAR)).copy())
    torch.testing.assert_close(pixels(backend()(PHOTO)), expected.permute(2, 0, 1).float(), rtol=0, atol=1e-3)


def test_tensors_are_resized_by_the_backend() -> None:
    """Floats are not rounded to levels; beside a PIL image too, which PIL resizes."""
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    processor = BACKENDS[0](size={"height": 32, "width": 64}, do_rescale=False)
    batch = processor([image, Image.fromarray(RGB)])["pixel_values"]
    expected = F.interpolate(image[None], (32, 64), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(batch[0] * STD + MEAN, expected)
    levels = torch.from_numpy(np.array(Image.fromarray(RGB).resize((64, 32), Image.Resampling.BILINEAR)))
    torch.testing.assert_close(batch[1] * STD + MEAN, levels.permute(2, 0, 1).float(), rtol=0, atol=1e-3)


# Modes of images

RGB = np.asarray(PHOTO.crop((0, 0, 64, 48)))
GREY = RGB[..., 1]


def of_mode(mode: str) -> tuple[Any, np.ndarray]:
    """An image of a mode, and what a person sees: (H, W, 3)."""
    seen_grey = np.repeat(GREY[..., None], 3, axis=2)
    if mode == "grey":
        return Image.fromarray(GREY), seen_grey
    if mode == "grey array":
        return GREY, seen_grey
    if mode == "one channel":
        return GREY[..., None], seen_grey
    if mode == "int64 array":
        return GREY.astype(np.int64), seen_grey
    if mode == "16 bit array":
        return RGB.astype(np.uint16) * 256 + 255, RGB
    if mode == "1 bit array":
        return GREY > 127, np.where(seen_grey > 127, 255, 0)
    if mode == "palette":
        image = Image.fromarray(RGB).quantize(16)
        return image, np.asarray(image.convert("RGB"))
    if mode in ("RGBA", "RGBA array", "palette with transparency", "grey with alpha"):
        alpha = np.zeros(GREY.shape, dtype=np.uint8)
        alpha[:, :32] = 255
        seen = RGB if mode.startswith("RGBA") else seen_grey
        seen = np.where(alpha[..., None] > 0, seen, 255)
        if mode == "grey with alpha":
            return Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha))), seen
        if mode == "palette with transparency":
            image = Image.fromarray((np.arange(64 * 48) % 2).astype(np.uint8).reshape(48, 64), "P")
            image.putpalette([10, 20, 30, 40, 50, 60])
            image.info["transparency"] = 1
            return image, np.where(np.asarray(image)[..., None] == 0, [10, 20, 30], 255)
        array = np.dstack((RGB, alpha))
        return array if mode == "RGBA array" else Image.fromarray(array), seen
    if mode == "CMYK":
        image = Image.fromarray(RGB).convert("CMYK")
        return image, np.asarray(image.convert("RGB"))
    if mode == "16 bit":
        return Image.fromarray(GREY.astype(np.uint16) * 256 + 255), seen_grey
    if mode == "1 bit":
        image = Image.fromarray(GREY).convert("1")
        return image, np.asarray(image.convert("RGB"))
    if mode == "turned":
        image = Image.fromarray(RGB)
        image.getexif()[0x0112] = 6  # a camera held upright: turn clockwise to see it
        return image, np.rot90(RGB, -1)
    raise AssertionError(mode)


MODES = (
    "grey", "grey array", "one channel", "int64 array", "16 bit array", "1 bit array", "palette", "RGBA", "RGBA array",
    "palette with transparency", "grey with alpha", "CMYK", "16 bit", "1 bit", "turned",
)  # fmt: skip


@pytest.mark.parametrize(("backend", "mode"), in_turn(*((mode,) for mode in MODES)))
def test_modes(backend: Any, mode: str) -> None:
    image, seen = of_mode(mode)
    actual = pixels(backend(do_resize=False)(image))
    expected = torch.from_numpy(np.array(seen)).permute(2, 0, 1).float()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("backend", "values"), in_turn(([-1, 255],), ([0, 256],)))
def test_integers_that_are_no_image(backend: Any, values: list[int]) -> None:
    with pytest.raises(ValueError, match=f"of int64 holds {values[0]} to {values[1]}, expected 0 to 255"):
        backend()(np.array([values]))


@backends
def test_files(backend: Any, tmp_path: Path) -> None:
    """Paths of an image and its label map; orientation is read from the file."""
    image, seen = of_mode("turned")
    image.save(tmp_path / "image.png", exif=image.getexif())
    Image.fromarray(seen[..., 0].copy()).save(tmp_path / "labels.png")
    batch = backend(do_resize=False)(str(tmp_path / "image.png"), str(tmp_path / "labels.png"))
    torch.testing.assert_close(pixels(batch), torch.from_numpy(seen.copy()).permute(2, 0, 1).float(), rtol=0, atol=1e-3)
    assert np.array_equal(batch["labels"][0], seen[..., 0])


# Label maps

LABELS = np.random.RandomState(0).randint(0, 151, (48, 64))


@pytest.mark.parametrize(
    ("backend", "label_map"),
    in_turn(
        (LABELS,),
        (LABELS.astype(np.uint8),),
        (torch.from_numpy(LABELS),),
        (Image.fromarray(LABELS.astype(np.uint8)),),
        (Image.fromarray(LABELS.astype(np.uint8), "P"),),
        (Image.fromarray(LABELS.astype(np.uint16)),),
        (LABELS[None],),
        (LABELS[..., None],),
    ),
    ids=["int64", "uint8", "tensor", "grey", "palette", "16 bit", "channel first", "channel last"],
)
def test_label_maps(backend: Any, label_map: Any) -> None:
    """Resized to the nearest, never mixed, int64; as `torch`'s exact nearest."""
    batch = backend(size={"shortest_edge": 70})(RGB, label_map, return_tensors="pt")
    expected = F.interpolate(torch.from_numpy(LABELS)[None, None].double(), (96, 96), mode="nearest-exact")[0].long()
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].equal(expected)
    assert batch["pixel_values"].shape[-2:] == batch["labels"].shape[-2:]


@pytest.mark.parametrize(
    ("backend", "shape", "expected"),
    in_turn(((1, 1, 7), (1, 7)), ((7, 1, 1), (7, 1)), ((1, 7, 1), (7, 1)), ((1, 1, 1), (1, 1))),
)
def test_label_maps_one_pixel_wide(backend: Any, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    """The first dimension is the channel where it is 1, otherwise the last."""
    labels = np.arange(np.prod(shape)).reshape(shape)
    batch = backend(do_resize=False)(np.zeros((*expected, 3), dtype=np.uint8), labels)
    assert np.array_equal(batch["labels"][0], labels.reshape(expected))


@pytest.mark.parametrize(("backend", "setting"), in_turn(("do_center_crop",), ("do_pad",)))
def test_label_maps_are_not_cropped(backend: Any, setting: str) -> None:
    """Nor padded: said, where labels would end beside their pixels."""
    processor = backend(crop_size={"height": 32, "width": 32}, **{setting: True})
    with pytest.raises(ValueError, match="label maps are only resized"):
        processor(RGB, LABELS)


@backends
def test_reduced_labels(backend: Any) -> None:
    """0 and 255 are ignored, the rest shift down by one; the map given is left as it was."""
    labels = np.array([[0, 1, 2], [150, 254, 255]], dtype=np.uint8)
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    batch = backend(do_resize=False, do_reduce_labels=True)(image, labels)
    assert np.array_equal(batch["labels"][0], [[255, 0, 1], [149, 253, 255]])
    assert labels[0, 0] == 0
    assert np.array_equal(backend(do_resize=False)(image, labels)["labels"][0], labels)


@pytest.mark.parametrize(
    ("backend", "label_map", "message"),
    in_turn(
        (np.zeros((48, 64, 3), dtype=np.uint8), r"one integer label per pixel \(H, W\), got shape \(48, 64, 3\)"),
        (Image.fromarray(RGB), r"got shape \(48, 64, 3\) of uint8; save colour-coded masks"),
        (np.zeros((48, 64)), "got shape .* of float64"),
        (np.zeros((48, 63), dtype=int), r"image 0 is 48x64 pixels \(height x width\), its label map 48x63"),
        ([LABELS, LABELS], "got 2 label maps for 1 images"),
    ),
    ids=["three channels", "colours", "floats", "size", "count"],
)
def test_bad_label_maps(backend: Any, label_map: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend()(RGB, label_map)


# From logits to label maps


@pytest.mark.parametrize(("backend", "labels_at_once"), in_turn((1,), (16,), (37,)))
def test_post_processing(backend: Any, labels_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """argmax of the logits resized to each image's size, more labels than are resized at once."""
    monkeypatch.setattr(hf_pvt.images.image_processing_pvt, "LOGITS_AT_ONCE", labels_at_once * 48 * 64)
    logits = torch.randn(2, 37, 12, 16, generator=torch.Generator().manual_seed(0))
    outputs, sizes = SimpleNamespace(logits=logits), [(48, 64), (31, 70)]
    maps = backend().post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for labels, scores, size in zip(maps, logits, sizes, strict=True):
        assert labels.equal(F.interpolate(scores[None], size, mode="bilinear").argmax(1)[0])
    at_logits = torch.stack(backend().post_process_semantic_segmentation(outputs))
    assert at_logits.equal(logits.argmax(1))
    with pytest.raises(ValueError, match="got 1 target sizes for 2 images"):
        backend().post_process_semantic_segmentation(outputs, target_sizes=[(3, 4)])


# Saving


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_save_and_load(backend: str, tmp_path: Path) -> None:
    """What was set comes back through the Auto class, whichever backend saved it."""
    settings = {"size": {"shortest_edge": 96, "longest_edge": 300}, "size_divisor": 8, "do_reduce_labels": True}
    for saver in BACKENDS:
        saver(**settings).save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is BACKENDS[backend == "pil"]
        batch = loaded(PHOTO, np.ones((427, 640), dtype=np.uint8))
        assert batch["pixel_values"][0].shape == (3, 96, 144)
        assert np.array_equal(batch["labels"][0], np.zeros((96, 144)))


def test_torchvision_where_it_is() -> None:
    assert type(hf_pvt.segmentation_image_processor(do_reduce_labels=True)) is BACKENDS[0]
    assert hf_pvt.segmentation_image_processor(do_reduce_labels=True).do_reduce_labels
