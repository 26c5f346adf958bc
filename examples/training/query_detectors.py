"""Transformers' own detectors on a pyramid: DETR (arXiv 2005.12872) and its successors, which ask for objects by query.

They bring their own losses and image processors. None of them is published on these pyramids but PVT + DETR.
"""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

# The maps that each one reads.
STAGES = {
    "detr": ["stage4"],
    "conditional_detr": ["stage4"],
    "deformable_detr": ["stage2", "stage3", "stage4"],
}


def query_detector(
    architecture: str, pyramid: PreTrainedConfig, weights: str | None, labels: dict[str, Any]
) -> PreTrainedModel:
    """One of `STAGES`, fresh but for the weights of the pyramid.

    Args:
        weights: a folder or an id of the Hub that has them; None: from scratch.

    Raises:
        ValueError: other than three channels, which these models do not take, or weights that are missing.
    """
    if pyramid.num_channels != 3:
        raise ValueError(f"{architecture} takes images of 3 channels, the backbone {pyramid.num_channels}.")
    config: Any = copy.deepcopy(pyramid)
    config.set_output_features_output_indices(out_features=STAGES[architecture], out_indices=None)
    chosen = AutoConfig.for_model(architecture, backbone_config=config, **labels)
    model = AutoModelForObjectDetection.from_config(chosen, dtype=torch.float32)
    if weights is not None:
        backbone = model.model.backbone.model
        trained, report = type(backbone).from_pretrained(weights, config=config, output_loading_info=True)
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:4])
            raise ValueError(f"{weights} cannot start a {type(model).__name__}: it has no {missing}.")
        backbone.load_state_dict(trained.state_dict())
    return model


def query_processor(config: PreTrainedConfig, **settings: Any) -> BaseImageProcessor:
    """The image processor that belongs to the model."""
    return IMAGE_PROCESSOR_MAPPING[type(config)]["torchvision"](**settings)
