"""The one table of what `import hf_pvt` registers with Transformers' Auto classes.

For "pvt" and "pvt_v2" this replaces Transformers' own classes, which is the point of the import: `exist_ok=True`.
"""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_p2t import P2tConfig
from .configuration_pvt import PvtConfig
from .configuration_pvt_v2 import PvtV2Config
from .image_processing_pvt import (
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtSegmentationImageProcessor,
    PvtSegmentationImageProcessorPil,
)
from .modeling_p2t import P2tBackbone, P2tForImageClassification, P2tForSemanticSegmentation, P2tModel
from .modeling_pvt import PvtBackbone, PvtForImageClassification, PvtForSemanticSegmentation, PvtModel
from .modeling_pvt_v2 import PvtV2Backbone, PvtV2ForImageClassification, PvtV2ForSemanticSegmentation, PvtV2Model
from .pipelines import register_pipelines

AUTO_CLASSES: dict[type[PreTrainedConfig], dict[Any, type[PreTrainedModel]]] = {
    PvtConfig: {
        AutoModel: PvtModel,
        AutoBackbone: PvtBackbone,
        AutoModelForImageClassification: PvtForImageClassification,
        AutoModelForSemanticSegmentation: PvtForSemanticSegmentation,
    },
    PvtV2Config: {
        AutoModel: PvtV2Model,
        AutoBackbone: PvtV2Backbone,
        AutoModelForImageClassification: PvtV2ForImageClassification,
        AutoModelForSemanticSegmentation: PvtV2ForSemanticSegmentation,
    },
    P2tConfig: {
        AutoModel: P2tModel,
        AutoBackbone: P2tBackbone,
        AutoModelForImageClassification: P2tForImageClassification,
        AutoModelForSemanticSegmentation: P2tForSemanticSegmentation,
    },
}


def register() -> None:
    """Tell the Auto classes of the three families."""
    for config_class, classes in AUTO_CLASSES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in classes.items():
            auto_class.register(config_class, model_class, exist_ok=True)
        # The segmentation pipeline knows models by these names alone, and warns of others. The key is no model type, or
        # Transformers would look for the class in its own module of that type.
        segmenter = classes[AutoModelForSemanticSegmentation]
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[f"hf_pvt:{config_class.model_type}"] = segmenter.__name__
    # A preprocessor_config.json names its class, which Transformers finds among all that are registered, by whichever
    # configuration; P2T's alone has none in Transformers.
    segmentation: dict[str, type] = {
        "torchvision": PvtSegmentationImageProcessor,
        "pil": PvtSegmentationImageProcessorPil,
    }
    classification: dict[str, type] = {"torchvision": PvtImageProcessor, "pil": PvtImageProcessorPil}
    if not hasattr(AutoImageProcessor, "is_dummy"):  # as in older Transformers without torchvision
        AutoImageProcessor.register(P2tConfig, image_processor_classes=segmentation, exist_ok=True)
        for config_class in (PvtConfig, PvtV2Config):
            AutoImageProcessor.register(config_class, image_processor_classes=classification, exist_ok=True)
    register_pipelines()
