"""Images and annotations for detectors, and detectors' outputs in the pixels of the original images.

Like Transformers' DetrImageProcessor, with which it shares the settings and the keys, but for these differences: the
published resize (cv2's, to 8 bits) and padding, boxes in shares of the image without its padding, crowd regions kept
apart, masks drawn one at a time. All that is left of Detr's code is its backend's, so it builds on that.
"""

import math
import os
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    SizeDict,
    torch_pil_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs

from ..images.image_inputs import as_list
from ..images.image_processing_pvt import ImageInputsMixin, channel_statistics, target_size
from ..images.resampling import between_neighbours
from ..remote_code import RemoteCodeMixin, write_remote_code
from .coco_annotations import detection_target
from .parts.torchvision_ops import require_torchvision
from .post_processing import DetectionPostProcessing


def detection_image_processor(num_channels: int = 3, **settings: Any) -> "PvtDetectionImageProcessor":
    """The published evaluation on COCO: the shorter side to 800, the longer at most 1333, padded to multiples of 32.

    Args:
        num_channels: of the images, which are normalised by `channel_statistics`.
        settings: fields of `PvtDetectionImageProcessor` to change, such as `size={"shortest_edge": 640,
            "longest_edge": 1066}` of RetinaNet 640x, or `category_ids=hf_pvt.coco_category_ids()` for COCO's files.

    Raises:
        ImportError: torchvision is not installed.
    """
    return PvtDetectionImageProcessor(**channel_statistics(num_channels) | settings)


class DetectionKwargs(ImagesKwargs, total=False):
    """What a detector's processor takes beside Transformers' settings."""

    size_divisor: int
    return_segmentation_masks: bool
    category_ids: list[int] | None


class PvtDetectionImageProcessor(RemoteCodeMixin, DetectionPostProcessing, ImageInputsMixin, TorchvisionBackend):  # type: ignore[misc]
    """Images as the published detectors were evaluated on them, with COCO's annotations as targets.

    Args:
        size: `{"shortest_edge": 800, "longest_edge": 1333}` scales until one of both is reached, as published;
            `{"height": ..., "width": ...}` ignores the ratio.
        do_pad, size_divisor: zeros at the right and at the bottom, after normalising, up to the next multiple of
            `size_divisor` and to the largest image of the batch; or up to `pad_size`, where that is set.
        return_segmentation_masks: whether the targets have masks, which Mask R-CNN trains on.
        category_ids: the annotations' `category_id` of each label, in the order of the labels; None: they are the same.

    Raises:
        ImportError: torchvision is not installed.
    """

    valid_kwargs = DetectionKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = Image.Resampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True
    size_divisor = 32
    return_segmentation_masks = False
    category_ids = None

    def __init__(self, **settings: Any) -> None:
        require_torchvision(type(self).__name__)
        super().__init__(**settings)

    def preprocess(self, images: Any, annotations: Any = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W), 1 on the image and 0 on its padding, and `labels`.

        `labels` are there where annotations are given: one dict for each image, see `detection_target`. Images of
        integers are resized to integers as cv2 does, within one level; tensors and arrays of floats are not rounded.

        Args:
            images: one or a list: PIL images of any mode or files (EXIF orientation is applied, 16 bits become 8,
                transparency becomes white), arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), tensors (3, H, W).
            annotations: of COCO, one for each image: `{"image_id": ..., "annotations": [...]}`.

        Raises:
            ValueError: not as many annotations as images, a broken annotation, or a setting that detectors lack.
        """
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, annotations: Any, do_pad: bool, return_tensors: Any, **kwargs: Any
    ) -> BatchFeature:
        check_settings(**kwargs)
        images = self._prepare_image_like_inputs(images, **kwargs)  # (3, H, W)
        annotations = None if annotations is None else as_list(annotations)
        if annotations is not None and len(annotations) != len(images):
            raise ValueError(f"got {len(annotations)} annotations for {len(images)} images; pass one for each.")
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        images = [self._resize_and_normalize(image, **kwargs) for image in images]  # (3, h, w)
        sizes = [tuple(image.shape[-2:]) for image in images]
        data = {"pixel_values": images, "pixel_mask": [image.new_ones(image.shape[-2:]).long() for image in images]}
        if do_pad:
            data["pixel_values"], data["pixel_mask"] = self.pad(images, padded_size(sizes, **kwargs), return_mask=True)
        batch = BatchFeature(data=data, tensor_type=return_tensors)
        if annotations is not None:
            padded_sizes = [tuple(image.shape[-2:]) for image in data["pixel_values"]]
            every = zip(annotations, original_sizes, sizes, padded_sizes, strict=True)
            settings = kwargs["category_ids"], kwargs["return_segmentation_masks"]
            targets = [detection_target(*one, *settings) for one in every]
            batch["labels"] = [BatchFeature(target, tensor_type=return_tensors) for target in targets]
        return batch

    def _resize_and_normalize(self, image: Tensor, do_resize: bool, size: SizeDict, **kwargs: Any) -> Tensor:
        if do_resize:
            new_size = target_size(image.shape[-2], image.shape[-1], size, divisor=1)
            pixels = between_neighbours(image.movedim(0, 2).cpu().numpy(), new_size)  # (h, w, 3)
            image = torch.from_numpy(pixels).movedim(2, 0).to(image.device)  # (3, h, w)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return self.rescale_and_normalize(image, **{name: kwargs[name] for name in names})

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As Transformers', and with the code beside it, because Transformers has no such processor."""
        vars(self).pop("auto_map", None)  # of the folder that it may come from
        if (carried := self.class_to_carry()) is not None:
            module = carried.__module__.rpartition(".")[2]
            self.auto_map = {"AutoImageProcessor": f"{module}.{carried.__name__}"}
            write_remote_code(carried, save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def padded_size(sizes: list[tuple[int, int]], pad_size: SizeDict | None, size_divisor: int, **kwargs: Any) -> SizeDict:
    """The largest height and width of the batch, each rounded up to a multiple, where no size is given."""
    if pad_size is not None:
        return pad_size
    height, width = (math.ceil(max(sides) / size_divisor) * size_divisor for sides in zip(*sizes, strict=True))
    return SizeDict(height=height, width=width)


def check_settings(resample: Any, do_center_crop: bool | None, **kwargs: Any) -> None:
    if do_center_crop:
        raise ValueError("do_center_crop is set, but annotations are not cropped; switch it off.")
    if torch_pil_interpolation_mapping.get(resample, resample) != Image.Resampling.BILINEAR:
        raise ValueError(f"resample is {resample}, but detectors resize as cv2 does, bilinearly; leave it.")
