"""What the annotations hold, looked at before the first step: what cannot be learnt is refused, and says why.

Boxes that are read in another format than they are written in would otherwise end well, in a model of other boxes.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch.utils.data import Subset

from ...images.image_inputs import image_size
from ..progress import ProgressBar
from .annotations import Decoder, Example, Size
from .coco_json import CocoImages
from .decoding import BadImageError, decode_image
from .loaders import is_stream
from .mask_checks import some

logger = get_logger(__name__)

# Of a data set with columns so many at equal distances are looked at, and where it has no sizes, with their images.
MOST_ROWS, MOST_READ = 20_000, 200
CUT = 1.0  # pixels by which a box may reach over its image without a word
SURELY = 20  # so many boxes that fit by accident are none
BESIDE = 0.1  # share of a box's longer side by which its polygon may differ
OTHER_FORMATS = ("xyxy", "cxcywh")
NOT_THERE = f"cannot be read ({os.strerror(errno.ENOENT)})"


@dataclass
class Census:
    """What the annotations of some images say: how many there are of each kind, of each label, and the bad images."""

    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    bad: dict[int, BadImageError] = field(default_factory=dict)

    def __add__(self, other: "Census") -> "Census":
        return Census(self.counts + other.counts, self.labels + other.labels, self.bad | other.bad)


def check_annotations(
    accelerator: Accelerator, decode: Decoder, names: Sequence[str], training: Any, validation: Any, on_bad_image: str
) -> None:
    """Look at the objects of both shares, each process at its part; every process has to call this, and all fail alike.

    Warns of labels without objects, and of objects that are left out or cut. With `on_bad_image` "skip", images with
    bad objects are left to their turn.

    Raises:
        BadImageError: an image has objects that cannot be used.
        ValueError: boxes that must be x1, y1, x2, y2, masks that are missing, or no object.
        FileNotFoundError: none of the images is there.
    """
    for share, examples in (("training", training), ("validation", validation)):
        if examples is None:
            continue
        if is_stream(examples):
            logger.info(f"the stream's {share} objects are checked in their turn")
            continue
        census = look(accelerator, decode, examples, share)
        refuse(census, decode, share)
        if census.bad and (on_bad_image == "error" or len(census.bad) == census.counts["images"]):
            raise census.bad[min(census.bad)]
        if not census.labels:
            raise ValueError(f"there is no object in the {census.counts['images']:,} {share} images.")
        for sentence in remarks(census, share, names):
            logger.warning(sentence)


def look(accelerator: Accelerator, decode: Decoder, examples: Any, share: str) -> Census:
    """Of all processes."""
    count = len(examples)
    whole: Any = examples.dataset if isinstance(examples, Subset) else examples
    sized = isinstance(whole, CocoImages) or whole.has_sizes
    most = count if isinstance(whole, CocoImages) else min(count, MOST_ROWS if sized else MOST_READ)
    chosen = np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()
    if len(chosen) < count:
        logger.info(f"{len(chosen):,} of the {count:,} {share} annotations are looked at, the others in their turn")
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    numbers = ProgressBar(mine, f"{share} annotations", disable=not accelerator.is_main_process)
    read = annotation if sized else getitem
    census = sum((look_at(decode, read(examples, number), number) for number in numbers), Census())
    return sum(gather_object([census]), Census())


def annotation(examples: Any, number: int) -> Example:
    """An example without its image."""
    if isinstance(examples, Subset):
        return annotation(examples.dataset, examples.indices[number])
    return examples.annotation(number)


def look_at(decode: Decoder, example: Example, number: int) -> Census:
    """One image's objects."""
    counts = Counter(["images"])
    if isinstance(example.image, Path) and not example.image.is_file():
        return Census(counts + Counter(["not there"]), bad={number: BadImageError(example.name, NOT_THERE)})
    try:
        size = example.size or image_size(decode_image(example.image, example.name, decode.num_channels))
        counts.update(kind for entry in example.objects for kind in as_written(entry.get("bbox"), size))
        objects = decode.objects(example, size)
    except BadImageError as error:
        return Census(counts, bad={number: error})
    counts.update(kind for entry in objects for kind in oddities(entry, size))
    return Census(counts, Counter(entry["category_id"] for entry in objects))


