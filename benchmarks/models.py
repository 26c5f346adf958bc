"""The models that are timed, and at which sizes."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

import hf_pvt

SEMANTIC_FPN = "pvt-v2-b2 Semantic FPN"
MODELS = ("pvt-v2-b0", "pvt-v2-b2", "pvt-v2-b2-li", "pvt-small", "p2t-small", SEMANTIC_FPN)
CASES = ((224, 1), (224, 8), (512, 1), (1024, 1), (2048, 1))  # size, batch


def ours(model: str, **fields: object) -> nn.Module:
    """A model of this package with random weights, in evaluation mode: 1,000 classes, or 150 labels of a map."""
    variant = model.split()[0]
    if model == SEMANTIC_FPN:
        return AutoModelForSemanticSegmentation.from_config(
            hf_pvt.variant_config(variant, num_labels=150, **fields)
        ).eval()
    return AutoModelForImageClassification.from_config(hf_pvt.variant_config(variant, num_labels=1000, **fields)).eval()


def gmacs(model: str, size: int) -> float:
    """Multiply-accumulates of one image's products, in billions, counted on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ours(model, attn_implementation="eager")(torch.empty(1, 3, size, size))
    return round(counter.get_total_flops() / 2e9, 3)
