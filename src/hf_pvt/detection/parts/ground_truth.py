"""The objects of a batch: from labels, as Transformers' detectors take them, to boxes in pixels.

Legend: see the folder's `__init__`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]

# How far a normalised box may reach over the image: rounding, not an error in the data.
TOLERANCE = 1e-4


class GroundTruth(NamedTuple):
    """The objects of one image: boxes (n, 4), labels (n,), and masks (n, H, W) at the padded size, if any."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


def valid_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> list[Size]:
    """Height and width of each image inside its padding.

    Raises:
        ValueError: a mask of another shape, or one that is not 1 on a rectangle in the top left corner.
    """
    batch, _, height, width = pixel_values.shape
    if pixel_mask is None:
        return [(height, width)] * batch
    if not isinstance(pixel_mask, Tensor) or tuple(pixel_mask.shape) != (batch, height, width):
        given = f"shape {tuple(pixel_mask.shape)}" if isinstance(pixel_mask, Tensor) else type(pixel_mask).__name__
        raise ValueError(f"pixel_mask has {given}, expected a tensor ({batch}, {height}, {width}) as pixel_values.")
    mask = pixel_mask.bool()
    rows, columns = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)  # (B,)
    corner = (torch.arange(height, device=mask.device) < rows[:, None])[:, :, None]
    corner = corner & (torch.arange(width, device=mask.device) < columns[:, None])[:, None]
    if not (bool((rows > 0).all()) and bool((mask == corner).all())):
        raise ValueError(
            "pixel_mask must be 1 on each image, a rectangle in the top left corner, and 0 on the padding right of it "
            "and below."
        )
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def ground_truth(
    labels: Sequence[Mapping[str, Any]], pixel_values: Tensor, sizes: Sequence[Size], num_labels: int, with_masks: bool
) -> list[GroundTruth]:
    """The objects of each image, in pixels of the padded input.

    Raises:
        ValueError: labels that do not fit; the message names the image and what is wrong.
    """
    batch, _, height, width = pixel_values.shape
    dtype = torch.promote_types(pixel_values.dtype, torch.float32)
    if not isinstance(labels, Sequence) or len(labels) != batch:
        given = f"{len(labels)} dicts" if isinstance(labels, Sequence) else type(labels).__name__
        raise ValueError(
            f"labels must be a list of one dict for each of the {batch} images, with class_labels and boxes"
            f"{' and masks' if with_masks else ''}, got {given}."
        )
    objects = []
    for index, (label, size) in enumerate(zip(labels, sizes, strict=True)):
        try:
            _check_names(label, ("class_labels", "boxes", "masks") if with_masks else ("class_labels", "boxes"))
            classes = _classes(label["class_labels"], num_labels).to(pixel_values.device)
            boxes = _boxes(label["boxes"], len(classes), size, dtype).to(pixel_values.device)
            masks = _masks(label["masks"], len(classes), (height, width)) if with_masks else None
        except ValueError as error:
            raise ValueError(f"labels of image {index}: {error}.") from error
        objects.append(GroundTruth(boxes, classes, None if masks is None else masks.to(pixel_values.device)))
    return objects


def _check_names(label: Any, needed: Sequence[str]) -> None:
    if not isinstance(label, Mapping):
        raise ValueError(f"they are {type(label).__name__}, expected a dict with {', '.join(needed)}")
    missing = [name for name in needed if name not in label]
    if missing:
        raise ValueError(f"there is no {' and no '.join(missing)} in it, expected {', '.join(needed)}")


def _classes(classes: Any, num_labels: int) -> Tensor:
    classes = torch.as_tensor(classes)
    if classes.dim() != 1 or (classes.numel() and classes.dtype.is_floating_point):
        raise ValueError(f"class_labels has shape {tuple(classes.shape)} of {classes.dtype}, expected integers (n,)")
    classes = classes.long()
    strangers = classes[(classes < 0) | (classes >= num_labels)]
    if len(strangers):
        raise ValueError(f"class_labels holds {strangers[0]}, expected 0 to {num_labels - 1}; check num_labels")
    return classes


def _boxes(boxes: Any, count: int, size: Size, dtype: torch.dtype) -> Tensor:
    """Corners in pixels (n, 4) of normalised boxes."""
    boxes = torch.as_tensor(boxes)
    tolerance = max(TOLERANCE, torch.finfo(boxes.dtype).eps) if boxes.dtype.is_floating_point else TOLERANCE
    boxes = boxes.to(dtype)
    if boxes.numel() == 0 and count == 0:
        return boxes.reshape(0, 4)
    if tuple(boxes.shape) != (count, 4):
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}, expected ({count}, 4), one for each class label")
    if not bool(boxes.isfinite().all()):
        raise ValueError("boxes holds NaN or infinity, expected numbers in [0, 1]")
    height, width = size
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    x, y, box_width, box_height = (boxes * boxes.new_tensor((width, height, width, height))).unbind(1)
    corners = torch.stack((x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2), dim=1)
    flat = boxes[(corners[:, 2:] <= corners[:, :2]).any(dim=1)]  # in pixels, where little may be rounded to nothing
    if len(flat):
        raise ValueError(f"the box {flat[0].tolist()} has no positive width and height; drop it")
    outside = (centre - half < -tolerance) | (centre + half > 1 + tolerance)
    if bool(outside.any()):
        raise ValueError(
            f"the box {boxes[outside.any(dim=1)][0].tolist()} reaches outside the image, expected centre x, centre y, "
            "width and height as shares of the image's size inside its padding; clip it"
        )
    return corners


def _masks(masks: Any, count: int, size: Size) -> Tensor:
    masks = torch.as_tensor(masks)
    if masks.numel() == 0 and count == 0:
        return masks.new_zeros((0, *size))
    if tuple(masks.shape) != (count, *size):
        raise ValueError(
            f"masks has shape {tuple(masks.shape)}, expected {(count, *size)}, one for each box at the size of "
            "pixel_values"
        )
    if masks.dtype != torch.bool and bool(((masks != 0) & (masks != 1)).any()):
        raise ValueError(f"masks holds {masks.min().item()} to {masks.max().item()}, expected 0 and 1 alone")
    return masks
