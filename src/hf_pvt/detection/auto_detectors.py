"""The one table of detectors: what `import hf_pvt` registers with Transformers' Auto classes."""

import transformers
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto import modeling_auto

from .image_processing_detection import PvtDetectionImageProcessor
from .modeling_atss import AtssForObjectDetection
from .modeling_cascade_mask_rcnn import CascadeMaskRcnnForInstanceSegmentation
from .modeling_detector import Detector
from .modeling_gfl import GflForObjectDetection
from .modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
from .modeling_retinanet import RetinaNetForObjectDetection
from .modeling_sparse_rcnn import SparseRcnnForObjectDetection

# The name that the configuration's `model_type` has, and that users say.
DETECTORS: dict[str, type[Detector]] = {
    "retinanet": RetinaNetForObjectDetection,
    "mask_rcnn": MaskRcnnForInstanceSegmentation,
    "atss": AtssForObjectDetection,
    "gfl": GflForObjectDetection,
    "cascade_mask_rcnn": CascadeMaskRcnnForInstanceSegmentation,
    "sparse_rcnn": SparseRcnnForObjectDetection,
}

# Pipelines know models by these names alone, and warn of others.
PIPELINE_NAMES = {
    "AutoModelForObjectDetection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "AutoModelForImageSegmentation": modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    "AutoModelForInstanceSegmentation": modeling_auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
}


def register_detectors() -> None:
    """Tell the Auto classes of the detectors."""
    for model_type, detector in DETECTORS.items():
        AutoConfig.register(model_type, detector.config_class, exist_ok=True)
        for name in detector.auto_classes:
            getattr(transformers, name).register(detector.config_class, detector, exist_ok=True)
            # The key is no model type, or Transformers would look for the class in its own module of that type.
            PIPELINE_NAMES[name][f"hf_pvt:{model_type}"] = detector.__name__
        if not hasattr(AutoImageProcessor, "is_dummy"):  # as in older Transformers without torchvision
            backends: dict[str, type] = {"torchvision": PvtDetectionImageProcessor}
            AutoImageProcessor.register(detector.config_class, image_processor_classes=backends, exist_ok=True)
