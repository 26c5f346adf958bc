"""Image processors: the published evaluation of classifiers, and images with label maps for segmenters.

Transformers' defaults squash an image to 224x224, which is not what the papers evaluate.
"""

import math
import os
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from ..remote_code import RemoteCodeMixin, write_remote_code
from .image_inputs import as_label_map, as_list, check_sizes, flat_list, image_size, readable
from .resampling import resized

# Share of the resized image's shorter side that the centre crop keeps: 224 of 256 pixels.
CROP_RATIO = 0.875
# Logits that are resized at once (16 MiB of float32), so that many labels of a large image need little memory.
LOGITS_AT_ONCE = 2**22


def classification_image_processor(crop_size: int = 224, num_channels: int = 3, **settings: Any) -> BaseImageProcessor:
    """The published evaluation: shorter side to crop_size / 0.875 (224: 256, 384: 438), bicubic, then a centre crop.

    Images come out as (num_channels, crop_size, crop_size) floats, normalised by `channel_statistics`. Of the backends
    torchvision is taken where it is installed, PIL elsewhere. Where the margin is odd, Transformers' crop may lie one
    pixel beside torchvision's, with which the papers evaluated (it truncates, torchvision rounds).

    Args:
        settings: fields to change, such as `image_mean` and `image_std`, one number for each channel.
    """
    processor_class = PvtImageProcessor if is_torchvision_available() else PvtImageProcessorPil
    fields: dict[str, Any] = {
        "do_resize": True,
        "size": {"shortest_edge": int(crop_size / CROP_RATIO)},
        "do_center_crop": True,
        "crop_size": {"height": crop_size, "width": crop_size},
        "do_convert_rgb": num_channels == 3,
    }
    return processor_class(**fields | channel_statistics(num_channels) | settings)


def segmentation_image_processor(num_channels: int = 3, **settings: Any) -> BaseImageProcessor:
    """The published evaluation on ADE20K: the shorter side to 512, the longer at most 2048, each a multiple of 32.

    Args:
        num_channels: of the images, which are normalised by `channel_statistics`.
        settings: fields of `PvtSegmentationImageProcessor` to change, such as `do_reduce_labels=True` for ADE20K.
    """
    processor_class = PvtSegmentationImageProcessor if is_torchvision_available() else PvtSegmentationImageProcessorPil
    return processor_class(**channel_statistics(num_channels) | settings)


def channel_statistics(num_channels: int) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of ImageNet: repeated as the weights of a first convolution are for more channels.

    A single channel has the colours' averages. These are for channels that look like photographs; others should be
    given their own.
    """
    statistics = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    if num_channels == 1:
        return {name: [sum(values) / len(values)] for name, values in statistics.items()}
    return {name: [values[c % 3] for c in range(num_channels)] for name, values in statistics.items()}


class ImageInputsMixin:
    """A processor that reads images of as many channels as `image_mean` has numbers, by the rule of `image_inputs`."""

    image_mean: Any
    image_std: Any

    def read(
        self, images: Any, image_mean: Any, image_std: Any, do_rescale: bool, input_data_format: Any, **kwargs: Any
    ) -> list[Any]:
        """What `readable` makes of each image; with `do_rescale=False` floats are taken as they are."""
        channels = channels_of(image_mean, image_std)
        layout = None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format))
        return [readable(image, channels, not do_rescale, layout) for image in flat_list(images)]

    def _prepare_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [self.process_image(image, **kwargs) for image in self.read(images, **kwargs)]

    def process_image(self, image: Any, do_rescale: bool, **kwargs: Any) -> Any:
        """What `readable` gave, as the backend's array or tensor (C, H, W); floats to be rescaled are 0 to 255 then."""
        if not isinstance(image, Tensor):
            image = np.array(np.moveaxis(np.asarray(image), 2, 0), order="C")
        kwargs |= {"do_convert_rgb": False, "input_data_format": "channels_first"}
        image = super().process_image(image, **kwargs)  # type: ignore[misc]
        floats = image.is_floating_point() if isinstance(image, Tensor) else image.dtype.kind == "f"
        return 255 * image if do_rescale and floats else image


