"""The three families, and configurations of them that are small enough for tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ResNetConfig, SwinConfig

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

    def shallow_config(self, **overrides: Any) -> Any:
        """For exporters: one block in each stage, and two pooled maps in P2T's first, one in the others.

        They reason for minutes about sizes that are rounded quotients.
        """
        pools = {"pool_ratios": ((12, 16), (6,), (3,), (1,))} if issubclass(self.config, hf_pvt.P2tConfig) else {}
        return self.tiny_config(depths=(1, 1, 1, 1), **pools, **overrides)

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


@dataclass(frozen=True)
class DetectorRow:
    """The classes of a detector, and what its tiny configuration has beside `TINY_DETECTOR`."""

    name: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    fields: dict[str, Any] = field(default_factory=dict)

    def tiny_config(self, backbone_config: PreTrainedConfig, **overrides: Any) -> Any:
        return self.config(backbone_config=backbone_config, **(TINY_DETECTOR | self.fields | overrides))

    def __str__(self) -> str:
        return self.name


TINY_DETECTOR: dict[str, Any] = {"fpn_hidden_size": 32, "num_labels": 5}
RETINANET = DetectorRow("retinanet", hf_pvt.RetinaNetConfig, hf_pvt.RetinaNetForObjectDetection)
FEW = {"num_groups": 8, "num_head_convs": 2}
ATSS = DetectorRow("atss", hf_pvt.AtssConfig, hf_pvt.AtssForObjectDetection, FEW)
GFL = DetectorRow("gfl", hf_pvt.GflConfig, hf_pvt.GflForObjectDetection, FEW)
DENSE = (RETINANET, ATSS, GFL)
MASK_RCNN = DetectorRow(
    "mask_rcnn", hf_pvt.MaskRcnnConfig, hf_pvt.MaskRcnnForInstanceSegmentation, {"box_hidden_size": 64}
)
FASTER_RCNN = DetectorRow("faster_rcnn", MASK_RCNN.config, MASK_RCNN.model, MASK_RCNN.fields | {"with_masks": False})
CASCADE_MASK_RCNN = DetectorRow(
    "cascade_mask_rcnn",
    hf_pvt.CascadeMaskRcnnConfig,
    hf_pvt.CascadeMaskRcnnForInstanceSegmentation,
    {
        "box_hidden_size": 64,
        "num_box_convs": 1,
        "num_mask_convs": 1,
        "max_proposals": 200,
        "max_training_proposals": 300,
    },
)
SPARSE_RCNN = DetectorRow(
    "sparse_rcnn",
    hf_pvt.SparseRcnnConfig,
    hf_pvt.SparseRcnnForObjectDetection,
    {
        "num_proposals": 25,
        "num_stages": 2,
        "proposal_attention_heads": 4,
        "dynamic_hidden_size": 8,
        "feed_forward_size": 64,
        "max_detections": 100,
    },
)
DETECTORS = (*DENSE, MASK_RCNN, FASTER_RCNN, CASCADE_MASK_RCNN, SPARSE_RCNN)
WITH_MASKS = (MASK_RCNN, CASCADE_MASK_RCNN)

# What a detector stands on: ours, and Transformers' own.
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    **{family.name: partial(family.tiny_config, depths=(1, 1, 1, 1)) for family in FAMILIES},
    "resnet": partial(ResNetConfig, embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "swin": partial(SwinConfig, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4),
}


def tiny_detector(detector: DetectorRow, backbone: str | PreTrainedConfig = "pvt_v2", **overrides: Any) -> Any:
    """Off its initial values and sure of something, so that there are detections."""
    torch.manual_seed(0)
    config = BACKBONES[backbone]() if isinstance(backbone, str) else backbone
    model = detector.model(detector.tiny_config(config, **overrides)).eval()
    perturb(model, 0.05)
    if detector in DENSE:
        label_branch(model).bias.data.add_(3)
    return model


def label_branch(model: Any) -> Any:
    """The convolution of a dense detector that gives the logits."""
    names = ("retina_cls", "atss_cls", "gfl_cls")
    return next(getattr(model.bbox_head, name) for name in names if hasattr(model.bbox_head, name))


def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Move biases and norms off their zeros and ones, where a forgotten one would not show."""
    for parameter in model.parameters():
        parameter.data.add_(scale * parameter.new_empty(parameter.shape).normal_())
