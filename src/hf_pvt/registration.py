"""What `import hf_pvt` registers with Transformers: the one file that writes to its tables.

For "pvt" and "pvt_v2" this replaces Transformers' own classes, which is the point of the import: `exist_ok=True`.
"""

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto import modeling_auto
from transformers.pipelines import PIPELINE_REGISTRY

from .detection.detector_classes import DETECTORS
from .detection.image_processing_detection import PvtDetectionImageProcessor
from .images import pipelines
from .images.image_processing_pvt import (
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtSegmentationImageProcessor,
    PvtSegmentationImageProcessorPil,
)
from .pyramid.configuration_p2t import P2tConfig
from .pyramid.configuration_pvt import PvtConfig
from .pyramid.configuration_pvt_v2 import PvtV2Config
from .pyramid.model_classes import AUTO_CLASSES

# Pipelines know models by these names alone, and warn of others.
PIPELINE_NAMES = {
    "AutoModelForSemanticSegmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "AutoModelForObjectDetection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "AutoModelForImageSegmentation": modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    "AutoModelForInstanceSegmentation": modeling_auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
}

PIPELINES = {
    "image-classification": pipelines.ImageClassificationPipeline,
    "image-feature-extraction": pipelines.ImageFeatureExtractionPipeline,
    "image-segmentation": pipelines.ImageSegmentationPipeline,
    "object-detection": pipelines.ObjectDetectionPipeline,
}


def register() -> None:
    """Tell Transformers of the pyramids, the detectors, their image processors and the pipelines."""
    register_pyramids()
    register_detectors()
    if not hasattr(AutoImageProcessor, "is_dummy"):  # as in older Transformers without torchvision
        register_image_processors()
    for task, pipeline in PIPELINES.items():
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline


def register_pyramids() -> None:
    """The three families, with the Auto classes."""
    for config_class, classes in AUTO_CLASSES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in classes.items():
            auto_class.register(config_class, model_class, exist_ok=True)
        segmenter = classes[AutoModelForSemanticSegmentation]
        register_pipeline_name("AutoModelForSemanticSegmentation", config_class.model_type, segmenter)


def register_detectors() -> None:
    """The detectors, with the Auto classes."""
    for model_type, detector in DETECTORS.items():
        AutoConfig.register(model_type, detector.config_class, exist_ok=True)
        for auto_class in detector.auto_classes:
            getattr(transformers, auto_class).register(detector.config_class, detector, exist_ok=True)
            register_pipeline_name(auto_class, model_type, detector)


def register_pipeline_name(auto_class: str, model_type: str, model_class: type) -> None:
    """The key is no model type, or Transformers would look for the class in its own module of that type."""
    PIPELINE_NAMES[auto_class][f"hf_pvt:{model_type}"] = model_class.__name__


def register_image_processors() -> None:
    """The image processors, by their models' configurations.

    A preprocessor_config.json names its class, which Transformers finds among all that are registered, by whichever
    configuration; P2T's alone has none in Transformers.
    """
    segmentation: dict[str, type] = {
        "torchvision": PvtSegmentationImageProcessor,
        "pil": PvtSegmentationImageProcessorPil,
    }
    classification: dict[str, type] = {"torchvision": PvtImageProcessor, "pil": PvtImageProcessorPil}
    detection: dict[str, type] = {"torchvision": PvtDetectionImageProcessor}
    AutoImageProcessor.register(P2tConfig, image_processor_classes=segmentation, exist_ok=True)
    for config_class in (PvtConfig, PvtV2Config):
        AutoImageProcessor.register(config_class, image_processor_classes=classification, exist_ok=True)
    for detector in DETECTORS.values():
        AutoImageProcessor.register(detector.config_class, image_processor_classes=detection, exist_ok=True)