def as_written(box: Any, size: Size) -> Iterator[str]:
    """How four numbers fit into an image as they stand: as corners, as corner and extent."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return
    (first, second, third, fourth), (height, width) = box, size
    if 0 <= first < third <= width + CUT and 0 <= second < fourth <= height + CUT:
        yield "corners"
    if first + third > width + CUT or second + fourth > height + CUT:
        yield "outside"


def oddities(entry: dict[str, Any], size: Size) -> Iterator[str]:
    """What is to be said of an object, which has COCO's form."""
    (x, y, box_width, box_height), (height, width) = entry["bbox"], size
    yield "objects"
    if min(box_width, box_height) < 1:
        yield "flat"
    if isinstance(entry.get("segmentation"), list) and not encloses(entry["bbox"], entry["segmentation"]):
        yield "beside its mask"
    if max(-x, -y, x + box_width - width, y + box_height - height) > CUT:
        yield "cut"
    if not entry.get("segmentation"):
        yield "without mask"


def encloses(box: Sequence[float], polygons: list[Any]) -> bool:
    """Whether a box x, y, width, height has about the extent of polygons, as far as they are some."""
    try:
        points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons])
    except ValueError:  # broken ones are named in their turn
        return True
    x, y, width, height = box
    extent = np.concatenate((points.min(axis=0), points.max(axis=0)))
    return bool((np.abs(extent - (x, y, x + width, y + height)) <= BESIDE * max(width, height) + 1).all())


def refuse(census: Census, decode: Decoder, share: str) -> None:
    """Raise ValueError for boxes that are not what they are read as, and for masks that are missing."""
    counts, boxes = census.counts, census.counts["objects"]
    if decode.bbox_format == "xywh" and counts["outside"] and counts["corners"] >= max(boxes, SURELY):
        raise ValueError(
            f"of the {share} boxes {counts['outside']:,} end outside their image as x, y, width, height, and all lie "
            "inside as x1, y1, x2, y2; give --bbox_format xyxy."
        )
    if counts["not there"] and counts["not there"] == counts["images"]:
        first = census.bad[min(census.bad)]
        raise FileNotFoundError(
            f"none of the {counts['images']:,} {share} images that are annotated is there, {first.file} is the first; "
            "give the folder that the annotations' file names are relative to."
        )
    if decode.with_masks and counts["without mask"]:
        raise ValueError(
            f"{counts['without mask']:,} of {boxes:,} {share} objects have no segmentation, which this model learns; "
            "leave masks out with --with_masks False."
        )


def remarks(census: Census, share: str, names: Sequence[str]) -> Iterator[str]:
    """What is worth a warning, in sentences."""
    counts = census.counts
    missing = [name for label, name in enumerate(names) if label not in census.labels]
    if missing:
        yield f"none of the {counts['objects']:,} {share} objects is of {some(missing)}"
    if counts["flat"]:
        yield f"{counts['flat']:,} of {counts['objects']:,} {share} boxes are less than a pixel wide or high: left out"
    if counts["cut"]:
        yield f"{counts['cut']:,} of {counts['objects']:,} {share} boxes reach over their image: cut to it"
    if counts["beside its mask"]:
        beside = f"{counts['beside its mask']:,} of {counts['objects']:,} {share} boxes"
        yield f"{beside} do not enclose their polygons; are they {' or '.join(OTHER_FORMATS)} (--bbox_format)?"
    if census.bad:
        first = census.bad[min(census.bad)]
        skipped = f"{len(census.bad):,} of {counts['images']:,} {share} images"
        yield f"{skipped} have objects that cannot be used, and are skipped; the first, {first}"
