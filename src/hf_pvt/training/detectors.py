"""The detector to train, on a pyramid: with fresh heads, or a checkpoint's where the data's labels are the same."""

import copy
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..detection.detector_classes import DETECTORS
from ..detection.modeling_detector import Detector
from ..detection.modeling_two_stage_detector import TwoStageDetector
from ..original.load_original import load_original
from ..published.detectors import detector_config
from ..published.variants import VARIANTS, variant_config, variant_of
from .data.sampling import Purpose, derived_seed
from .models import check_path
from .query_detectors import STAGES, opener, query_detector

logger = get_logger(__name__)

# The layers that know the labels.
LABELLED = re.compile(
    r"(^|\.)((retina|atss|gfl|fc)_cls|conv_logits|class_labels_classifier|class_embed(\.\d+)?)\.(weight|bias)$"
)
# The layers that do so where a box's deltas are of each label.
LABELLED_DELTAS = re.compile(r"(^|\.)fc_reg\.(weight|bias)$")


def open_detector(
    start: str | None, architecture: str | None, backbone: str | None, names: Sequence[str], seed: int, **fields: Any
) -> PreTrainedModel:
    """A detector in float32, with `names` as labels.

    Args:
        start: a detector: a Hub id, a folder, or a published .pth or .safetensors. Where its labels are others, the
            layers that know them are fresh.
        architecture: in place of `start`, with fresh heads: one of `DETECTORS`, such as "retinanet", or of `STAGES`,
        backbone: on these weights: a Hub id, a folder, a published file; or a variant's name, which is from scratch.
        seed: all fresh weights follow from it.
        fields: of the configuration, its own or its backbone's, where they are not None. The default of
            `drop_path_rate` is the published detector's on a new backbone.

    Raises:
        ValueError: both or none of `start` and `architecture`, no `backbone`, what is no detector, or no backbone, or a
            field that neither has.
        FileNotFoundError: a path that is not there.
    """
    if (start is None) == (architecture is None) or (architecture is None) != (backbone is None):
        given = {"--model_name_or_path": start, "--architecture": architecture, "--from_backbone": backbone}
        have = " and ".join(name for name, value in given.items() if value) or "neither"
        raise ValueError(
            f"say where to start: either --model_name_or_path, or --architecture with --from_backbone; got {have}."
        )
    fields = {name: value for name, value in fields.items() if value is not None}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    torch.manual_seed(derived_seed(seed, Purpose.MODEL))
    if start is not None:
        check_path(start)
        model = with_labels(_opened(start, fields), labels, start)
    elif architecture in STAGES:
        model = with_queries(str(architecture), str(backbone), labels, fields)
    elif backbone in VARIANTS:
        config = detector_config(str(architecture), str(backbone), **labels, **fields)
        model = DETECTORS[str(architecture)](config)
    else:
        model = on_backbone(str(architecture), str(backbone), labels, fields)
    for name in fields:
        parts_with(name, model.config)
    return model


def parts_with(name: str, config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Which of a detector's configuration and its backbone's have a field.

    Raises ValueError where none has: the flag would be without effect.
    """
    parts = (config, config.backbone_config)
    found = [part for part in parts if name in {field.name for field in dataclasses.fields(part)}]
    if not found:
        described = " on ".join(part.model_type for part in parts)
        raise ValueError(f"--{name} is nothing that a {described} has; leave it out.")
    return found


def _opened(start: str, fields: dict[str, Any]) -> PreTrainedModel:
    """A saved or published detector.

    Raises:
        ValueError: a model without a detector's heads, or weights that are missing, which would be drawn at random.
    """
    missing: set[str] = set()
    if Path(start).is_file():
        model = load_original(start, **fields)
    else:
        config = AutoConfig.from_pretrained(start)
        if config.model_type not in {*DETECTORS, *STAGES}:
            raise ValueError(no_detector(start))
        for name, value in fields.items():
            for part in parts_with(name, config):
                setattr(part, name, value)
        model, report = opener(config).from_pretrained(
            start, config=config, dtype=torch.float32, output_loading_info=True
        )
        missing = report["missing_keys"]
    if model.config.model_type not in {*DETECTORS, *STAGES}:
        raise ValueError(no_detector(start))
    if missing:
        raise ValueError(f"{start} cannot start a {type(model).__name__}: it has no {', '.join(sorted(missing)[:4])}.")
    return model


def no_detector(start: str) -> str:
    return f"{start} has no detector's heads; give it as --from_backbone, with --architecture."


def with_labels(model: PreTrainedModel, labels: dict[str, Any], start: str) -> PreTrainedModel:
    """The model, or where its labels are others a new one with its weights but those that know the labels."""
    known: Any = model.config.id2label
    have, names = list(known.values()), list(labels["id2label"].values())
    if have == names:
        return model
    config = copy.deepcopy(model.config)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    fresh = type(model)(config)
    patterns = (LABELLED, LABELLED_DELTAS) if isinstance(model, TwoStageDetector) else (LABELLED,)
    every = model.state_dict().items()
    theirs = {name: weight for name, weight in every if not any(pattern.search(name) for pattern in patterns)}
    fresh.load_state_dict(fresh.state_dict() | theirs)
    logger.info(f"the layers of the {len(names)} labels are new; all other weights are {start}'s")
    return fresh


def on_backbone(architecture: str, start: str, labels: dict[str, Any], fields: dict[str, Any]) -> Detector:
    """A published detector with fresh heads on the weights of a pyramid.

    Raises ValueError where the checkpoint lacks some.
    """
    num_channels = fields.pop("num_channels", None)
    with as_folder(start) as path:
        config = AutoConfig.from_pretrained(path)
        variant = variant_of(config.model_type, config.to_dict())
        if variant is not None:
            published: Any = detector_config(architecture, variant).backbone_config
            fields = {"drop_path_rate": published.drop_path_rate} | fields
        model = DETECTORS[architecture].from_backbone(path, **labels, **fields)
    if num_channels is not None:
        model.backbone.set_num_channels(num_channels)  # the detector has the configuration in common
    logger.info(f"neck and heads are new; the backbone's weights are {start}'s")
    return model


def with_queries(architecture: str, start: str, labels: dict[str, Any], fields: dict[str, Any]) -> PreTrainedModel:
    """One of Transformers' detectors on a pyramid, from scratch or on a checkpoint's weights."""
    if fields.pop("with_masks", False):
        raise ValueError(f"{architecture} has no masks; leave --with_masks out, or take --architecture mask_rcnn.")
    if start in VARIANTS:
        return query_detector(architecture, variant_config(start, **fields), None, labels)
    with as_folder(start) as path:
        return query_detector(architecture, AutoConfig.from_pretrained(path, **fields), path, labels)


@contextmanager
def as_folder(start: str) -> Iterator[str]:
    """A Hub id or a folder as it is; of a published file a folder with the pyramid, while the context lasts."""
    check_path(start)
    variant = start.lower().replace("_", "-")
    if variant in VARIANTS and not Path(start).exists():
        raise FileNotFoundError(f"there is no file or folder {start}; did you mean {variant}, which is from scratch?")
    if not Path(start).is_file():
        yield start
        return
    with tempfile.TemporaryDirectory() as folder:
        original = load_original(start)
        getattr(original, "backbone", original).save_pretrained(folder)
        yield folder
