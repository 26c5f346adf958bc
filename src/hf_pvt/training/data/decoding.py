"""Decode one image strictly: as the processors read it, or a `BadImageError` that names the file and what is wrong.

PIL opens more than one should train on: the first frame of an animation, a header that promises gigabytes, a file that
ends in the middle (at the first access only). All of these are found here, in the process that reads the file.
"""

import io
import os
import warnings
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...images.image_files import read_array
from ...images.image_inputs import image_size, readable

# In each direction; a picture of one pixel's width is a tracking pixel or a placeholder.
SMALLEST_SIDE = 2

# A path, the bytes of a file, or {"bytes", "path"} with one of both, as `datasets.Image(decode=False)` gives.
Source = str | os.PathLike[str] | bytes | dict[str, Any]


class BadImageError(ValueError):
    """A file that cannot be trained on: `file` names it, `reason` says what is wrong with it."""

    def __init__(self, file: str, reason: str | None = None) -> None:
        # A DataLoader raises the error of a worker anew, with a single text.
        self.file, self.reason = file, reason or ""
        super().__init__(file if reason is None else f"{file} {reason}.")

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, str]]:
        return type(self), (self.file, self.reason)


def decode_image(source: Source, name: str | None = None, num_channels: int = 3) -> Any:
    """An upright RGB image, or an array (H, W, C) for another number of channels: see `hf_pvt.images.image_inputs`.

    Args:
        name: for messages where the source has no path.
        num_channels: of the model.

    Raises:
        BadImageError: the file is missing, empty, not an image, damaged or cut off, an animation, larger than PIL's
            limit (refused from the header, before any pixel is decoded), smaller than 2x2 pixels, has other channels
            or numbers that are no image's.
    """
    content, name = _content(source, name)
    try:
        image: Any = read_array(content, num_channels)
        if image is None:
            image, name = open_image(content, name)
        image = readable(image, num_channels)
    except BadImageError:
        raise
    except ValueError as error:  # of `readable`, in a sentence
        raise BadImageError(name, f"cannot be used: {str(error).rstrip('.')}") from error
    except Exception as error:  # a damaged file raises whatever the decoder stumbles over
        raise BadImageError(name, f"is damaged or cut off ({_first_line(error)})") from error
    height, width = image_size(image)
    if min(height, width) < SMALLEST_SIDE:
        raise too_small(name, width, height)
    return image


def too_small(name: str, width: int, height: int) -> BadImageError:
    return BadImageError(name, f"has {width}x{height} pixels, expected {SMALLEST_SIDE}x{SMALLEST_SIDE}")


def open_image(source: Source, name: str | None = None) -> tuple[Image.Image, str]:
    """The image, decoded but in the mode of its file (a mask's labels are the indices), and its name for messages.

    Raises BadImageError as `decode_image` does.
    """
    content, name = _content(source, name)
    if not content:
        raise BadImageError(name, "is empty")
    try:
        with warnings.catch_warnings():
            # Between one and two times its limit PIL only warns.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise BadImageError(name, "is not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(name, f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, PIL's limit") from error
    except Exception as error:
        raise BadImageError(name, f"is damaged or cut off ({_first_line(error)})") from error
    if min(image.size) < SMALLEST_SIDE:
        raise too_small(name, *image.size)
    try:
        # MPO is a photograph as telephones write it: the other "frames" are previews and depth maps.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:
        raise BadImageError(name, f"is damaged or cut off ({_first_line(error)})") from error
    if frames > 1:
        raise BadImageError(name, f"is an animation of {frames} frames")
    return image, name


def _content(source: Source, name: str | None) -> tuple[bytes, str]:
    """The bytes of the file, and the name to call it."""
    if isinstance(source, bytes):
        return source, name or "an image"
    path = source.get("path") if isinstance(source, dict) else source
    name = name or (str(path) if path else "an image")
    if isinstance(source, dict) and source.get("bytes") is not None:
        return source["bytes"], name
    if not path:
        return b"", name
    try:
        with open(path, "rb") as file:
            return file.read(), name
    except OSError as error:
        raise BadImageError(name, f"cannot be read ({error.strerror})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
