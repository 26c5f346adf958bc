"""An image as a model's pyramid sees it, whole: what is drawn of the inside has to lie over the image."""

from typing import Any

import torch
from torch import Tensor, nn

from ..images.image_processing_pvt import segmentation_image_processor
from ..pyramid.modeling_pyramid import PyramidModel
from .segmentations import rgb_pixels


def pyramid_of(model: nn.Module) -> PyramidModel:
    """The one pyramid inside a classifier, segmenter, detector or backbone.

    Raises:
        ValueError: a model without a pyramid or with several, or one in training mode, which drops at random.
    """
    pyramids = [part for part in model.modules() if isinstance(part, PyramidModel)]
    if len(pyramids) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(pyramids) or 'no'} pyramids, expected one; pass a model of PVT, PVTv2 or "
            "P2T, or one that stands on it."
        )
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first.")
    return pyramids[0]


def whole_image(pyramid: PyramidModel, image: Any, image_processor: Any = None) -> Tensor:
    """`pixel_values` (1, C, H, W): resized as the processor does, but neither cropped nor padded.

    Args:
        image: a PIL image of any mode, or an array (H, W, 3) of uint8; other models than those of three channels take
            what their processor takes.
        image_processor: default: ImageNet's mean and deviation, at the image's own size.
    """
    channels = pyramid.config.num_channels
    settings: dict[str, Any] = {"do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
    if image_processor is None:
        image_processor = segmentation_image_processor(channels)
        settings["do_resize"] = False
    inputs = image_processor(rgb_pixels(image) if channels == 3 else image, **settings)
    return inputs["pixel_values"].to(next(pyramid.parameters(), torch.empty(0)).device)
