"""Transformers' own detectors on a pyramid: DETR (arXiv 2005.12872) and its successors, which ask for objects by query.

They bring their own losses and image processors. None of them is published on these pyramids but PVT + DETR, which
learns as it was published: with the losses of every decoder layer, which change nothing in the network.
"""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from ..detection.modeling_detr import PUBLISHED_SETTINGS, DetrForObjectDetection

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
    if architecture == "detr":
        detr: Any = AutoConfig.for_model(architecture, backbone_config=config, **PUBLISHED_SETTINGS, **labels)
        model = DetrForObjectDetection(detr)
    else:
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


def opener(config: PreTrainedConfig) -> Any:
    """The class whose `from_pretrained` opens a saved detector to train on.

    A DETR that Transformers has trained with its `auxiliary_loss` is another network, and stays Transformers' own.
    """
    if config.model_type == "detr" and not config.auxiliary_loss:
        return DetrForObjectDetection
    return AutoModelForObjectDetection


def query_processor(config: PreTrainedConfig, **settings: Any) -> BaseImageProcessor:
    """The image processor that belongs to the model."""
    backends: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
    return backends["torchvision"](**settings)
