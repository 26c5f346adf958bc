"""One rule for 16 bits, floats and channels: training, evaluation, pipelines and both processors give the same."""

import base64
import io
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from families import PVT_V2
from PIL import Image
from transformers import AutoImageProcessor, pipeline

import hf_pvt
from hf_pvt.images.image_inputs import logger, readable
from hf_pvt.training.data.decoding import BadImageError, decode_image

GENERATOR = np.random.default_rng(0)
DEEP = GENERATOR.integers(0, 65536, (48, 64), dtype=np.uint16)
UNIT = (DEEP / 65535).astype(np.float32)
COLOURS = GENERATOR.integers(0, 256, (48, 64, 3), dtype=np.uint8)
FOUR, FIVE = (GENERATOR.integers(0, 256, (48, 64, count), dtype=np.uint8) for count in (4, 5))
CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}

PROCESSORS = {
    "classification": hf_pvt.PvtImageProcessor,
    "classification on PIL": hf_pvt.PvtImageProcessorPil,
    "segmentation": hf_pvt.PvtSegmentationImageProcessor,
    "segmentation on PIL": hf_pvt.PvtSegmentationImageProcessorPil,
}
processors = pytest.mark.parametrize("name", PROCESSORS)


def in_turn(*cases: Any) -> list[tuple[Any, ...]]:
    """Each case with one processor: all four read images by the same function, so they take turns."""
    return [(name, *case) for name, case in zip(cycle(PROCESSORS), cases, strict=False)]


def plain(name: str, num_channels: int = 3, **settings: Any) -> Any:
    """A processor that gives levels of 0 to 255 back."""
    fields = {"do_resize": False, "image_mean": [0.0] * num_channels, "image_std": [1.0] * num_channels}
    return PROCESSORS[name](**fields | settings)


def levels(processor: Any, image: Any, **settings: Any) -> torch.Tensor:
    """The image as the model would get it, times 255: (C, H, W)."""
    return 255 * torch.as_tensor(np.asarray(processor(image, **settings)["pixel_values"][0]))


