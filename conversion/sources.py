"""What a conversion reads: a checkpoint in any layout, or a folder of Transformers."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hub_errors import one_sentence
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_pvt.detection.detector_classes import DETECTORS
from hf_pvt.detection.modeling_detr import DetrForObjectDetection
from hf_pvt.original.checkpoint_files import checkpoint_file, read_checkpoint
from hf_pvt.original.load_original import build_model, recognise_layout
from hf_pvt.original.pyramid_layouts import StateDict
from hf_pvt.pyramid.configuration_classes import CONFIG_CLASSES
from hf_pvt.pyramid.model_classes import AUTO_CLASSES

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Source:
    """A model in evaluation mode and float32, and where it comes from.

    Args:
        layout: the name of the recognised layout.
        sha256: of the file with the weights; of several files, of their digests in order.
        unused: weights of the source that the model has no use for, by the source's names.
        processor: the image processor that came with the weights, if any.
    """

    path: Path
    layout: str
    sha256: str
    model: PreTrainedModel
    unused: StateDict = field(default_factory=dict)
    processor: BaseImageProcessor | None = None


def fetched(source: str | os.PathLike[str]) -> Path:
    """The path itself, or the folder that the Hub's repository of that name is downloaded to."""
    path = Path(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or path.suffix in SUFFIXES:
        return path
    with one_sentence(str(source)):
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "pytorch_model*.bin"]))


def read_source(path: Path, **config_overrides: Any) -> Source:
    """Read a checkpoint file, timm's folder, or a folder of Transformers, whichever `path` is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a checkpoint, keys are missing or unknown, or weights are NaN or infinite.
    """
    source = _read_folder(path) if _is_saved_model(path) else _read_checkpoint(path, config_overrides)
    check_finite(source.model, path)
    in_fresh_memory(source.model)
    return source


def pyramid_of(config: Any) -> Any:
    """The configuration of the pyramid: of a detector's backbone, or of the model itself."""
    return getattr(config, "backbone_config", config)


def in_fresh_memory(model: PreTrainedModel) -> None:
    """Copy the weights out of the mapped file.

    There they lie at other alignments, for which BLAS adds in another order: 1e-6 of the logits. From fresh memory the
    same weights give the same logits, to the bit.
    """
    model.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()}, assign=True)


def check_finite(model: PreTrainedModel, path: Path) -> None:
    """Refuse weights that no training left usable."""
    broken = [
        name
        for name, weight in model.state_dict().items()
        if weight.is_floating_point() and not torch.isfinite(weight).all()
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(
            f"{path} is refused: it holds NaN or infinite values in {', '.join(broken[:3])}{more}; use another one."
        )


def _is_saved_model(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and '"model_type"' in config.read_text(encoding="utf-8")


def _read_checkpoint(path: Path, config_overrides: dict[str, Any]) -> Source:
    weights, meta = read_checkpoint(path)
    layout = recognise_layout(weights, path)
    model = build_model(weights, layout, meta, config_overrides, path)
    unused = {key: weight for key, weight in weights.items() if re.search(layout.ignored, key)}
    return Source(path, layout.source, sha256_of(checkpoint_file(path)), model, unused)


def _read_folder(path: Path) -> Source:
    """A model that Transformers or this package has saved."""
    content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    architecture = (content.get("architectures") or ["none"])[0]
    classes: dict[str, Any] = {
        model.__name__: model
        for model in (
            *(model for family in AUTO_CLASSES.values() for model in family.values()),
            *DETECTORS.values(),
            DetrForObjectDetection,
        )
    }
    if architecture not in classes:
        raise ValueError(
            f"{path} holds a model of class {architecture}, expected one of: {', '.join(sorted(classes))}."
        )
    backbone = content.get("backbone_config", content).get("model_type")
    if backbone not in CONFIG_CLASSES:
        raise ValueError(
            f"{path} holds a detector on a backbone of the type {backbone!r}, expected one of: "
            f"{', '.join(CONFIG_CLASSES)}."
        )
    try:
        model, problems = classes[architecture].from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"{path}: a safetensors file is damaged ({error}); download it again.") from error
    except StrictDataclassError as error:
        raise ValueError(f"{path} has no valid configuration: {error.__cause__}") from error
    report = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, keys))[:8])}" for kind, keys in problems.items() if keys
    ]
    if report:
        raise ValueError(f"{path} does not fit {architecture}: {'; '.join(report)}.")
    has_processor = (path / "preprocessor_config.json").is_file()
    processor = AutoImageProcessor.from_pretrained(path) if has_processor else None
    return Source(path, "Transformers folder", _sha256_of_folder(path), model.eval(), processor=processor)


def _sha256_of_folder(path: Path) -> str:
    files = sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")])
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
