"""What the page of examples/web makes of a file: the pixel values of Python's processors, not a canvas's."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromium import chromium
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page
from sklearn.datasets import load_sample_image
from web_site import build, served

import hf_pvt
from hf_pvt.drawing.segmentations import distinct_colour
from hf_pvt.images.image_inputs import readable
from hf_pvt.images.image_processing_pvt import PvtImageProcessorPil, PvtSegmentationImageProcessorPil

pytestmark = pytest.mark.browser

ONE_LEVEL = 1 / 255 / 0.224
# Numbers travel as base64 of their bytes.
SCRIPT = """async ([file, config, stock]) => {
    const bytes = await (await fetch(`data:application/octet-stream;base64,${file}`)).blob();
    const url = new URL("/", location);
    const answer = ({ data, dims }) => {
        const text = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
        let packed = "";
        for (let i = 0; i < text.length; i += 8192) packed += String.fromCharCode(...text.subarray(i, i + 8192));
        return [btoa(packed), dims];
    };
    if (stock) {
        const { PvtImageProcessor, RawImage } = await import(new URL("vendor/transformers.min.js", url));
        const { pixel_values } = await new PvtImageProcessor(config)(await RawImage.fromBlob(bytes));
        return answer(pixel_values);
    }
    const { readPhotograph } = await import(new URL("photograph.js", url));
    const { Processor } = await import(new URL("processor.js", url));
    const { pixels } = await readPhotograph(bytes);
    const out = config ? new Processor(config).process(pixels) : pixels;
    return answer({ data: out.data, dims: [out.height, out.width] });
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page without models, whose modules are called one by one."""
    out = tmp_path_factory.mktemp("site") / "dist"
    built = build(out=out)
    assert built.returncode == 0, built.stderr
    with served(out) as address, chromium() as browser, browser.new_page() as page:
        page.goto(address)
        yield page


def run(page: Page, file: bytes, config: dict[str, Any] | None, stock: bool = False) -> np.ndarray:
    """Pixel values (3, H, W) by the page's processor, or by transformers.js; without a configuration the pixels."""
    packed, dims = page.evaluate(SCRIPT, [base64.b64encode(file).decode(), config, stock])
    numbers = np.frombuffer(base64.b64decode(packed), np.float32 if config else np.uint8)
    return numbers.reshape(3, *dims[-2:]) if config else numbers.reshape(*dims, 3)


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).crop((40, 60, 40 + width, 60 + height))


def png(image: Image.Image) -> bytes:
    return saved(image, "png")


def saved(image: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


# Of these sizes a centre crop leaves odd margins, beside and above.
LARGE, SMALL = (450, 299), (97, 131)
PUBLISHED = PvtImageProcessorPil(**hf_pvt.classification_image_processor().to_dict())
PROCESSORS: dict[str, tuple[Any, tuple[int, int]]] = {
    "published-classifier": (PUBLISHED, LARGE),
    "published-classifier-enlarged": (PUBLISHED, SMALL),
    "square-classifier": (PvtImageProcessorPil(), LARGE),
    "lanczos": (PvtImageProcessorPil(size={"height": 70, "width": 300}, resample=Image.Resampling.LANCZOS), SMALL),
    "as-it-is": (PvtImageProcessorPil(do_resize=False, do_normalize=False), SMALL),
    "segmenter": (PvtSegmentationImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 512}), LARGE),
    "segmenter-longest": (PvtSegmentationImageProcessorPil(size={"shortest_edge": 500, "longest_edge": 170}), SMALL),
    "segmenter-squashed": (
        PvtSegmentationImageProcessorPil(size={"height": 100, "width": 250}, size_divisor=16),
        LARGE,
    ),
}


def written(processor: Any) -> dict[str, Any]:
    """preprocessor_config.json."""
    return json.loads(processor.to_json_string())


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixel_values(name: str, page: Page) -> None:
    """The same as Pillow's, shrunk and enlarged."""
    processor, size = PROCESSORS[name]
    image = photograph(*size)
    expected = processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(run(page, png(image), written(processor)), expected, rtol=0, atol=1e-6)


def test_published_resampling(page: Page) -> None:
    """Twice, without antialiasing; PyTorch's 32 bits round one pixel in thousands to the other level."""
    processor = PvtSegmentationImageProcessorPil(size={"shortest_edge": 130}, published_resampling=True)
    for size in (LARGE, SMALL):
        image = photograph(*size)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        difference = np.abs(run(page, png(image), written(processor)) - expected)
        assert difference.max() < 2.1 * ONE_LEVEL, size
        assert (difference > 1e-6).mean() < 1e-3, size


def test_transformers_js_alone(page: Page) -> None:
    """Why the page does it itself: in a browser transformers.js resizes with the canvas."""
    image = photograph(451, 300)
    expected = PUBLISHED(image, return_tensors="np")["pixel_values"][0]
    difference = np.abs(run(page, png(image), written(PUBLISHED), stock=True) - expected)
    assert difference.max() > 20 * ONE_LEVEL


def transparent() -> Image.Image:
    image = photograph(120, 80)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def gamma() -> bytes:
    """A file that asks for other colours than its numbers, which Pillow does not do."""
    chunks = PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4))
    return saved(photograph(120, 80), "png", pnginfo=chunks)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    return saved(photograph(120, 80), "jpeg", exif=exif, quality=95)


# The file, and how many levels of 8 bits a browser may be off.
FILES: dict[str, tuple[bytes, int]] = {
    "png": (png(photograph(120, 80)), 0),
    "grey": (png(ImageOps.grayscale(photograph(120, 80))), 0),
    "palette": (png(photograph(120, 80).convert("P")), 0),
    "16-bit": (png(Image.fromarray(np.arange(80 * 120, dtype=np.uint16).reshape(80, 120) * 6)), 1),
    "transparent": (png(transparent()), 1),
    "jpeg": (saved(photograph(120, 80), "jpeg", quality=90), 2),
    "turned": (turned(), 2),
    "webp": (saved(photograph(120, 80), "webp", lossless=True), 0),
    "gamma": (gamma(), 0),
}


def test_files(page: Page) -> None:
    """Upright, in colours, on white, as `readable` has them."""
    for name, (file, levels) in FILES.items():
        expected = np.asarray(readable(Image.open(io.BytesIO(file)))).astype(int)
        found = run(page, file, None)
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() <= levels, name


def test_large_photographs(page: Page) -> None:
    """The model sees all pixels; what is shown has about two million at most, in the same shape."""
    image = photograph(600, 400).resize((2400, 1600))
    script = """async (file) => {
        const bytes = await (await fetch(`data:application/octet-stream;base64,${file}`)).blob();
        const { readPhotograph } = await import(new URL("photograph.js", location));
        const { pixels, shown } = await readPhotograph(bytes);
        return [pixels, shown].map(({ width, height, data }) => [width, height, data.length]);
    }"""
    pixels, shown = page.evaluate(script, base64.b64encode(png(image)).decode())
    assert pixels == [2400, 1600, 3 * 2400 * 1600]
    assert shown == [1732, 1155, 4 * 1732 * 1155] and 1732 * 1155 > 2e6 > 1731 * 1154
    assert np.array_equal(run(page, png(image), None), image)


def test_colours(page: Page) -> None:
    """Labels have `draw_segmentation`'s colours."""
    script = """async () => {
        const { distinctColour } = await import(new URL("overlay.js", location));
        return Array.from({ length: 256 }, (_, label) => distinctColour(label));
    }"""
    assert [tuple(colour) for colour in page.evaluate(script)] == [distinct_colour(label) for label in range(256)]
