"""The three families, and configurations of them that are small enough for tests."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

import hf_pvt

# Every default that matters for the wiring (kernels, strides, ratios of the reduction) stays the published one.
TINY: dict[str, Any] = {
    "hidden_sizes": (16, 32, 48, 64),
    "depths": (1, 1, 2, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "mlp_ratios": (2, 2, 2, 2),
    "num_labels": 5,
    "fpn_hidden_size": 32,
    "decoder_hidden_size": 16,
}
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Family:
    """One row: the classes of a family, and what its tiny configuration has beside `TINY`."""

    name: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    classifier: type[PreTrainedModel]
    backbone: type[PreTrainedModel]
    segmenter: type[PreTrainedModel]
    fields: dict[str, Any] = field(default_factory=dict)

    def tiny_config(self, **overrides: Any) -> Any:
        """A configuration of about 0.1 million parameters."""
        return self.config(**(TINY | self.fields | overrides))

    @property
    def classes(self) -> tuple[type[PreTrainedModel], ...]:
        return self.model, self.classifier, self.backbone, self.segmenter

    def __str__(self) -> str:
        return self.name


PVT = Family(
    "pvt",
    hf_pvt.PvtConfig,
    hf_pvt.PvtModel,
    hf_pvt.PvtForImageClassification,
    hf_pvt.PvtBackbone,
    hf_pvt.PvtForSemanticSegmentation,
    {"image_size": IMAGE_SIZE},
)
PVT_V2 = Family(
    "pvt_v2",
    hf_pvt.PvtV2Config,
    hf_pvt.PvtV2Model,
    hf_pvt.PvtV2ForImageClassification,
    hf_pvt.PvtV2Backbone,
    hf_pvt.PvtV2ForSemanticSegmentation,
)
PVT_V2_LINEAR = Family(
    "pvt_v2_linear",
    PVT_V2.config,
    PVT_V2.model,
    PVT_V2.classifier,
    PVT_V2.backbone,
    PVT_V2.segmenter,
    {"linear_attention": True},
)
P2T = Family(
    "p2t",
    hf_pvt.P2tConfig,
    hf_pvt.P2tModel,
    hf_pvt.P2tForImageClassification,
    hf_pvt.P2tBackbone,
    hf_pvt.P2tForSemanticSegmentation,
)

FAMILIES = (PVT, PVT_V2, P2T)


def perturb(model: nn.Module) -> None:
    """Move biases and norms off their zeros and ones, where a forgotten one would not show."""
    for parameter in model.parameters():
        parameter.data.add_(0.1 * parameter.new_empty(parameter.shape).normal_())
