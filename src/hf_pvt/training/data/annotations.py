"""An image's objects: from what the data says of them to COCO's annotations, and to a detector's targets.

H, W: the image as it is; n objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ...detection.coco_annotations import detection_target
from ...images.image_inputs import image_size
from .decoding import BadImageError, Source, decode_image

Size = tuple[int, int]  # height, width
BoxFormat = Literal["xywh", "xyxy", "cxcywh", "relative_xywh", "relative_xyxy", "relative_cxcywh"]


class Categories:
    """Names of the labels, and the label of what the data calls a category: an id or a name."""

    def __init__(self, names: Sequence[str], ids: Sequence[Any] | None = None) -> None:
        self.names = list(names)
        self.ids = list(range(len(names))) if ids is None else list(ids)
        self._labels: dict[Any, int] = {name: label for label, name in enumerate(self.names)}
        self._labels |= {raw: label for label, raw in enumerate(self.ids)}

    def label(self, raw: Any) -> int:
        """Raises ValueError for a category that there is not."""
        label = self._labels.get(raw)
        if label is None:
            # A file that lacks some of the labels has no ids of them.
            ids = [raw for raw, name in zip(self.ids, self.names, strict=True) if raw != name] or self.ids
            known = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
            raise ValueError(f"has the category {raw!r}, expected one of the {len(ids)} categories: {known}")
        return label

    @property
    def coco_ids(self) -> list[int] | None:
        """What an image processor needs to read the same annotations; None where ids are labels or names."""
        return None if self.ids == list(range(len(self.ids))) else self.ids


class Example(NamedTuple):
    """An image's file, its name for messages, its number and its size (height, width) if known, and its objects.

    Each object has `bbox` and `category_id` as the data has them, and as in COCO "iscrowd", "area", "segmentation".
    """

    image: Source
    name: str
    image_id: int | None
    size: Size | None
    objects: list[dict[str, Any]]
    categories: Categories


def size_of(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (int(height), int(width)) if height and width else None


@dataclass(frozen=True)
class Decoder:
    """Reads an example: its image (see `decode_image`), and its objects as COCO has them, with labels as categories."""

    with_masks: bool
    bbox_format: BoxFormat = "xywh"
    num_channels: int = 3

    def __call__(self, example: Example) -> tuple[Any, list[dict[str, Any]]]:
        """Raises BadImageError: of the image, its size or its objects."""
        image = decode_image(example.image, example.name, self.num_channels)
        height, width = size = image_size(image)
        if example.size not in (None, size):
            said = f"{example.size[1]}x{example.size[0]}"
            raise BadImageError(example.name, f"has {width}x{height} pixels, its annotation says {said}")
        return image, self.objects(example, size)

    def objects(self, example: Example, size: Size) -> list[dict[str, Any]]:
        """The objects of an image of this size, checked but for their masks.

        Raises BadImageError: a category that is unknown, or a box that is none or another image's.
        """
        try:
            entries = [self.as_coco(entry, example, size) for entry in example.objects]
            detection_target(with_number(example, entries), size, size, size, None, with_masks=False)
        except ValueError as error:
            raise broken(example, error) from error
        return entries

    def as_coco(self, entry: dict[str, Any], example: Example, size: Size) -> dict[str, Any]:
        if not {"bbox", "category_id"} <= entry.keys():
            raise ValueError(f"one has only {', '.join(entry) or 'nothing'}, expected a bbox and a category")
        label = example.categories.label(entry["category_id"])
        return entry | {"bbox": as_xywh(entry["bbox"], self.bbox_format, size), "category_id": label}

    def target(self, example: Example, entries: list[dict[str, Any]], size: Size) -> dict[str, Tensor]:
        """`class_labels` (n,), `boxes` (n, 4) as shares of the image, `masks` (n, H, W): see `detection_target`.

        Raises BadImageError: a mask that cannot be drawn.
        """
        try:
            return detection_target(with_number(example, entries), size, size, size, None, self.with_masks)
        except ValueError as error:
            raise broken(example, error) from error


def with_number(example: Example, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image_id": example.image_id or 0, "annotations": entries}


def broken(example: Example, error: ValueError) -> BadImageError:
    return BadImageError(example.name, f"has broken objects: {str(error).rstrip('.')}")


def as_xywh(box: Any, given: BoxFormat, size: Size) -> Any:
    """A box of the format as x, y, width and height in pixels; what is no four numbers stays, to be refused."""
    if given == "xywh" or len(box) != 4:
        return box
    first, second, third, fourth = map(float, box)
    if given.startswith("relative_"):
        height, width = size
        first, second, third, fourth = first * width, second * height, third * width, fourth * height
    if given.endswith("xyxy"):
        return [first, second, third - first, fourth - second]
    if given.endswith("cxcywh"):
        return [first - third / 2, second - fourth / 2, third, fourth]
    return [first, second, third, fourth]
