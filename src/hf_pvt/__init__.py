"""PVT, PVTv2 and P2T, the pyramid transformer backbones, as Hugging Face models.

Importing the package registers the three families with Transformers' Auto classes. For "pvt" and "pvt_v2" that
replaces Transformers' own classes from then on.
"""

from importlib.metadata import version as _version

from .cpu.packing import pack_for_cpu
from .detection.configuration_atss import AtssConfig
from .detection.configuration_cascade_mask_rcnn import CascadeMaskRcnnConfig
from .detection.configuration_gfl import GflConfig
from .detection.configuration_mask_rcnn import MaskRcnnConfig
from .detection.configuration_retinanet import RetinaNetConfig
from .detection.configuration_sparse_rcnn import SparseRcnnConfig
from .detection.image_processing_detection import PvtDetectionImageProcessor, detection_image_processor
from .detection.modeling_atss import AtssForObjectDetection
from .detection.modeling_cascade_mask_rcnn import CascadeMaskRcnnForInstanceSegmentation
from .detection.modeling_detr import DetrForObjectDetection
from .detection.modeling_gfl import GflForObjectDetection
from .detection.modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
from .detection.modeling_retinanet import RetinaNetForObjectDetection
from .detection.modeling_sparse_rcnn import SparseRcnnForObjectDetection
from .drawing.attention import draw_attention
from .drawing.detections import draw_detections
from .drawing.features import draw_features
from .drawing.segmentations import draw_segmentation
from .images.image_processing_pvt import (
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtSegmentationImageProcessor,
    PvtSegmentationImageProcessorPil,
    classification_image_processor,
    segmentation_image_processor,
)
from .original.load_original import load_original
from .published.detectors import PUBLISHED_DETECTORS, detector_config
from .published.labels import ade20k_id2label, ade20k_palette, coco_category_ids, coco_id2label, imagenet_1k_id2label
from .published.variants import VARIANTS, variant_config
from .pyramid.configuration_p2t import P2tConfig
from .pyramid.configuration_pvt import PvtConfig
from .pyramid.configuration_pvt_v2 import PvtV2Config
from .pyramid.modeling_p2t import (
    P2tBackbone,
    P2tForImageClassification,
    P2tForSemanticSegmentation,
    P2tModel,
    P2tPreTrainedModel,
)
from .pyramid.modeling_pvt import (
    PvtBackbone,
    PvtForImageClassification,
    PvtForSemanticSegmentation,
    PvtModel,
    PvtPreTrainedModel,
)
from .pyramid.modeling_pvt_v2 import (
    PvtV2Backbone,
    PvtV2ForImageClassification,
    PvtV2ForSemanticSegmentation,
    PvtV2Model,
    PvtV2PreTrainedModel,
)
from .registration import register as _register
from .segmentation_inference import segment_multi_scale, segment_sliding

__version__ = _version("hf_pvt")

__all__ = [
    "PUBLISHED_DETECTORS",
    "VARIANTS",
    "AtssConfig",
    "AtssForObjectDetection",
    "CascadeMaskRcnnConfig",
    "CascadeMaskRcnnForInstanceSegmentation",
    "DetrForObjectDetection",
    "GflConfig",
    "GflForObjectDetection",
    "MaskRcnnConfig",
    "MaskRcnnForInstanceSegmentation",
    "P2tBackbone",
    "P2tConfig",
    "P2tForImageClassification",
    "P2tForSemanticSegmentation",
    "P2tModel",
    "P2tPreTrainedModel",
    "PvtBackbone",
    "PvtConfig",
    "PvtDetectionImageProcessor",
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
    "RetinaNetConfig",
    "RetinaNetForObjectDetection",
    "SparseRcnnConfig",
    "SparseRcnnForObjectDetection",
    "ade20k_id2label",
    "ade20k_palette",
    "classification_image_processor",
    "coco_category_ids",
    "coco_id2label",
    "detection_image_processor",
    "detector_config",
    "draw_attention",
    "draw_detections",
    "draw_features",
    "draw_segmentation",
    "imagenet_1k_id2label",
    "load_original",
    "pack_for_cpu",
    "segment_multi_scale",
    "segment_sliding",
    "segmentation_image_processor",
    "variant_config",
]

_register()
