"""Published checkpoints as Transformers models.

The architecture is read off the shapes, and every error speaks in the source's names.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel

from ..published.variants import VARIANTS, variant_of
from ..pyramid.configuration_classes import CONFIG_CLASSES, VariantConfig
from ..pyramid.model_classes import AUTO_CLASSES
from .checkpoint_files import listing, read_checkpoint
from .detector_layouts import DETECTOR_LAYOUTS, DetectorLayout, OwnPyramidLayout, empty_detector
from .detr_layout import DETR_LAYOUTS, DetrLayout, empty_detr
from .labels_of import label_fields
from .pyramid_layouts import PYRAMID_LAYOUTS, Layout, StateDict
from .shapes import pyramid_fields, shape_of, valid_config

LAYOUTS: tuple[Layout, ...] = (*PYRAMID_LAYOUTS, *DETECTOR_LAYOUTS, *DETR_LAYOUTS)

CLASSIFICATION_HEAD = "classifier.weight"
SEGMENTATION_HEAD = "decode_head.classifier.weight"
LATERAL = "decode_head.lateral_convs.0.weight"


def load_original(
    path: str | os.PathLike[str], num_channels: int | None = None, **config_overrides: Any
) -> PreTrainedModel:
    """The model of a published checkpoint, in evaluation mode and float32, with family and variant recognised.

    Args:
        path: a .pth or .safetensors file: the published PVT, PVTv2 or P2T classification checkpoint (bare, or under
            `model` or `state_dict`, with or without `module.` before every key), a timm PVTv2 state dict (or timm's
            folder with it, or that of its `features_only` model), MMSegmentation's Semantic FPN, or MMDetection's
            RetinaNet, ATSS, GFL, Faster, Mask, Cascade or Sparse R-CNN (2.x, and 3.x with its own PVT and PVTv2) or
            DETR (2.x), whose `meta` names the labels; optimizer state and auxiliary heads are left.
        num_channels: of the images, where they are others than the checkpoint's: see `for_channels`.
        config_overrides: configuration fields to set, such as `id2label`, or `image_size=(height, width)` for a PVT
            whose position embeddings belong to images that are not square; those that a detector lacks are its
            backbone's.

    Returns:
        The detector, segmenter or image classifier where the checkpoint has such a head, the base model where it has
        none. Where nothing names them, 1,000 classes are ImageNet's, the 150 labels of a segmenter ADE20K's and the 80
        of a detector COCO's. The palette of a segmenter's labels, where there is one, is `config.palette`. DETR is
        Transformers' own model, with the published losses: `hf_pvt.DetrForObjectDetection`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a checkpoint, holds code, or its keys and shapes do not fit; the message names
            them.
    """
    weights, meta = read_checkpoint(path)
    model: Any = build_model(weights, recognise_layout(weights, path), meta, config_overrides, path)
    if num_channels is not None:
        getattr(model, "backbone", model).set_num_channels(num_channels)  # a detector has the configuration in common
    return model


def build_model(
    weights: StateDict, layout: Layout, meta: dict[str, Any], overrides: dict[str, Any], path: str | os.PathLike[str]
) -> PreTrainedModel:
    """The model of a recognised checkpoint; `path` is for messages."""
    with torch.device("meta"):
        model = EMPTY_MODELS[type(layout)](layout, weights, meta, overrides, path)
    model.load_state_dict(convert(weights, layout, model, path), strict=True, assign=True)
    return model.eval()


def empty_pyramid(
    layout: Layout, weights: StateDict, meta: dict[str, Any], overrides: dict[str, Any], path: str | os.PathLike[str]
) -> PreTrainedModel:
    """The base model, classifier or segmenter of a layout, without values."""
    auto_class: Any = AutoModel
    if layout.is_segmentation:
        auto_class = AutoModelForSemanticSegmentation
    elif layout.name(CLASSIFICATION_HEAD) in weights:
        auto_class = AutoModelForImageClassification
    head = weights.get(layout.name(SEGMENTATION_HEAD if layout.is_segmentation else CLASSIFICATION_HEAD))
    count = head.shape[0] if head is not None and head.dim() else 0
    task = "segmentation" if layout.is_segmentation else "classification"
    config = read_config(weights, layout, label_fields(meta, overrides, count, task) | overrides, path)
    model: PreTrainedModel = AUTO_CLASSES[type(config)][auto_class](config)
    return model


EMPTY_MODELS: dict[type[Layout], Callable[..., PreTrainedModel]] = {
    Layout: empty_pyramid,
    DetectorLayout: empty_detector,
    OwnPyramidLayout: empty_detector,
    DetrLayout: empty_detr,
}


def recognise_layout(weights: StateDict, path: str | os.PathLike[str]) -> Layout:
    """The layout whose marker is among the keys."""
    for layout in LAYOUTS:
        if layout.is_of(weights):
            return layout
    raise ValueError(
        f"{path} is none of: {', '.join(layout.source for layout in LAYOUTS)}; its keys are {listing(weights)}."
    )


def read_config(
    weights: StateDict, layout: Layout, overrides: dict[str, Any], path: str | os.PathLike[str]
) -> VariantConfig:
    """The configuration that the shapes tell. Heads cannot be told: all published models have 1, 2, 5 and 8."""
    heads = (LATERAL, SEGMENTATION_HEAD) if layout.is_segmentation else ()
    fields = pyramid_fields(weights, layout, overrides, heads, path)
    segmentation_head = shape_of(weights, layout, SEGMENTATION_HEAD)
    if segmentation_head:
        fields["fpn_hidden_size"] = shape_of(weights, layout, LATERAL)[0]
        fields["decoder_hidden_size"] = segmentation_head[1]
    head = segmentation_head or shape_of(weights, layout, CLASSIFICATION_HEAD)
    if head and "id2label" not in overrides:
        fields["num_labels"] = head[0]
    variant = variant_of(layout.model_type, fields)
    if variant:
        fields["drop_path_rate"] = VARIANTS[variant].drop_path_rate
    config: VariantConfig = valid_config(CONFIG_CLASSES[layout.model_type], fields | overrides, layout, path)
    return config


def convert(weights: StateDict, layout: Layout, model: PreTrainedModel, path: str | os.PathLike[str]) -> StateDict:
    """Our state dict of `model` from a source's weights; every key of both sides has to be used, in its shape."""
    converted: StateDict = {}
    missing: list[str] = []
    misshapen: list[str] = []
    unknown = {key for key in weights if not re.search(layout.ignored, key)}
    for ours, parameter in model.state_dict().items():
        theirs = layout.name(ours.removeprefix(f"{model.base_model_prefix}."))
        unknown.discard(theirs)
        if theirs not in weights:
            missing.append(theirs)
            continue
        expected = layout.shape(ours, tuple(parameter.shape))
        if weights[theirs].shape != expected:
            misshapen.append(f"{theirs} {tuple(weights[theirs].shape)} instead of {expected}")
            continue
        weight = layout.part(weights[theirs], ours)
        converted[ours] = weight.to(torch.float32 if parameter.is_floating_point() else parameter.dtype, copy=True)
    problems = {"unknown": unknown, "missing": dict.fromkeys(missing), "misshapen": dict.fromkeys(misshapen)}
    report = [f"{kind} keys: {listing(sorted(keys))}" for kind, keys in problems.items() if keys]
    if report:
        raise ValueError(f"{path}, recognised as {layout.source}, does not fit: {'; '.join(report)}.")
    return converted
