"""Image processors: the published evaluation of classifiers, and images with label maps for segmenters.

Classification uses Transformers' own `PvtImageProcessor` with the published settings, so that preprocessor_config.json
means the same where this package is not installed. Transformers' defaults squash an image to 224x224, which is not what
the papers evaluate.
"""

import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PvtImageProcessor, PvtImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import SizeDict, torch_pil_interpolation_mapping
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from .image_inputs import as_label_map, as_list, check_sizes, readable
from .remote_code import write_remote_code

# Share of the resized image's shorter side that the centre crop keeps: 224 of 256 pixels.
CROP_RATIO = 0.875
# Logits that are resized at once (16 MiB of float32), so that many labels of a large image need little memory.
LOGITS_AT_ONCE = 2**22


def classification_image_processor(crop_size: int = 224) -> BaseImageProcessor:
    """The published evaluation: shorter side to crop_size / 0.875 (224: 256, 384: 438), bicubic, then a centre crop.

    Images come out as (3, crop_size, crop_size) floats, normalised by ImageNet's mean and standard deviation. Of the
    backends torchvision is taken where it is installed, PIL elsewhere. Where the margin is odd, Transformers' crop may
    lie one pixel beside torchvision's, with which the papers evaluated (it truncates, torchvision rounds).
    """
    processor_class = PvtImageProcessor if is_torchvision_available() else PvtImageProcessorPil
    return processor_class(
        do_resize=True,
        size={"shortest_edge": int(crop_size / CROP_RATIO)},
        do_center_crop=True,
        crop_size={"height": crop_size, "width": crop_size},
        do_convert_rgb=True,
    )


def segmentation_image_processor(**settings: Any) -> BaseImageProcessor:
    """The published evaluation on ADE20K: the shorter side to 512, the longer at most 2048, each a multiple of 32.

    Args:
        settings: fields of `PvtSegmentationImageProcessor` to change, such as `do_reduce_labels=True` for ADE20K.
    """
    if is_torchvision_available():
        return PvtSegmentationImageProcessor(**settings)
    return PvtSegmentationImageProcessorPil(**settings)


class SegmentationKwargs(ImagesKwargs, total=False):
    """What a segmenter's processor takes beside Transformers' settings."""

    size_divisor: int
    do_reduce_labels: bool


class SegmentationMixin:
    """Keeps the ratio, rounds sides up to a multiple, takes label maps along, and turns logits into label maps.

    Args:
        size: `{"shortest_edge": 512, "longest_edge": 2048}` scales until one of both is reached, as published;
            `{"height": ..., "width": ...}` ignores the ratio.
        size_divisor: each side is rounded up to a multiple of this. The published code scales first and then rounds
            up, resampling twice; here it is one resize.
        do_reduce_labels: label 0 becomes 255, which the loss ignores, and the others shift down by one, as in ADE20K.
    """

    valid_kwargs = SegmentationKwargs
    resample = Image.Resampling.BILINEAR
    size = {"shortest_edge": 512, "longest_edge": 2048}
    size_divisor = 32
    default_to_square = False
    do_convert_rgb = True
    do_reduce_labels = False

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` (B, 3, H, W) of images and, where label maps are given, `labels` (B, H, W) of integers.

        PIL images, files and integer arrays are resized by PIL, whichever the backend: the same pixels wherever a
        model runs. Tensors, and arrays of floats or with the channels first, are resized by the backend.

        Args:
            images: one or a list: PIL images of any mode or files (EXIF orientation is applied, 16 bits become 8,
                transparency becomes white), arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), tensors (3, H, W).
            segmentation_maps: one label map (H, W) of integers per image, of the image's size.

        Raises:
            ValueError: an array of integers that are no image's; not as many label maps as images, or one that has
                another size or is not single-channel integers.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)  # type: ignore[misc]

    def _preprocess_image_like_inputs(
        self, images: Any, segmentation_maps: Any, do_reduce_labels: bool, return_tensors: Any, **kwargs: Any
    ) -> BatchFeature:
        images = [readable(image) for image in as_list(images)]
        images = self._prepare_images_structure(images)  # type: ignore[attr-defined]
        if segmentation_maps is not None:
            if kwargs["do_center_crop"] or kwargs["do_pad"]:
                raise ValueError("label maps are only resized; switch do_center_crop and do_pad off.")
            label_maps = [as_label_map(label_map) for label_map in as_list(segmentation_maps)]
            check_sizes(images, label_maps)
            if do_reduce_labels:
                label_maps = [np.where(labels == 0, 255, labels - (labels != 255)) for labels in label_maps]
        images = [self.process_image(image, **kwargs) for image in images]  # (3, H, W)
        kwargs |= {"do_resize": False, "return_tensors": None}
        data = dict(super()._preprocess(images, **kwargs))  # type: ignore[misc]
        if segmentation_maps is not None:
            pairs = zip(label_maps, images, strict=True)
            data["labels"] = [nearest(labels, image.shape[-2:]) for labels, image in pairs]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def process_image(
        self, image: Any, do_resize: bool, size: SizeDict, size_divisor: int, resample: Any, **kwargs: Any
    ) -> Any:
        """An image resized, as the backend's array or tensor (3, H, W)."""
        if do_resize and isinstance(image, Image.Image):
            height, width = target_size(image.height, image.width, size, size_divisor)
            image = image.resize((width, height), torch_pil_interpolation_mapping.get(resample, resample))
            do_resize = False
        image = super().process_image(image, **kwargs)  # type: ignore[misc]
        if do_resize:
            height, width = target_size(image.shape[-2], image.shape[-1], size, size_divisor)
            image = self.resize(image, SizeDict(height=height, width=width), resample)  # type: ignore[attr-defined]
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
        module = type(self).__module__.rpartition(".")[2]
        names = ("PvtSegmentationImageProcessorPil", "PvtSegmentationImageProcessor")
        self.auto_map = {"AutoImageProcessor": [f"{module}.{name}" for name in names]}
        write_remote_code(self, save_directory)
        return super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]


class PvtSegmentationImageProcessor(SegmentationMixin, PvtImageProcessor):  # type: ignore[misc]
    """`SegmentationMixin` on torchvision."""


class PvtSegmentationImageProcessorPil(SegmentationMixin, PvtImageProcessorPil):  # type: ignore[misc]
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