def chw(pixels: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, C) as floats (C, H, W)."""
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return torch.from_numpy(np.moveaxis(pixels, 2, 0).astype(np.float32))


def tiff(pixels: np.ndarray, **settings: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


# What is 16 bits or floats, and what it has to become: 8 bits, by their range.
DEPTHS: dict[str, tuple[bytes, np.ndarray]] = {
    "16 bits.png": (png(DEEP), DEEP // 256),
    "16 bits.tif": (tiff(DEEP), DEEP // 256),
    "big endian.tif": (tiff(DEEP, byteorder=">"), DEEP // 256),
    "16 bits of colours.tif": (tiff(COLOURS.astype(np.uint16) * 256 + 255, photometric="rgb"), COLOURS),
    "floats.tif": (tiff(UNIT), np.round(255 * UNIT)),
    "floats of colours.tif": (tiff(COLOURS.astype(np.float32) / 255, photometric="rgb"), COLOURS),
    "floats.npy": (npy(UNIT.astype(np.float64)), np.round(255 * UNIT)),
    "16 bits.npy": (npy(DEEP), DEEP // 256),
    "one bit.tif": (tiff(DEEP > 9999, photometric="minisblack"), 255 * (DEEP > 9999)),
}


@pytest.mark.parametrize(("name", "file"), in_turn(*((file,) for file in DEPTHS)))
def test_depths_of_files(name: str, file: str, tmp_path: Path) -> None:
    """The processor reads a file as training does, which is by its range."""
    content, expected = DEPTHS[file]
    (tmp_path / file).write_bytes(content)
    torch.testing.assert_close(levels(plain(name), str(tmp_path / file)), chw(expected), rtol=0, atol=1e-3)
    torch.testing.assert_close(chw(np.asarray(decode_image(tmp_path / file))), chw(expected), rtol=0, atol=0)
    if not file.endswith("npy"):
        data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        torch.testing.assert_close(levels(plain(name), data), chw(expected), rtol=0, atol=1e-3)


HALF = UNIT.astype(np.float16)
IN_MEMORY: dict[str, tuple[Any, np.ndarray]] = {
    "16 bits": (DEEP, DEEP // 256),
    "big endian": (DEEP.astype(">u2"), DEEP // 256),
    "16 bits of Pillow": (Image.fromarray(DEEP), DEEP // 256),
    "floats": (UNIT, np.round(255 * UNIT)),
    "float16 and one channel": (HALF[..., None], np.round(255 * HALF.astype(np.float32))),
    "floats of Pillow": (Image.fromarray(UNIT), np.round(255 * UNIT)),
    "colours": (COLOURS, COLOURS),
    "channels first": (np.moveaxis(COLOURS, 2, 0), COLOURS),
    "float64 of colours": (COLOURS.astype(np.float64) / 255, COLOURS),
    "32 bits of Pillow": (Image.fromarray(COLOURS[..., 0].astype(np.int32)), COLOURS[..., 0]),
    "list": ([COLOURS], COLOURS),
    "batch": (COLOURS[None], COLOURS),
}
TENSORS: dict[str, tuple[torch.Tensor, np.ndarray]] = {
    "16 bits": (torch.from_numpy(DEEP), DEEP // 256),
    "16 bits and one channel": (torch.from_numpy(DEEP)[None], DEEP // 256),
    "channels first": (torch.from_numpy(COLOURS).permute(2, 0, 1), COLOURS),
    "channels last": (torch.from_numpy(COLOURS), COLOURS),
    "floats": (torch.from_numpy(UNIT), 255 * UNIT),
}


@pytest.mark.parametrize(("name", "case"), in_turn(*((case,) for case in IN_MEMORY)))
def test_depths_in_memory(name: str, case: str) -> None:
    """A 2-D array is a grey image, and floats are 0 to 1."""
    image, expected = IN_MEMORY[case]
    torch.testing.assert_close(levels(plain(name), image), chw(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["segmentation", "classification on PIL"])
@pytest.mark.parametrize("case", TENSORS)
def test_depths_of_tensors(name: str, case: str) -> None:
    """As of arrays; they do not go through Pillow, so that floats are not rounded."""
    image, expected = TENSORS[case]
    torch.testing.assert_close(levels(plain(name), image), chw(expected), rtol=0, atol=2e-3)


@processors
def test_floats_that_are_prepared_already(name: str) -> None:
    """With do_rescale=False any number is left as it is, of grey as well."""
    for pixels in (3 * UNIT - 1, 3 * np.stack([UNIT] * 3, axis=2) - 1, torch.from_numpy(3 * UNIT - 1)):
        batch = levels(plain(name), pixels, do_rescale=False)
        torch.testing.assert_close(batch, chw(255 * (3 * UNIT - 1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    in_turn(
        (255 * UNIT, r"floats holds 0\.\d+ to 25\d\.?\d*, expected 0 to 1; scale it"),
        (Image.fromarray(255 * UNIT), "expected 0 to 1"),
        (torch.from_numpy(UNIT) - 1, "expected 0 to 1"),
        (np.where(UNIT > 0.5, np.nan, UNIT), "holds nan to nan, expected 0 to 1"),
        (DEEP.astype(np.int32), "of int32 holds .* expected 0 to 255; save 16 bits as uint16"),
        (torch.from_numpy(DEEP.astype(np.int32)), "expected 0 to 255"),
        (Image.fromarray(DEEP.astype(np.int32)), "expected 0 to 255"),
        (FIVE, r"of shape \(48, 64, 5\) has not the 3 channels"),
        (torch.zeros(2, 48, 64), r"of shape \(\d+, \d+, \d+\) has not the 3 channels"),
        (UNIT[0], r"of shape \(64,\) has not the 3 channels"),
    ),
    ids=range(10),  # arrays have no name that all processes share
)
def test_what_is_no_image_is_refused(name: str, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(name)(image)


# Channels

CHANNELS: dict[str, tuple[bytes, np.ndarray]] = {
    "four.tif": (tiff(FOUR), FOUR),
    "named.tif": (tiff(FOUR, photometric="rgb", extrasamples=["unspecified"]), FOUR),
    "black is zero.tif": (tiff(FOUR, **CONTIGUOUS), FOUR),
    "planes.tif": (tiff(np.moveaxis(FOUR, 2, 0).copy(), photometric="minisblack", planarconfig="separate"), FOUR),
    "pages.tif": (tiff(np.moveaxis(FOUR, 2, 0).copy(), photometric="minisblack"), FOUR),
    "compressed.tif": (tiff(FOUR, compression="zlib", **CONTIGUOUS), FOUR),
    "four.png": (png(FOUR), FOUR),
    "four.npy": (npy(FOUR), FOUR),
    "first.npy": (npy(np.moveaxis(FOUR, 2, 0)), FOUR),
    "five.tif": (tiff(FIVE, **CONTIGUOUS), FIVE),
    "five of rgb.tif": (tiff(FIVE, photometric="rgb"), FIVE),
    "five by default.tif": (tiff(FIVE), FIVE),
    "two.tif": (tiff(FOUR[..., :2].copy(), **CONTIGUOUS), FOUR[..., :2]),
    "one.tif": (tiff(FOUR[..., 0].copy()), FOUR[..., :1]),
}


@pytest.mark.parametrize(("name", "file"), in_turn(*((file,) for file in CHANNELS)))
def test_channels(name: str, file: str, tmp_path: Path) -> None:
    """All of them arrive, in their order, whichever library wrote the file."""
    content, expected = CHANNELS[file]
    (tmp_path / file).write_bytes(content)
    processor = plain(name, expected.shape[2])
    torch.testing.assert_close(levels(processor, tmp_path / file), chw(expected), rtol=0, atol=1e-3)
    assert np.array_equal(decode_image(content, num_channels=expected.shape[2]), expected)
    assert np.array_equal(readable(expected, expected.shape[2]), expected)


@pytest.mark.parametrize("file", [file for file in CHANNELS if file not in ("one.tif", "four.png")])
def test_channels_are_never_dropped(file: str, tmp_path: Path) -> None:
    """A model of three says what there is; of a PNG the fourth is transparency, of a TIFF it could be anything."""
    path = tmp_path / file
    path.write_bytes(CHANNELS[file][0])
    with pytest.raises(ValueError, match=r"channels|animation"):
        decode_image(path)
    for name in PROCESSORS:
        if file not in ("pages.tif", "five by default.tif"):  # pages, of which Pillow shows the first
            with pytest.raises(ValueError, match="channels"):
                plain(name)(str(path))
    if file in ("four.tif", "named.tif"):
        with Image.open(path) as image, pytest.raises(ValueError, match="a file has 4 channels, the model takes 3"):
            plain("classification")(image)


def test_other_channels_than_the_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of shape \(48, 64, 3\) has not the 4 channels"):
        plain("classification", 4)(Image.fromarray(COLOURS))
    (tmp_path / "five.tif").write_bytes(CHANNELS["five.tif"][0])
    with pytest.raises(BadImageError, match=r"five\.tif cannot be used: an image of shape .* has not the 4 channels"):
        decode_image(tmp_path / "five.tif", num_channels=4)
    opaque = np.dstack((COLOURS, np.full((48, 64), 255, np.uint8)))
    (tmp_path / "opaque.tif").write_bytes(tiff(opaque))
    assert np.array_equal(np.asarray(decode_image(tmp_path / "opaque.tif")), COLOURS)  # nothing is lost


def test_16_bits_keep_their_bits_beside_rgb() -> None:
    deep = np.stack([DEEP, DEEP[::-1], DEEP // 3, DEEP // 7], axis=2)
    for image in (deep, np.moveaxis(deep, 2, 0)):
        torch.testing.assert_close(levels(plain("segmentation", 4), image), chw(deep / 257.0), rtol=0, atol=1e-3)
    decoded = decode_image(tiff(deep), num_channels=4)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, deep / 65535, atol=1e-6)


def test_12_bits_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A camera's 12 bits in 16 are dark; which range an image should have, it does not say."""
    logger.warning_once.cache_clear()
    plain("classification")(DEEP)
    assert not caplog.records
    for num_channels in (3, 1, 3):
        plain("classification", num_channels)(DEEP // 16)
    assert ["multiply it by 16" in record.message for record in caplog.records] == [True]


def test_a_tiff_that_needs_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "five.tif").write_bytes(CHANNELS["five.tif"][0])
    with pytest.raises(BadImageError, match=r"five\.tif cannot be used: .*install tifffile"):
        decode_image(tmp_path / "five.tif", num_channels=5)
    assert decode_image(tiff(FOUR), num_channels=4).shape == (48, 64, 4)  # Pillow has a mode for it
    monkeypatch.undo()
    cut = CHANNELS["five.tif"][0][:-1000]
    with pytest.raises(BadImageError, match=r"cut\.tif (is damaged|cannot be used)"):
        decode_image(cut, "cut.tif", 5)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_backends_agree_on_four_channels(kind: str, resample: Image.Resampling) -> None:
    """The fourth is no transparency, which Pillow would weigh the others by."""
    size = {"height": 32, "width": 32}
    both = [plain(name, 4, do_resize=True, size=size, resample=resample) for name in (kind, f"{kind} on PIL")]
    first, second = (levels(processor, FOUR) for processor in both)
    assert (first - second).abs().max() < 1.01
    rgb = levels(plain(f"{kind} on PIL", do_resize=True, size=size, resample=resample), FOUR[..., :3].copy())
    torch.testing.assert_close(second[:3], rgb, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("make", [hf_pvt.classification_image_processor, hf_pvt.segmentation_image_processor])
def test_saved_folder(make: Any, backend: str, tmp_path: Path) -> None:
    settings = {"image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7, 0.8]}
    saved = make(num_channels=4, **settings)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert list(loaded.image_mean) == settings["image_mean"] and list(loaded.image_std) == settings["image_std"]
    difference = np.asarray(loaded(FOUR)["pixel_values"][0]) - np.asarray(saved(FOUR)["pixel_values"][0])
    assert np.abs(difference).max() < 2.01 / 255 / 0.5  # torchvision resizes with coarser weights
    with pytest.raises(ValueError, match="image_mean has 4 numbers and image_std 3"):
        loaded(FOUR, image_std=[1.0, 1.0, 1.0])


def test_statistics() -> None:
    """As the first convolution is made: repeated over more channels, the mean for one."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for make in (hf_pvt.classification_image_processor, hf_pvt.segmentation_image_processor):
        assert list(make(num_channels=5).image_mean) == [*mean, *mean[:2]]
        assert list(make(num_channels=1).image_std) == pytest.approx([sum(std) / 3])


# Pipelines


def test_pipelines_see_what_training_sees(tmp_path: Path) -> None:
    """Transformers' own would clip 16 bits and drop channels before a processor sees them."""
    torch.manual_seed(0)
    files = {3: tmp_path / "deep.png", 5: tmp_path / "five.tif"}
    files[3].write_bytes(png(DEEP))
    files[5].write_bytes(CHANNELS["five.tif"][0])
    for channels, file in files.items():
        config = PVT_V2.tiny_config(num_channels=channels)
        image = decode_image(file, num_channels=channels)
        processor = hf_pvt.classification_image_processor(32, channels)
        model = PVT_V2.classifier(config).eval()
        classify = pipeline("image-classification", model=model, image_processor=processor)
        with torch.no_grad():
            expected = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0].sort().values.flip(0)
        for given in (str(file), image, [str(file)] if channels == 5 else Image.fromarray(DEEP)):
            found = classify(given, top_k=10)
            found = found[0] if isinstance(found[0], list) else found
            assert [answer["score"] for answer in found] == pytest.approx(expected.tolist())
        features = pipeline("image-feature-extraction", model=PVT_V2.model(config), image_processor=processor)
        assert np.shape(features(str(file)))[0] == 1
        processor = hf_pvt.segmentation_image_processor(channels, size={"height": 32, "width": 64})
        model = PVT_V2.segmenter(config).eval()
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        labels = processor.post_process_semantic_segmentation(outputs, [(48, 64)])[0].numpy()
        for answer in pipeline("image-segmentation", model=model, image_processor=processor)(str(file)):
            assert np.array_equal(np.asarray(answer["mask"]) > 0, labels == config.label2id[answer["label"]])


def test_other_processors_keep_transformers_pipelines() -> None:
    """What is not ours is left alone."""
    import transformers

    model = PVT_V2.classifier(PVT_V2.tiny_config()).eval()
    stock = transformers.PvtImageProcessor(size={"height": 32, "width": 32})
    ours = pipeline("image-classification", model=model, image_processor=stock)
    theirs = transformers.ImageClassificationPipeline(model=model, image_processor=stock)
    assert ours(Image.fromarray(COLOURS)) == theirs(Image.fromarray(COLOURS))
