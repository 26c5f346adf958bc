"""Every kind of bad file is one sentence that names it; good ones look as in a viewer."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_pvt.training.data.decoding import BadImageError, decode_image, open_image


def png(width: int = 8, height: int = 8) -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, file_format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def promised(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels, with none behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def flipped(content: bytes) -> bytes:
    """A byte in the middle of the pixels is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def animation() -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 128, 255)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "corrupt.png": (lambda: flipped(png(32, 32)), "is damaged or cut off ("),
    "truncated.png": (lambda: png(32, 32)[:1000], "is damaged or cut off ("),
    "truncated.jpg": (lambda: encoded(Image.new("RGB", (64, 64), "red"), "JPEG")[:-20], "is damaged or cut off ("),
    "header.png": (lambda: png()[:20], "is "),
    "empty.png": (lambda: b"", "is empty."),
    "notes.txt": (lambda: b"not an image", "is not an image."),
    "animation.gif": (animation, "is an animation of 3 frames."),
    "bomb.png": (lambda: promised(30_000, 30_000), "has more than 89,478,485 pixels, PIL's limit."),
    "warned.png": (lambda: promised(10_000, 10_000), "has more than 89,478,485 pixels, PIL's limit."),
    "pixel.png": (lambda: png(1, 1), "has 1x1 pixels, expected 2x2."),
    "line.png": (lambda: png(9, 1), "has 9x1 pixels, expected 2x2."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(name: str, tmp_path: Path) -> None:
    """By its path, or by its row."""
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content())
    for source, row, expected in ((path, None, str(path)), ({"bytes": content(), "path": None}, "row 7", "row 7")):
        with pytest.raises(BadImageError) as caught:
            decode_image(source, row)
        message = str(caught.value)
        assert message.startswith(f"{expected} {reason}") and message.endswith(".") and "\n" not in message
        assert caught.value.file == expected


def test_a_mask_that_is_cut_off_is_found_at_once() -> None:
    """Though it stays in the mode of its file, and nothing has looked at its pixels yet."""
    with pytest.raises(BadImageError, match=r"^mask 3 is damaged or cut off \("):
        open_image(png(32, 32)[:1000], "mask 3")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone\.png cannot be read \(No such file or directory\)\.$"):
        decode_image(tmp_path / "gone.png")


def test_the_error_survives_the_way_out_of_a_worker() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a.png", "is empty")))
    assert (str(error), error.file, error.reason) == ("a.png is empty.", "a.png", "is empty")


def test_a_photograph_lies_as_its_header_says(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    image = decode_image(tmp_path / "photo.png")
    assert image.size == (4, 6) and (np.asarray(image)[:2] == 255).all() and (np.asarray(image)[2:] == 0).all()


def test_every_mode_becomes_rgb() -> None:
    cases = {
        "grey": (Image.new("L", (2, 2), 7), (7, 7, 7)),
        "16 bits": (Image.fromarray(np.full((2, 2), 0x4200, dtype=np.uint16)), (0x42, 0x42, 0x42)),
        "transparent": (Image.new("RGBA", (2, 2), (9, 9, 9, 0)), (255, 255, 255)),
    }
    for case, (image, expected) in cases.items():
        decoded = decode_image(encoded(image, "PNG"))
        assert decoded.mode == "RGB" and decoded.getpixel((1, 1)) == expected, case


def test_the_preview_of_a_telephone_is_no_animation() -> None:
    photo, preview = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "red")
    assert decode_image(encoded(photo, "MPO", save_all=True, append_images=[preview])).size == (8, 8)


def test_a_mask_keeps_its_indices() -> None:
    mask = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), mode="P")
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image, _ = open_image(encoded(mask, "PNG"))
    assert np.asarray(image).tolist() == [[0, 1], [2, 3]]
