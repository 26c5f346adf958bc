"""Files that anybody may have sent, as photographs."""

import io
import warnings
from pathlib import Path

from PIL import Image

from hf_pvt.images.image_inputs import as_rgb

MAX_BYTES = 20 * 2**20  # of a file
MAX_PIXELS = 50_000_000
MAX_RATIO = 16  # of the sides: processors scale by the shorter one
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # of all that Pillow knows, some start other programs


def read_photograph(path: str | Path) -> Image.Image:
    """The photograph of a file, upright and RGB; of several frames the first. Its size is looked at before its pixels.

    From memory: of a turned TIFF that lies on a disk Pillow 12.3 shuffles the pixels.

    Raises:
        ValueError: no image, a broken one, or one that is too large; the message is for whoever sent it.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"The file is larger than {MAX_BYTES // 2**20} MB; send a smaller one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as file:
                check_size(*file.size)
                return as_rgb(file)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The image has far more than {MAX_PIXELS // 10**6} million pixels; send a smaller one."
        ) from error
    except ValueError:
        raise
    except Exception as error:  # decoders of broken files raise whatever they meet
        raise ValueError(
            f"This is no image that can be read, or it is broken; send one of {', '.join(FORMATS)}."
        ) from error


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"The image has {width}x{height} pixels, more than {MAX_PIXELS // 10**6} million; send a smaller one."
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"The image is {width}x{height} pixels, more than {MAX_RATIO} times as long as wide; cut it.")


def at_screen_size(photograph: Image.Image, least: int = 640, most: int = 1280) -> Image.Image:
    """The photograph with its longer side of `least` to `most` pixels, to be drawn on."""
    longer = max(photograph.size)
    scale = min(max(longer, least), most) / longer
    return photograph.resize([max(1, round(scale * side)) for side in photograph.size])
