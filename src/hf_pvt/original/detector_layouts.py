"""Published detectors for `load_original`: what their checkpoints call the weights, and what the shapes tell.

The sources are MMDetection 2's detectors on the authors' pyramids, and the same on the PVT and PVTv2 that MMDetection
has itself.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..detection.configuration_detector import DenseDetectorConfig, divided
from ..detection.detector_classes import DETECTORS
from ..published.detectors import drop_path_rate
from ..published.variants import variant_of
from ..pyramid.configuration_classes import CONFIG_CLASSES
from .detector_heads import HEADS, LATERAL
from .labels_of import label_fields
from .pyramid_layouts import PUBLISHED, PUBLISHED_LAYOUTS, STAGES, Layout, Renames, StateDict, per_stage
from .shapes import pyramid_fields, shape_of, valid_config

# Ours -> MMDetection's, for neck and heads; the pyramid lies under `backbone`. Further levels are counted on there.
DETECTOR: Renames = (
    (r"^neck\.further_convs\.(\d+)\.", lambda m: f"neck.fpn_convs.{DenseDetectorConfig.backbone_levels + int(m[1])}."),
    (r"^((neck|bbox_head)\.\w+_convs\.\d+|mask_heads?(\.\d+)?\.convs\.\d+)\.(?=weight|bias)", r"\1.conv."),
    (r"^(bbox_head\..+)\.group_norm\.", r"\1.gn."),
    (r"^(box_heads\.\d+)\.attention\.in_proj\.", r"\1.attention.attn.in_proj_"),
    (r"^(box_heads\.\d+)\.attention\.out_proj\.", r"\1.attention.attn.out_proj."),
    (r"^(box_heads\.\d+)\.ffn\.0\.", r"\1.ffn.layers.0.0."),
    (r"^(box_heads\.\d+)\.ffn\.2\.", r"\1.ffn.layers.1."),
    (r"^box_heads?\.", r"roi_head.bbox_head."),
    (r"^mask_heads?\.", r"roi_head.mask_head."),
    (r"\.shared_convs\.(\d+)\.batch_norm\.", r".shared_convs.\1.bn."),
    (r"^(?!neck\.|bbox_head\.|rpn_head\.|roi_head\.)", r"backbone."),
)

# MMDetection's own pyramids.
OWN_PVT_V2: Renames = (
    *PUBLISHED,
    *per_stage(
        (r"^patch_embed<n>\.proj\.", r"layers.<i>.0.projection."),
        (r"^patch_embed<n>\.norm\.", r"layers.<i>.0.norm."),
        (r"^pos_embed<n>", r"layers.<i>.1.0.pos_embed"),
        (r"^block<n>\.", r"layers.<i>.1."),
        (r"^norm<n>\.", r"layers.<i>.2."),
    ),
    (r"\.attn\.(q|kv)\.", r".attn.attn.in_proj_"),
    (r"\.attn\.proj\.", r".attn.attn.out_proj."),
    (r"\.mlp\.fc1\.", r".ffn.layers.0."),
    (r"\.mlp\.dwconv\.dwconv\.", r".ffn.layers.1."),
    (r"\.mlp\.fc2\.", r".ffn.layers.4."),
)

# PVT has no convolution in its feed-forward, and the position embeddings in front of the blocks.
OWN_PVT: Renames = (
    (r"^(encoder\.layers\.\d\.blocks)\.(\d+)\.", lambda m: f"{m[1]}.{int(m[2]) + 1}."),
    *OWN_PVT_V2,
    (r"\.ffn\.layers\.4\.", r".ffn.layers.3."),
)


@dataclass(frozen=True)
class DetectorLayout(Layout):
    """A pyramid inside a detector of MMDetection."""

    detector: str = ""  # its model type

    def backbone_fields(self, variant: str | None) -> dict[str, Any]:
        """Fields of the backbone that the shapes cannot show. `variant`: the published one recognised, or None."""
        return {"drop_path_rate": drop_path_rate(variant)} if variant else {}


@dataclass(frozen=True)
class OwnPyramidLayout(DetectorLayout):
    """MMDetection's own pyramid: queries, keys and values in one matrix, and no class token's position in PVT.

    All its norms have the epsilon 1e-6, also those that have 1e-5 in the authors' code; every size has drop path 0.1.
    """

    pointwise: str = r"\.mlp\.dense\d\.weight$"
    joined: tuple[str, ...] = ("query", "key", "value")

    def backbone_fields(self, variant: str | None) -> dict[str, Any]:
        return {"drop_path_rate": 0.1, "reduction_layer_norm_eps": 1e-6}

    def lacks_class_entry(self, ours: str) -> bool:
        return ours.endswith(f"encoder.layers.{STAGES - 1}.patch_embedding.position_embeddings")

    def shape(self, ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.lacks_class_entry(ours):
            return (shape[0], shape[1] - 1, *shape[2:])
        return super().shape(ours, shape)

    def part(self, theirs: Tensor, ours: str) -> Tensor:
        if self.lacks_class_entry(ours):  # dense prediction skips it
            return torch.cat((torch.zeros_like(theirs[:, :1]), theirs), dim=1)  # (1, 1 + N, C)
        return super().part(theirs, ours)

    def whole(self, weight: Tensor, ours: str) -> Tensor:
        return weight[:, 1:] if self.lacks_class_entry(ours) else super().whole(weight, ours)


def _authors_layout(layout: Layout, detector: str) -> DetectorLayout:
    """The authors' pyramid in MMDetection 2; P2T's may still carry its classifier."""
    return DetectorLayout(
        source=f"MMDetection {HEADS[detector].title} on {layout.source}",
        model_type=layout.model_type,
        marker=f"backbone.{layout.marker}",
        renames=(*layout.renames, *DETECTOR),
        head=HEADS[detector].marker,
        pointwise=layout.pointwise,
        ignored=r"^backbone\.head\.",
        detector=detector,
    )


def _own_layout(model_type: str, detector: str) -> DetectorLayout:
    title, marker, renames = {
        "pvt": ("PVT", "layers.0.1.0.pos_embed", OWN_PVT),
        "pvt_v2": ("PVTv2", "layers.0.1.0.ffn.layers.1.weight", OWN_PVT_V2),
    }[model_type]
    return OwnPyramidLayout(
        source=f"MMDetection {HEADS[detector].title} on MMDetection {title}",
        model_type=model_type,
        marker=f"backbone.{marker}",
        renames=(*renames, *DETECTOR),
        head=HEADS[detector].marker,
        detector=detector,
    )


DETECTOR_LAYOUTS = tuple(
    layout
    for detector in HEADS
    for layout in (
        *(_authors_layout(published, detector) for published in PUBLISHED_LAYOUTS),
        *(_own_layout(model_type, detector) for model_type in ("pvt", "pvt_v2")),
    )
)


def empty_detector(
    layout: DetectorLayout,
    weights: StateDict,
    meta: dict[str, Any],
    overrides: dict[str, Any],
    path: str | os.PathLike[str],
) -> PreTrainedModel:
    """The detector of a layout, without values."""
    detector, head = DETECTORS[layout.detector], HEADS[layout.detector]
    config_class: Any = detector.config_class
    own, of_backbone = divided(overrides, config_class, CONFIG_CLASSES[layout.model_type])
    backbone = pyramid_fields(weights, layout, of_backbone, (LATERAL, *head.needed), path)
    backbone |= layout.backbone_fields(variant_of(layout.model_type, backbone))
    fields = {"fpn_hidden_size": shape_of(weights, layout, LATERAL)[0], **head.fields(weights, layout)}
    own = label_fields(meta, own, fields["num_labels"], "detection") | own
    if "id2label" in own:
        del fields["num_labels"]
    backbone_config = valid_config(CONFIG_CLASSES[layout.model_type], backbone | of_backbone, layout, path)
    model: PreTrainedModel = detector(
        valid_config(config_class, fields | {"backbone_config": backbone_config} | own, layout, path)
    )
    return model
