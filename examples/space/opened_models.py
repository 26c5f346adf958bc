"""Models of folders or of the Hub, opened without running code of theirs."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

import hf_pvt  # noqa: F401  registers its models

# The end of the class's name, as config.json has it.
AUTO_CLASSES: dict[str, Any] = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
    "ForObjectDetection": AutoModelForObjectDetection,
    "MaskRcnnForInstanceSegmentation": AutoModelForInstanceSegmentation,
}
DETECTORS = ("ForObjectDetection", "MaskRcnnForInstanceSegmentation")


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode, and its image processor."""

    name: str
    kind: str  # a key of AUTO_CLASSES
    model: PreTrainedModel
    processor: Any
    names: dict[int, str]  # of the labels, no two alike

    @property
    def detects(self) -> bool:
        return self.kind in DETECTORS


@lru_cache(maxsize=2)
def open_model(name: str) -> OpenedModel:
    """A classifier, segmenter or detector of a folder or a Hub id: safetensors only, no code beside them is run.

    Raises:
        ValueError: it cannot be opened, is another kind of model, takes other images than RGB, or lacks weights; the
            message is for whoever asked for it.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1  # Hub ids are NAME or ORGANISATION/NAME
    if is_path and not Path(name).is_dir():
        raise ValueError(f"There is no folder {name}.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind = kind_of(config.architectures)
        model, found = AUTO_CLASSES[kind].from_pretrained(
            name, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever Transformers, the Hub and safetensors raise
        raise ValueError(f"{name} cannot be opened: {first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} of its weights, such as {missing[0]}; its answers would be random."
        )
    channels = getattr(processor, "image_mean", None)
    if isinstance(channels, list | tuple) and len(channels) != 3:
        raise ValueError(f"{name} takes images of {len(channels)} channels; this page shows photographs of 3.")
    return OpenedModel(name, kind, model.eval(), processor, unlike(config.id2label))


def kind_of(architectures: list[str] | None) -> str:
    (name,) = architectures or ["model without a name"]
    for kind in AUTO_CLASSES:
        if name.endswith(kind):
            return kind
    raise ValueError(f"it is a {name}; this page shows classifiers, semantic segmenters and detectors.")


def unlike(id2label: dict[int, str]) -> dict[int, str]:
    """The names; those that several labels share (ImageNet has two cranes) with the label's number."""
    names = list(id2label.values())
    return {label: name if names.count(name) == 1 else f"{name} ({label})" for label, name in id2label.items()}


def first_line(error: Exception, most: int = 300) -> str:
    text = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
