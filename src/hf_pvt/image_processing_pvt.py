"""The image processor of the published evaluation.

It is Transformers' own `PvtImageProcessor` with the published settings, so that preprocessor_config.json means the same
where this package is not installed. Transformers' defaults squash an image to 224x224, which is not what the papers
evaluate.
"""

from transformers import PvtImageProcessor, PvtImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available

# Share of the resized image's shorter side that the centre crop keeps: 224 of 256 pixels.
CROP_RATIO = 0.875


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
