"""PVT, PVTv2 and P2T, the pyramid transformer backbones, as Hugging Face models.

Importing the package registers the three families with Transformers' Auto classes. For "pvt" and "pvt_v2" that
replaces Transformers' own classes from then on.
"""

from importlib.metadata import version as _version

from .auto import register as _register
from .configuration_p2t import P2tConfig
from .configuration_pvt import PvtConfig
from .configuration_pvt_v2 import PvtV2Config
from .drawing import draw_segmentation
from .image_processing_pvt import (
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtSegmentationImageProcessor,
    PvtSegmentationImageProcessorPil,
    classification_image_processor,
    segmentation_image_processor,
)
from .labels import ade20k_id2label, ade20k_palette, imagenet_1k_id2label
from .modeling_p2t import (
    P2tBackbone,
    P2tForImageClassification,
    P2tForSemanticSegmentation,
    P2tModel,
    P2tPreTrainedModel,
)
from .modeling_pvt import (
    PvtBackbone,
    PvtForImageClassification,
    PvtForSemanticSegmentation,
    PvtModel,
    PvtPreTrainedModel,
)
from .modeling_pvt_v2 import (
    PvtV2Backbone,
    PvtV2ForImageClassification,
    PvtV2ForSemanticSegmentation,
    PvtV2Model,
    PvtV2PreTrainedModel,
)
from .original_checkpoints import load_original
from .segmentation_inference import segment_multi_scale, segment_sliding
from .variants import VARIANTS, variant_config

__version__ = _version("hf_pvt")

__all__ = [
    "VARIANTS",
    "P2tBackbone",
    "P2tConfig",
    "P2tForImageClassification",
    "P2tForSemanticSegmentation",
    "P2tModel",
    "P2tPreTrainedModel",
    "PvtBackbone",
    "PvtConfig",
    "PvtForImageClassification",
    "PvtForSemanticSegmentation",
    "PvtImageProcessor",
    "PvtImageProcessorPil",
    "PvtModel",
    "PvtPreTrainedModel",
    "PvtSegmentationImageProcessor",
    "PvtSegmentationImageProcessorPil",
    "PvtV2Backbone",
    "PvtV2Config",
    "PvtV2ForImageClassification",
    "PvtV2ForSemanticSegmentation",
    "PvtV2Model",
    "PvtV2PreTrainedModel",
    "ade20k_id2label",
    "ade20k_palette",
    "classification_image_processor",
    "draw_segmentation",
    "imagenet_1k_id2label",
    "load_original",
    "segment_multi_scale",
    "segment_sliding",
    "segmentation_image_processor",
    "variant_config",
]

_register()
