"""The model to train: a variant with random weights, or what a checkpoint has, with the data's labels."""

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import AutoConfig, PreTrainedModel

from ..original.load_original import load_original
from ..published.labels import imagenet_1k_id2label
from ..published.variants import VARIANTS, variant_config
from .data.sampling import Purpose, derived_seed

logger = get_logger(__name__)

# The layer that knows the labels, and all that a classifier's checkpoint has not for a segmenter.
LABELLED = re.compile(r"(^|\.)classifier\.(weight|bias)$")
FRESH = re.compile(r"^(classifier|decode_head)\.")


def open_model(
    auto_class: Any,
    start: str | None,
    scratch: str | None,
    names: Sequence[str],
    seed: int,
    keep_classifier: bool = False,
    **fields: Any,
) -> PreTrainedModel:
    """A model of `auto_class` in float32, with `names` as labels.

    Args:
        start: a Hub id, a folder, or a published .pth or .safetensors. Weights that the model has not are dropped;
            its classifier is fresh where the labels are others, a segmenter's decoder where there is none.
        scratch: a variant's name, or a folder or file with a configuration.
        seed: all fresh weights follow from it.
        keep_classifier: the checkpoint's labels are these, under other names.
        fields: of the configuration, where they are not None.

    Raises:
        ValueError: both or none of `start` and `scratch`, or weights that are missing.
    """
    if (start is None) == (scratch is None):
        raise ValueError("say where to start: either --model_name_or_path or --from_scratch.")
    fields = {name: value for name, value in fields.items() if value is not None}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    if scratch is not None:
        known = scratch in VARIANTS or not Path(scratch).exists()
        make = variant_config if known else AutoConfig.from_pretrained
        return _fresh(auto_class, make(scratch, **fields, **labels), seed)
    check_path(str(start))
    if Path(str(start)).is_file():
        model = load_original(str(start), **fields)
    else:
        model = _pretrained(auto_class, str(start), seed, fields)
    if not isinstance(model, auto_class._model_mapping[type(model.config)]):
        return _with_labels(model, auto_class, labels, seed, str(start))
    have = list(model.config.id2label.values())
    if have == list(names):
        return model
    unnamed = have[0] == "LABEL_0" or have == list(imagenet_1k_id2label().values())  # known by their count
    if len(have) == len(names) and (keep_classifier or unnamed):
        model.config.id2label, model.config.label2id = labels["id2label"], labels["label2id"]
        return model
    if keep_classifier:
        raise ValueError(f"--keep_classifier: {start} has {len(have)} labels, the data {len(names)}.")
    return _with_labels(model, auto_class, labels, seed, str(start))


def check_path(start: str) -> None:
    """Raise FileNotFoundError for what is meant as a path, and not there: the Hub need not be asked for it."""
    path = Path(start)
    is_path = path.suffix in (".pth", ".pt", ".bin", ".safetensors") or path.is_absolute() or start.startswith(".")
    if not path.exists() and (is_path or (path.parent != Path() and path.parent.is_dir())):
        raise FileNotFoundError(f"there is no file or folder {start} to start from.")


def _fresh(auto_class: Any, config: Any, seed: int) -> PreTrainedModel:
    torch.manual_seed(derived_seed(seed, Purpose.MODEL))
    return auto_class.from_config(config, dtype=torch.float32)


def _pretrained(auto_class: Any, start: str, seed: int, fields: dict[str, Any]) -> PreTrainedModel:
    """A model of Transformers; a head that the checkpoint has not is drawn from `seed`.

    Raises:
        ValueError: other weights are missing, which Transformers would draw as well.
    """
    torch.manual_seed(derived_seed(seed, Purpose.MODEL))
    model, report = auto_class.from_pretrained(start, dtype=torch.float32, output_loading_info=True, **fields)
    _check_missing(report["missing_keys"], model, start)
    return model


def _check_missing(names: Iterable[str], model: PreTrainedModel, start: str) -> None:
    missing = sorted(name for name in names if not FRESH.search(name))
    if missing:
        raise ValueError(f"{start} cannot start a {type(model).__name__}: it has no {', '.join(missing[:4])}.")


def _with_labels(
    model: PreTrainedModel, auto_class: Any, labels: dict[str, Any], seed: int, start: str
) -> PreTrainedModel:
    """A new model of `auto_class` with the weights of `model`, but those that know the labels."""
    config = copy.deepcopy(model.config)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    fresh = _fresh(auto_class, config, seed)
    # Of a bare model the names have no prefix.
    prefix = "" if model.base_model is not model else f"{model.base_model_prefix}."
    theirs = {f"{prefix}{name}": weight for name, weight in model.state_dict().items() if not LABELLED.search(name)}
    ours = fresh.state_dict()
    _check_missing(ours.keys() - theirs.keys(), fresh, start)
    fresh.load_state_dict({name: theirs.get(name, weight) for name, weight in ours.items()})
    logger.info(
        f"the classifier is new, for {len(labels['id2label'])} labels; all other weights that fit are {start}'s"
    )
    return fresh
