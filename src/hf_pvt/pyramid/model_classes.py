"""The model of each family for each of Transformers' Auto classes."""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_p2t import P2tConfig
from .configuration_pvt import PvtConfig
from .configuration_pvt_v2 import PvtV2Config
from .modeling_p2t import P2tBackbone, P2tForImageClassification, P2tForSemanticSegmentation, P2tModel
from .modeling_pvt import PvtBackbone, PvtForImageClassification, PvtForSemanticSegmentation, PvtModel
from .modeling_pvt_v2 import PvtV2Backbone, PvtV2ForImageClassification, PvtV2ForSemanticSegmentation, PvtV2Model

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
