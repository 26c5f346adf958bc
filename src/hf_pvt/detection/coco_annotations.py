"""An image's annotations, as COCO writes them, as a detector's targets.

H, W: the original image; h, w: the image after resizing; the padded image has zeros at its right and bottom.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coco_masks import draw_mask, nearest_as_cv2, shortened

Size = tuple[int, int]  # height, width


def detection_target(
    annotation: Any,
    original_size: Size,
    resized_size: Size,
    padded_size: Size,
    category_ids: Sequence[int] | None,
    with_masks: bool,
) -> dict[str, Tensor]:
    """The targets of an image. As published, boxes below one pixel and annotations without area are left out.

    Args:
        annotation: `{"image_id": ..., "annotations": [{"bbox": [x, y, w, h], "category_id": ..., "area": ...,
            "iscrowd": ..., "segmentation": ...}]}` in pixels of the original image; "area" defaults to the box's,
            "iscrowd" to 0, and "segmentation" (polygons or a run-length encoding) is only read for masks.
        category_ids: the categories in the order of the labels; None where they are the labels already.

    Returns:
        `class_labels` (n,) int64, `boxes` (n, 4) cx, cy, w, h in shares of the image without its padding, clipped to
        it; where asked for, `masks` (n, padded H, padded W) bool; the same of crowd regions with the prefix `crowd_`;
        `area` (n,) as annotated, in pixels of the original image; `image_id` (1,) and `orig_size` (2,) int64.

    Raises:
        ValueError: an annotation is broken; the message names it.
    """
    image_id, entries = _entries(annotation)
    where = [f"annotation {index} of image {image_id}" for index in range(len(entries))]
    boxes = [_corners(entry, original_size, place) for entry, place in zip(entries, where, strict=True)]
    described = zip(entries, boxes, where, strict=True)
    areas = [_number(entry.get("area"), place, _area(box)) for entry, box, place in described]
    kept = [i for i, entry in enumerate(entries) if min(areas[i], _area(boxes[i])) > 0 and min(entry["bbox"][2:]) >= 1]
    groups = {prefix: [i for i in kept if bool(entries[i].get("iscrowd")) is bool(prefix)] for prefix in ("", "crowd_")}
    target = {
        "image_id": torch.tensor([image_id]),
        "orig_size": torch.tensor(original_size),
        "area": torch.tensor([areas[i] for i in groups[""]], dtype=torch.float32),
    }
    for prefix, members in groups.items():
        labels = [_label(entries[i], category_ids, where[i]) for i in members]
        target[f"{prefix}class_labels"] = torch.tensor(labels, dtype=torch.int64)
        target[f"{prefix}boxes"] = _normalised([boxes[i] for i in members], original_size)
        if with_masks:
            masks = torch.zeros(len(members), *padded_size, dtype=torch.bool)  # (n, padded H, padded W)
            for mask, i in zip(masks, members, strict=True):
                drawn = nearest_as_cv2(draw_mask(entries[i].get("segmentation"), original_size, where[i]), resized_size)
                mask[: resized_size[0], : resized_size[1]] = torch.from_numpy(drawn)
            target[f"{prefix}masks"] = masks
    return target


def _entries(annotation: Any) -> tuple[int, list[dict[str, Any]]]:
    """The image's number and its annotations."""
    if not isinstance(annotation, dict) or not {"image_id", "annotations"} <= annotation.keys():
        raise ValueError(
            'the annotations of an image are a dict {"image_id": ..., "annotations": [...]} in COCO\'s format, got '
            f"{shortened(annotation)}."
        )
    image_id, entries = annotation["image_id"], annotation["annotations"]
    if isinstance(image_id, Tensor | np.generic):
        image_id = image_id.item()
    if not isinstance(image_id, int):
        raise ValueError(f"image_id is {image_id!r}, expected an integer.")
    return image_id, list(entries)


def _corners(entry: dict[str, Any], size: Size, where: str) -> tuple[float, float, float, float]:
    """The box x1, y1, x2, y2 in pixels, clipped to the image."""
    if not isinstance(entry, Mapping) or not {"bbox", "category_id"} <= entry.keys():
        raise ValueError(f"{where} is {shortened(entry)}, expected a dict with at least bbox and category_id.")
    if isinstance(entry["bbox"], str) or not isinstance(entry["bbox"], Iterable):
        raise ValueError(f"{where} has the box {entry['bbox']!r}, expected x, y, width >= 0, height >= 0.")
    box = [_number(value, where) for value in entry["bbox"]]
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or min(box[2:]) < 0:
        raise ValueError(f"{where} has the box {box}, expected x, y, width >= 0, height >= 0.")
    (x, y, width, height), (image_height, image_width) = box, size
    corners = (max(x, 0.0), max(y, 0.0), min(x + width, float(image_width)), min(y + height, float(image_height)))
    if corners[0] > corners[2] or corners[1] > corners[3]:
        raise ValueError(
            f"{where} has the box {box} (x, y, width, height) outside its image of {image_width}x{image_height} "
            "(width x height); is it another image's?"
        )
    return corners


def _number(value: Any, where: str, default: float = math.nan) -> float:
    """A number of an annotation; None is the default."""
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} has {value!r} where a number is expected.") from error


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _label(entry: dict[str, Any], category_ids: Sequence[int] | None, where: str) -> int:
    category = entry["category_id"]
    if category_ids is not None and category in category_ids:
        return list(category_ids).index(category)
    if category_ids is None and isinstance(category, int) and category >= 0:
        return category
    known = "a label from 0" if category_ids is None else f"one of the {len(category_ids)} category_ids"
    raise ValueError(
        f"{where} has the category {category!r}, expected {known}; give the processor the category ids in the order of "
        "the labels, such as category_ids=hf_pvt.coco_category_ids()."
    )


def _normalised(boxes: list[tuple[float, float, float, float]], size: Size) -> Tensor:
    """Corners in pixels as centre and extent in shares of the image (n, 4), which resizing does not change."""
    x1, y1, x2, y2 = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4).unbind(1)
    height, width = size
    return torch.stack(
        [(x1 + x2) / (2 * width), (y1 + y2) / (2 * height), (x2 - x1) / width, (y2 - y1) / height], dim=1
    ).float()
