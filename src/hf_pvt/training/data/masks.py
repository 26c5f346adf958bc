"""Images with a label map each: folders, a CSV file, and data sets with columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...images.image_inputs import as_label_map, image_size
from ..arguments import DataArguments
from . import sources
from .decoding import BadImageError, Source, decode_image, open_image
from .label_values import LabelValues
from .tables import rows_of

# Folders of ADE20K and MMSegmentation, and those of the other layout.
SPLITS = {
    "training": ("images/training", "annotations/training"),
    "validation": ("images/validation", "annotations/validation"),
}
PLAIN = ("images", "masks")
MASK_COLUMNS = ("annotation", "mask", "label", "segmentation_mask")


class Example(NamedTuple):
    """The files of an image and of its label map, and their names for messages; no mask is a bad image."""

    image: Source
    name: str
    mask: Source | None
    mask_name: str


class Pairs(list[Example]):
    """Examples of files."""

    def add(self, image: Path, mask: Path | None, where: Path) -> None:
        self.append(Example(image, str(image), mask, str(mask or where)))


class Rows:
    """Examples of a data set with columns; of a stream, `rows` and `example` alone are used."""

    def __init__(self, rows: Any, mask_column: str) -> None:
        self.rows, self.mask_column = rows.cast_column(mask_column, datasets.Image(decode=False)), mask_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.example(self.rows[index], index)

    def example(self, row: dict[str, Any], number: int) -> Example:
        name, mask = sources.row_name(row, number), row[self.mask_column]
        return Example(row["image"], name, mask, f"the mask of {name}")


@dataclass(frozen=True)
class Decoder:
    """Reads an example: an image (see `decode_image`), and labels (H, W) as `labels` has them of the mask's values."""

    labels: LabelValues
    num_channels: int = 3

    def __call__(self, example: Example) -> tuple[Any, NDArray[np.int64]]:
        """Raises BadImageError: of the image or the mask, a mask that is missing or of another size, or its values."""
        image = decode_image(example.image, example.name, self.num_channels)
        pixels, name = mask_pixels(example)
        (height, width), size = pixels.shape, image_size(image)
        if (height, width) != size:
            raise BadImageError(name, f"is {width}x{height} pixels and its image {example.name} {size[1]}x{size[0]}")
        try:
            return image, self.labels.to_labels(pixels)
        except ValueError as error:
            raise BadImageError(name, str(error)) from error


def mask_pixels(example: Example) -> tuple[NDArray[np.int64], str]:
    """The pixel values (H, W) of an example's mask, and its name; of a palette image the indices, of grey RGB the grey.

    Raises BadImageError: there is no mask, it cannot be read, or is in colours.
    """
    if example.mask is None:
        raise BadImageError(example.name, f"has no mask in {example.mask_name}")
    mask, name = open_image(example.mask, example.mask_name)
    try:
        return as_label_map(_one_band(ImageOps.exif_transpose(mask))), name
    except ValueError as error:
        raise BadImageError(name, f"is no mask: {str(error).rstrip('.')}") from error


def _one_band(mask: Image.Image) -> Image.Image:
    """The first band of an opaque image whose colours are all grey, as many tools save masks; others as they are."""
    if mask.mode not in ("LA", "RGB", "RGBA"):
        return mask
    *colours, alpha = mask.split() if mask.mode.endswith("A") else (*mask.split(), Image.new("L", mask.size, 255))
    grey = all(band.tobytes() == colours[0].tobytes() for band in colours)
    return colours[0] if grey and alpha.getextrema() == (255, 255) else mask


def open_label_maps(data: DataArguments, mask_column: str | None, seed: int) -> tuple[Any, Any]:
    """Training examples, and validation examples or None.

    Args:
        mask_column: default: the first of `MASK_COLUMNS` that the data set has.
        seed: of the examples that `data.train_val_split` holds out.

    Raises:
        ValueError, FileNotFoundError: there is no training data, or its layout is none that is known.
        BadImageError: an image has no mask, unless bad images are skipped.
    """
    training = open_split(data, mask_column, training=True)
    if training is None:
        raise ValueError("there is no training data; give --train_dir, --train_files or --dataset_name.")
    validation = open_split(data, mask_column, training=False)
    if data.on_bad_image == "error":
        for pairs in (training, validation):
            for example in pairs if isinstance(pairs, Pairs) else ():
                if example.mask is None:
                    raise BadImageError(example.name, f"has no mask in {example.mask_name}")
    return (training, validation) if validation is not None else sources.held_out(training, data, seed)


def open_split(data: DataArguments, mask_column: str | None, training: bool) -> Pairs | Rows | None:
    split = "training" if training else "validation"
    folder, files = (data.train_dir, data.train_files) if training else (data.validation_dir, data.validation_files)
    if folder or (data.train_dir and has_splits(Path(data.train_dir))):
        return folder_pairs(Path(str(folder or data.train_dir)), split)
    if files and files[0].endswith(".csv"):
        return csv_pairs([Path(file) for file in sources.expand(files)], split, default=split)
    if not training and not files and data.train_files and data.train_files[0].endswith(".csv"):
        return csv_pairs([Path(file) for file in sources.expand(data.train_files)], split) or None
    rows = sources.open_split(replace(data, image_column=data.image_column or "image"), training)
    if rows is None:
        return None
    column = mask_column or next((name for name in MASK_COLUMNS if name in rows.column_names), None)
    if column is None or column not in rows.column_names:
        raise ValueError(
            f"there is no column {column or 'of masks'} in {', '.join(rows.column_names)}; choose with --mask_column."
        )
    return Rows(rows, column)


def has_splits(root: Path) -> bool:
    return all((root / SPLITS[split][0]).is_dir() for split in SPLITS)


def folder_pairs(root: Path, split: str) -> Pairs:
    """Files with the same name but for the suffix: in ADE20K's layout those of the split, else in images/ and masks/.

    Raises:
        FileNotFoundError: neither layout is there.
        ValueError: there is no image, or one has several masks.
    """
    layouts = [(root / images, root / masks) for images, masks in (SPLITS[split], PLAIN)]
    images, masks = next((folders for folders in layouts if all(map(Path.is_dir, folders))), (None, None))
    if images is None or masks is None:
        expected = " or ".join(" and ".join(str(folder) for folder in folders) for folders in layouts)
        raise FileNotFoundError(f"there is no {expected}.")
    by_stem: dict[Path, Path] = {}
    for mask in _files(masks):
        stem = mask.relative_to(masks).with_suffix("")
        if stem in by_stem:
            raise ValueError(f"{by_stem[stem]} and {mask} are masks of the same image; remove one.")
        by_stem[stem] = mask
    pairs = Pairs()
    for image in _files(images):
        pairs.add(image, by_stem.get(image.relative_to(images).with_suffix("")), masks)
    if not pairs:
        raise ValueError(f"there is no image in {images}.")
    return pairs


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def csv_pairs(files: Sequence[Path], split: str, default: str = "training") -> Pairs:
    """Rows `image,mask[,split]` of files, relative to their folder; rows that name no split are those of `default`.

    Raises ValueError for a file without these columns, or a split that is none of `tables.SPLIT_NAMES`.
    """
    pairs = Pairs()
    for file in files:
        for row, _ in rows_of(file, ("image", "mask"), split, default):
            pairs.add(file.parent / row["image"], file.parent / row["mask"] if row["mask"] else None, file)
    return pairs
