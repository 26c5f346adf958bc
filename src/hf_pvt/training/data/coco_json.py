"""COCO's format: one JSON file with the images of a folder, their objects, and the categories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .annotations import Categories, Example, size_of

Entry = dict[str, Any]

# Names of the file inside the folder of its images.
BESIDE_IMAGES = ("annotations.json", "_annotations.coco.json")
# What of an object is kept; captions and keypoints are not.
KEPT = ("bbox", "category_id", "area", "iscrowd", "segmentation")


class CocoImages:
    """The images of one JSON file, in the order of their ids.

    Objects are kept as bytes of JSON in one array: workers that read the data share it, where Python's objects would be
    copied into each of them.
    """

    def __init__(
        self, folder: Path, images: Sequence[Entry], objects: dict[int, list[Entry]], categories: Categories
    ) -> None:
        self.folder, self.images, self.categories = folder, sorted(images, key=lambda image: image["id"]), categories
        packed = [json.dumps(objects.get(image["id"], [])).encode() for image in self.images]
        self._ends = np.cumsum([len(part) for part in packed])
        self._packed = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image, end = self.images[index], self._ends[index]
        start = self._ends[index - 1] if index else 0
        path = self.folder / image["file_name"]
        objects = json.loads(self._packed[start:end].tobytes())
        image_id = image["id"] if isinstance(image["id"], int) else index
        return Example(path, str(path), image_id, size_of(image), objects, self.categories)

    annotation = __getitem__


def coco_images(folder: Path, file: str | None, expected: Categories | None = None) -> CocoImages:
    """The images of a JSON file; its labels are in the order of its categories' ids.

    Args:
        file: default: one of `BESIDE_IMAGES`.
        expected: the categories that the file's have to be, by their names; its ids may be others.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the file is not COCO's, or names what it does not have.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    path = Path(file) if file else next((p for p in (folder / name for name in BESIDE_IMAGES) if p.is_file()), None)
    if path is None or not path.is_file():
        looked_for = path or " or ".join(str(folder / name) for name in BESIDE_IMAGES)
        raise FileNotFoundError(
            f"there is no file {looked_for}; give COCO's JSON with --train_annotations or --validation_annotations."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    parts: list[Any] = (
        [content.get(name) for name in ("images", "annotations", "categories")] if isinstance(content, dict) else []
    )
    if not parts or not all(isinstance(part, list) for part in parts):
        raise ValueError(f"{path} is not COCO's: expected a dictionary with images, annotations and categories.")
    images, entries, named = parts
    try:
        categories = _categories(named, path)
        ids = [image["id"] for image in images]
        objects: dict[int, list[Entry]] = {number: [] for number in ids}
        for entry in entries:
            if entry["image_id"] not in objects:
                raise ValueError(
                    f"{path} has an annotation of image {entry['image_id']!r}, which is none of its images."
                )
            objects[entry["image_id"]].append(_kept(entry))
        missing = [image["id"] for image in images if not image.get("file_name")]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not COCO's: {_what_is_missing(error)}.") from error
    if len(objects) != len(ids) or missing or not ids:
        what = "an image without file_name" if missing else "two images of one id" if ids else "no image"
        raise ValueError(f"{path} has {what}.")
    if expected is not None:
        categories = in_order_of(expected, categories, path)
    return CocoImages(folder, images, objects, categories)


def _kept(entry: Entry) -> Entry:
    return {name: entry[name] for name in KEPT if entry.get(name) is not None}


def _what_is_missing(error: Exception) -> str:
    return f"an entry has no {error}" if isinstance(error, KeyError) else "an entry is no dictionary"


def _categories(named: Sequence[Entry], path: Path) -> Categories:
    ordered = sorted(named, key=lambda category: category["id"])
    names, ids = [category["name"] for category in ordered], [category["id"] for category in ordered]
    if not names or len({*names}) < len(names) or len({*ids}) < len(ids):
        raise ValueError(f"{path} has {'two categories of one id or name' if names else 'no categories'}.")
    return Categories(names, ids)


def in_order_of(expected: Categories, own: Categories, path: Path | str) -> Categories:
    """The labels of `expected`, under the ids that this file has for them."""
    strangers = [name for name in own.names if name not in expected.names]
    if strangers:
        known = ", ".join(expected.names[:8]) + (", ..." if len(expected.names) > 8 else "")
        raise ValueError(f"{path} has the category {strangers[0]!r}, expected those of the labels: {known}.")
    ids = dict(zip(own.names, own.ids, strict=True))
    return Categories(expected.names, [ids.get(name, name) for name in expected.names])
