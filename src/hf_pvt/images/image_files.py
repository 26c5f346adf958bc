"""Image files with all their channels. Pillow drops the ones it has no mode for, without a word."""

import base64
import io
import os
from typing import Any

import numpy as np
from huggingface_hub import get_session
from PIL import Image, UnidentifiedImageError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the first bytes of a file, the last two of BigTIFF
NUMPY = b"\x93NUMPY"
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # tags of TIFF


def open_image_file(source: str | os.PathLike[str], num_channels: int = 3, timeout: float | None = None) -> Any:
    """The image of a file, URL or base64 text: Pillow's, or an array where Pillow reads less than is there.

    Transformers' `load_image` converts to RGB of 8 bits, which clips 16 bits and floats to white.

    Args:
        num_channels: of the model: for any number but 3, RGB of 16 bits comes as an array too (Pillow halves the bits).
        timeout: of a URL, in seconds.

    Raises:
        ValueError: neither a file nor a URL nor base64, or what `read_array` refuses.
    """
    content = _content(os.fspath(source), timeout)
    array = read_array(content, num_channels)
    return Image.open(io.BytesIO(content)) if array is None else array


def _content(source: str, timeout: float | None) -> bytes:
    if os.path.isfile(source):
        with open(source, "rb") as file:
            return file.read()
    if source.startswith(("http://", "https://")):
        return get_session().get(source, timeout=timeout, follow_redirects=True).raise_for_status().content
    try:
        text = source.rpartition(",")[2] if source.startswith("data:image/") else source
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"there is no image file {source[:200]}, and it is neither a URL nor base64.") from error


def read_array(content: bytes, num_channels: int = 3) -> np.ndarray | None:
    """The array of a .npy file, or of a TIFF of which Pillow reads but a part; None where Pillow reads all.

    Raises:
        ValueError: a fourth channel for a model of three (in an array it would be transparency), a TIFF that tifffile
            cannot read either, or one of more pixels than Pillow's limit.
    """
    array = _array(content, num_channels)
    if array is not None and num_channels == 3 and array.ndim == 3 and 4 in (array.shape[0], array.shape[2]):
        raise extra_channels(4)
    return array


def extra_channels(count: int) -> ValueError:
    return ValueError(
        f"a file has {count} channels, the model takes 3; train one with num_channels={count}, or save the file "
        "without the last."
    )


def _array(content: bytes, num_channels: int) -> np.ndarray | None:
    if content.startswith(NUMPY):
        return np.load(io.BytesIO(content), allow_pickle=False)
    if not content.startswith(TIFF) or _pillow_reads_all(content, num_channels):
        return None
    try:
        import tifffile
    except ImportError as error:
        raise ValueError("Pillow does not read all channels of this TIFF; install tifffile, which does.") from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        if Image.MAX_IMAGE_PIXELS is not None and series.size > Image.MAX_IMAGE_PIXELS * num_channels:
            raise ValueError(f"a TIFF of {'x'.join(map(str, series.shape))} values is larger than Pillow's limit.")
        array, axes = series.asarray(), series.axes
    return np.moveaxis(array, axes.index("S"), -1) if "S" in axes else array


def _pillow_reads_all(content: bytes, num_channels: int) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            bands, tags = len(image.getbands()), image.tag_v2  # type: ignore[attr-defined]
            several = getattr(image, "n_frames", 1) > 1 and num_channels != 3  # channels may be pages
    except UnidentifiedImageError:
        return False
    halved = max(tags.get(BITS_PER_SAMPLE, (1,))) > 8 and bands > 1 and num_channels != 3
    return tags.get(SAMPLES_PER_PIXEL, 1) == bands and not halved and not several