class PilResizeMixin:
    """Resizes arrays channel by channel: in Transformers a fourth is transparency, and floats are rounded."""

    def resize(
        self, image: np.ndarray, size: SizeDict, resample: Any = None, antialias: bool = True, **kwargs: Any
    ) -> np.ndarray:
        """(C, h, w) -> (C, H, W)."""
        plain = np.zeros((1, *image.shape[1:]), np.uint8)
        shape = super().resize(plain, size, Image.Resampling.NEAREST).shape[1:]  # type: ignore[misc]
        return np.moveaxis(resized(np.moveaxis(image, 0, 2), shape, resample, not antialias), 2, 0)


def channels_of(image_mean: Any, image_std: Any) -> int:
    """How many channels a processor has; one number for all means three."""
    counts = {len(values) for values in (image_mean, image_std) if isinstance(values, list | tuple)}
    if len(counts) > 1:
        raise ValueError(
            f"image_mean has {len(image_mean)} numbers and image_std {len(image_std)}; give one of each per channel."
        )
    return counts.pop() if counts else 3


class PvtImageProcessor(ImageInputsMixin, transformers.PvtImageProcessor):  # type: ignore[misc]
    """Transformers' own, under its name, for images of any number of channels, and of 16 bits and floats.

    A saved preprocessor_config.json means the same where this package is not installed, for images of 8 bits and up to
    four channels; others are an error there, or (16 bits) clipped.
    """


class PvtImageProcessorPil(ImageInputsMixin, PilResizeMixin, transformers.PvtImageProcessorPil):  # type: ignore[misc]
    """`PvtImageProcessor` on PIL."""


class SegmentationKwargs(ImagesKwargs, total=False):
    """What a segmenter's processor takes beside Transformers' settings."""

    size_divisor: int
    do_reduce_labels: bool
    published_resampling: bool


