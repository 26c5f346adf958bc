"""The published PVT + DETR for `load_original`: MMDetection 2's on the authors' pyramids, as Transformers' model."""

import os
import re
from dataclasses import dataclass
from typing import Any

from transformers import DetrConfig, PreTrainedModel

from ..detection.configuration_detector import divided
from ..detection.modeling_detr import PUBLISHED_SETTINGS, DetrForObjectDetection
from ..published.variants import VARIANTS, variant_of
from ..pyramid.configuration_classes import CONFIG_CLASSES
from .labels_of import label_fields
from .pyramid_layouts import PUBLISHED_LAYOUTS, Layout, Renames, StateDict
from .shapes import pyramid_fields, shape_of, valid_config

# Transformers' -> MMDetection's; the pyramid's names follow.
HEAD: Renames = (
    (r"^((encoder|decoder)\.layers\.\d+\.(self_attn|encoder_attn|mlp|final))", r"bbox_head.transformer.\1"),
    (r"^decoder\.layernorm\.", r"bbox_head.transformer.decoder.post_norm."),
    (r"(\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.1."),
    (r"(\.decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norms.2."),
    (r"\.self_attn_layer_norm\.", r".norms.0."),
    (r"\.encoder_attn_layer_norm\.", r".norms.1."),
    (r"\.self_attn\.", r".attentions.0.attn."),
    (r"\.encoder_attn\.", r".attentions.1.attn."),
    (r"\.attn\.[qkv]_proj\.", r".attn.in_proj_"),
    (r"\.attn\.o_proj\.", r".attn.out_proj."),
    (r"\.mlp\.fc1\.", r".ffns.0.layers.0.0."),
    (r"\.mlp\.fc2\.", r".ffns.0.layers.1."),
    (r"^input_projection\.", r"bbox_head.input_proj."),
    (r"^query_position_embeddings\.", r"bbox_head.query_embedding."),
    (r"^class_labels_classifier\.", r"bbox_head.fc_cls."),
    (r"^bbox_predictor\.layers\.0\.", r"bbox_head.reg_ffn.layers.0.0."),
    (r"^bbox_predictor\.layers\.1\.", r"bbox_head.reg_ffn.layers.1."),
    (r"^bbox_predictor\.layers\.2\.", r"bbox_head.fc_reg."),
    (r"^backbone\.model\.", ""),
)

SELF_ATTENTION = "encoder.layers.0.self_attn.q_proj.weight"
INPUT, QUERIES, CLASSES = (
    "input_projection.weight",
    "query_position_embeddings.weight",
    "class_labels_classifier.weight",
)
FEED_FORWARDS = {part: f"{part}.layers.0.mlp.fc1.weight" for part in ("encoder", "decoder")}


@dataclass(frozen=True)
class DetrLayout(Layout):
    """A pyramid inside DETR, whose attentions hold queries, keys and values in one matrix."""

    detector: str = "detr"

    def place(self, ours: str) -> int | None:
        projection = re.search(r"_attn\.([qkv])_proj\.", ours)
        return "qkv".index(projection[1]) if projection else super().place(ours)

    def count(self, ours: str) -> int:
        return 3 if re.search(r"_attn\.[qkv]_proj\.", ours) else super().count(ours)


def _with_detr(layout: Layout) -> DetrLayout:
    """The authors' pyramid in MMDetection's DETR; P2T's may still carry its classifier."""
    return DetrLayout(
        source=f"MMDetection DETR on {layout.source}",
        model_type=layout.model_type,
        marker=f"backbone.{layout.marker}",
        renames=(*HEAD, *layout.renames, (r"^(?!bbox_head\.)", r"backbone.")),
        head="bbox_head.transformer.",
        pointwise=layout.pointwise,
        ignored=r"^backbone\.head\.",
    )


DETR_LAYOUTS = tuple(_with_detr(layout) for layout in PUBLISHED_LAYOUTS)


def empty_detr(
    layout: DetrLayout,
    weights: StateDict,
    meta: dict[str, Any],
    overrides: dict[str, Any],
    path: str | os.PathLike[str],
) -> PreTrainedModel:
    """The DETR of a layout, without values; as published it drops inside the attentions and feed-forwards, too."""
    backbone_class: Any = CONFIG_CLASSES[layout.model_type]
    own, of_backbone = divided(overrides, DetrConfig, backbone_class)
    needed = (SELF_ATTENTION, INPUT, QUERIES, CLASSES, *FEED_FORWARDS.values())
    pyramid = pyramid_fields(weights, layout, of_backbone, needed, path)
    if variant := variant_of(layout.model_type, pyramid):
        pyramid["drop_path_rate"] = VARIANTS[variant].drop_path_rate
    pyramid["out_features"] = ["stage4"]
    queries, width = shape_of(weights, layout, QUERIES)
    count = shape_of(weights, layout, CLASSES)[0] - 1  # without the background
    fields: dict[str, Any] = PUBLISHED_SETTINGS | {"d_model": width, "num_queries": queries, "auxiliary_loss": False}
    for part, feed_forward in FEED_FORWARDS.items():
        prefix = f"bbox_head.transformer.{part}.layers."
        numbers = {key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)}
        fields |= {f"{part}_layers": len(numbers), f"{part}_ffn_dim": shape_of(weights, layout, feed_forward)[0]}
    own = label_fields(meta, own, count, "detection") | own
    if "id2label" not in own:
        fields["num_labels"] = count
    backbone = valid_config(backbone_class, pyramid | of_backbone, layout, path)
    config = valid_config(DetrConfig, fields | {"backbone_config": backbone} | own, layout, path)
    model: Any = DetrForObjectDetection(config)
    return model
