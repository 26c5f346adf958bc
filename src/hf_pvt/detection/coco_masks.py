"""Masks of COCO's annotations: polygons, run-length encodings and pixels (H, W)."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # height, width


def draw_mask(segmentation: Any, size: Size, where: str = "the annotation") -> NDArray[np.bool_]:
    """Polygons or a run-length encoding, compressed or not, as the pixels (H, W) that COCO's own code draws."""
    return _encoding_and_pixels(segmentation, size, where)[1].astype(bool)


def compress_mask(segmentation: Any, size: Size, where: str = "the annotation") -> dict[str, Any]:
    """Polygons or a run-length encoding, compressed or not, as `encode_mask` writes what `draw_mask` draws."""
    counts = _encoding_and_pixels(segmentation, size, where)[0]["counts"]
    return {"size": [*map(int, size)], "counts": counts if isinstance(counts, str) else counts.decode()}


def _encoding_and_pixels(segmentation: Any, size: Size, where: str) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Both, because only decoding shows whether the runs fill the image."""
    if isinstance(segmentation, dict):
        _check_runs(segmentation, size, where)
    else:
        _check_polygons(segmentation, size, where)
    library = mask_library()
    try:
        if not isinstance(segmentation, dict):
            segmentation = library.merge(library.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list | tuple):
            segmentation = library.frPyObjects(segmentation, *size)
        return segmentation, library.decode(segmentation)
    except (RuntimeError, TypeError, ValueError) as error:
        pixels = f"{size[0]}x{size[1]} pixels (height x width)"
        raise ValueError(f"{where} has a segmentation that cannot be decoded to its image's {pixels}.") from error


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run-length encoding, ready for JSON: `{"size": [H, W], "counts": "..."}`."""
    encoding = mask_library().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoding["counts"].decode()}


def nearest_as_cv2(mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """(H, W) -> `size`: each pixel is the one that its corner falls into, in cv2's arithmetic, as published."""
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def mask_library() -> ModuleType:
    """faster-coco-eval: pycocotools fills what a run-length encoding leaves out with whatever memory holds."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise ImportError(
            'COCO\'s masks need faster-coco-eval, which is not there; install it with pip install "hf_pvt[detection]".'
        ) from None
    return mask


def _check_runs(segmentation: dict[str, Any], size: Size, where: str) -> None:
    given = [int(side) for side in segmentation.get("size", ())]
    if "counts" not in segmentation or given != list(size):
        raise ValueError(
            f"{where} has a run-length encoding of size {given}, its image is {list(size)} (height, width); expected "
            "`counts` and the same `size`."
        )


def _check_polygons(segmentation: Any, size: Size, where: str) -> None:
    """Points far outside are refused as well: drawing takes time and memory along the whole outline."""
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise ValueError(
            f"{where} has the segmentation {shortened(segmentation)}, expected polygons [[x1, y1, x2, y2, ...], "
            "...] or a run-length encoding."
        )
    for polygon in segmentation:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"{where} has the polygon {shortened(polygon)}, expected x1, y1, x2, y2, ... of three points or more."
            )
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)  # x, y
        if not (np.abs(points) <= 2 * max(size)).all():
            raise ValueError(
                f"{where} has the polygon {shortened(polygon)} with points far outside its image of "
                f"{size[1]}x{size[0]} (width x height); is it another image's?"
            )


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
