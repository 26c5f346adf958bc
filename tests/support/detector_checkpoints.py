"""Tiny detectors and their checkpoints, in the authors' layout and in MMDetection 3's."""

import re
from typing import Any

import torch
from checkpoints import FIELDS, StateDict
from families import Family, perturb
from transformers import PreTrainedModel

from hf_pvt.detection.detector_classes import DETECTORS
from hf_pvt.original.detector_layouts import DETECTOR_LAYOUTS
from hf_pvt.original.pyramid_layouts import Layout

ON_ALL_VARIANTS = ("retinanet", "mask_rcnn")

CLASSES = ("person", "bicycle", "car", "motorcycle", "airplane")

TINY_HEADS: dict[str, dict[str, Any]] = {
    "retinanet": {},
    "mask_rcnn": {"box_hidden_size": 24},
    "atss": {"fpn_hidden_size": 64},
    "gfl": {"fpn_hidden_size": 64, "reg_max": 5},
    "cascade_mask_rcnn": {"box_hidden_size": 24},
    "sparse_rcnn": {
        "num_stages": 2,
        "num_proposals": 10,
        "max_detections": 10,
        "dynamic_hidden_size": 4,
        "feed_forward_size": 24,
    },
}


def tiny(family: Family, detector: str = "retinanet", **overrides: Any) -> PreTrainedModel:
    """A tiny detector with weights that are nowhere zero or one."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"fpn_hidden_size": 16, "num_labels": 5} | TINY_HEADS[detector]
    config_class: Any = DETECTORS[detector].config_class
    backbone = family.tiny_config(**FIELDS)
    model = DETECTORS[detector](config_class(**{"backbone_config": backbone} | fields | overrides)).eval()
    perturb(model)
    return model


def layout_of(model: PreTrainedModel) -> Layout:
    """The authors' layout of a model."""
    kind = (model.config.model_type, model.config.backbone_config.model_type)
    return next(layout for layout in DETECTOR_LAYOUTS if (layout.detector, layout.model_type) == kind)


def own_pyramid(weights: StateDict) -> StateDict:
    """The authors' weights as MMDetection 3 would have saved them: written down anew, without the tables."""
    is_pvt = "backbone.pos_embed1" in weights
    renamed: StateDict = {}
    for key, weight in weights.items():
        if not key.startswith("backbone."):
            renamed[key] = weight
        elif "attn.kv" in key:
            query = weights[key.replace(".kv.", ".q.")]
            renamed[own_name(key, is_pvt)] = torch.cat((query, weight))
        elif ".attn.q." not in key:
            if re.search(r"fc\d\.weight", key):
                weight = weight[:, :, None, None]
            renamed[own_name(key, is_pvt)] = weight[:, 1:] if "pos_embed4" in key else weight
    return renamed


def own_name(key: str, is_pvt: bool) -> str:
    _, module, rest = key.split(".", 2) if "pos_embed" not in key else (*key.split("."), "")
    stage = int(module[-1]) - 1
    if module.startswith("patch_embed"):
        return f"backbone.layers.{stage}.0.{rest.replace('proj', 'projection')}"
    if module.startswith("pos_embed"):
        return f"backbone.layers.{stage}.1.0.pos_embed"
    if module.startswith("norm"):
        return f"backbone.layers.{stage}.2.{rest}"
    block, rest = rest.split(".", 1)
    names = {
        "attn.kv.weight": "attn.attn.in_proj_weight",
        "attn.kv.bias": "attn.attn.in_proj_bias",
        "mlp.dwconv.dwconv.": "ffn.layers.1.",
        "mlp.fc1.": "ffn.layers.0.",
        "mlp.fc2.": "ffn.layers.3." if is_pvt else "ffn.layers.4.",
        "attn.proj.": "attn.attn.out_proj.",
    }
    for ours, theirs in names.items():
        rest = rest.replace(ours, theirs)
    return f"backbone.layers.{stage}.1.{int(block) + is_pvt}.{rest}"