class SegmentationMixin(RemoteCodeMixin, ImageInputsMixin):
    """Keeps the ratio, rounds sides up to a multiple, takes label maps along, and turns logits into label maps.

    Args:
        size: `{"shortest_edge": 512, "longest_edge": 2048}` scales until one of both is reached, as published;
            `{"height": ..., "width": ...}` ignores the ratio.
        size_divisor: each side is rounded up to a multiple of this, in the same resize.
        published_resampling: resize as the published segmenters were trained and evaluated: with OpenCV's bilinear
            filter (`resampling.between_neighbours`), and twice, to `size` and then to the multiple. Off by default:
            without antialiasing, what is shrunk depends on which pixels the grid happens to hit. Conversion sets it
            for published segmenters, because weights score best on images made like those they learnt from.
        do_reduce_labels: label 0 becomes 255, which the loss ignores, and the others shift down by one, as in ADE20K.
    """

    valid_kwargs = SegmentationKwargs
    resample = Image.Resampling.BILINEAR
    size = {"shortest_edge": 512, "longest_edge": 2048}
    size_divisor = 32
    default_to_square = False
    do_convert_rgb = True
    do_reduce_labels = False
    published_resampling = False

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` (B, C, H, W) of images and, where label maps are given, `labels` (B, H, W) of integers.

        Images are resized by PIL, whichever the backend: the same pixels wherever a model runs. Tensors are resized by
        the backend.

        Args:
            images: one or a list: PIL images of any mode, files (EXIF orientation is applied), arrays (H, W), (H, W, C)
                or (C, H, W), tensors (C, H, W), of C = `len(image_mean)` channels. 16 bits and floats from 0 to 1 are
                scaled to 8 bits; for three channels grey is repeated and transparency becomes white.
            segmentation_maps: one label map (H, W) of integers per image, of the image's size.

        Raises:
            ValueError: an image of another number of channels, or with numbers that are no image's; not as many label
                maps as images, or one that has another size or is not single-channel integers.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)  # type: ignore[misc]

    def _preprocess_image_like_inputs(
        self, images: Any, segmentation_maps: Any, do_reduce_labels: bool, return_tensors: Any, **kwargs: Any
    ) -> BatchFeature:
        images = self.read(images, **kwargs)
        if segmentation_maps is not None:
            if kwargs["do_center_crop"] or kwargs["do_pad"]:
                raise ValueError("label maps are only resized; switch do_center_crop and do_pad off.")
            label_maps = [as_label_map(label_map) for label_map in as_list(segmentation_maps)]
            check_sizes(images, label_maps)
            if do_reduce_labels:
                label_maps = [np.where(labels == 0, 255, labels - (labels != 255)) for labels in label_maps]
        images = [self.process_image(image, **kwargs) for image in images]  # (C, H, W)
        kwargs |= {"do_resize": False, "return_tensors": None}
        data = dict(super()._preprocess(images, **kwargs))  # type: ignore[misc]
        if segmentation_maps is not None:
            pairs = zip(label_maps, images, strict=True)
            data["labels"] = [nearest(labels, image.shape[-2:]) for labels, image in pairs]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def process_image(  # type: ignore[override]
        self,
        image: Any,
        do_resize: bool,
        size: SizeDict,
        size_divisor: int,
        resample: Any,
        published_resampling: bool,
        **kwargs: Any,
    ) -> Any:
        """An image resized, as the backend's array or tensor (C, H, W)."""
        sizes = [target_size(*image_size(image), size, size_divisor)] if do_resize else []
        if do_resize and published_resampling:
            sizes.insert(0, target_size(*image_size(image), size, 1))
        if not isinstance(image, Tensor):
            for one in sizes:
                image = resized(image, one, resample, published_resampling)
            return super().process_image(image, **kwargs)
        image = super().process_image(image, **kwargs)
        for height, width in sizes:
            to = SizeDict(height=height, width=width)
            image = self.resize(image, to, resample, antialias=not published_resampling)  # type: ignore[attr-defined]
        return image

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Label maps (H, W) of a segmenter's logits, at each image's (height, width), or at the logits' size."""
        logits = outputs.logits
        if target_sizes is None:
            target_sizes = [tuple(logits.shape[-2:])] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"got {len(target_sizes)} target sizes for {len(logits)} images; pass one for each.")
        return [
            most_likely_labels(scores, (int(height), int(width)))
            for scores, (height, width) in zip(logits, target_sizes, strict=True)
        ]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As Transformers', and with the code beside it, because Transformers has no such processor."""
        vars(self).pop("auto_map", None)  # of the folder that it may come from
        if (carried := self.class_to_carry()) is not None:
            module = carried.__module__.rpartition(".")[2]
            names = ("PvtSegmentationImageProcessorPil", "PvtSegmentationImageProcessor")
            self.auto_map = {"AutoImageProcessor": [f"{module}.{name}" for name in names]}
            write_remote_code(carried, save_directory)
        return super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]


class PvtSegmentationImageProcessor(SegmentationMixin, transformers.PvtImageProcessor):  # type: ignore[misc]
    """`SegmentationMixin` on torchvision."""


class PvtSegmentationImageProcessorPil(SegmentationMixin, PilResizeMixin, transformers.PvtImageProcessorPil):  # type: ignore[misc]
    """`SegmentationMixin` on PIL."""


def target_size(height: int, width: int, size: SizeDict, divisor: int) -> tuple[int, int]:
    """Height and width after resizing: `size` reached in one dimension, then each side a multiple of `divisor`."""
    if size.height and size.width:
        height, width = size.height, size.width
    else:
        scale = (size.shortest_edge or math.inf) / min(height, width)
        scale = min(scale, (size.longest_edge or math.inf) / max(height, width))
        height, width = int(height * scale + 0.5), int(width * scale + 0.5)
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> `size`, every pixel with the label of the nearest one: labels are never mixed."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def most_likely_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The label with the highest logit per pixel: logits (K, h, w), resized bilinearly, become labels (H, W).

    A few labels at a time: all logits of a large photograph at its own size would take gigabytes.
    """
    best_score = logits.new_full(size, -math.inf)
    best_label = torch.zeros(size, dtype=torch.int64, device=logits.device)
    at_once = max(1, LOGITS_AT_ONCE // math.prod(size))
    for first in range(0, len(logits), at_once):
        some = logits[None, first : first + at_once]
        score, label = F.interpolate(some, size=size, mode="bilinear", align_corners=False)[0].max(0)  # (H, W)
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best_label = torch.where(better, label + first, best_label)
    return best_label
