"""The files of published checkpoints: out of the containers around the weights, and never running code."""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .pyramid_layouts import StateDict


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[StateDict, dict[str, Any]]:
    """The flat state dict of a file, out of the containers around it, and its `meta`. Never runs code."""
    path = checkpoint_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download the checkpoint again.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    for container in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__} without weights, expected a state dict.")
    strangers = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise ValueError(f"{path} is not a state dict: no named tensors under {listing(strangers)}.")
    for key, weight in content.items():
        check_weight(key, weight, path)
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): weight for key, weight in content.items()}
    return content, meta if isinstance(meta, dict) else {}


def check_weight(key: str, weight: Tensor, path: Path) -> None:
    """One sentence for a tensor that is no weight: not dense, no floats (a batch norm counts), or larger than its file.

    Raises:
        ValueError: it is one of these.
    """
    is_dense = weight.layout is torch.strided and not (weight.is_quantized or weight.is_meta)
    if not is_dense or not (weight.is_floating_point() or key.endswith("num_batches_tracked")):
        kind = "without values" if weight.is_meta else f"in the layout {weight.layout}"
        raise ValueError(
            f"{path} is refused: {key} is of the type {weight.dtype} {kind}, expected dense floating-point weights; "
            "convert them before saving."
        )
    if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        raise ValueError(
            f"{path} is refused: {key} declares the shape {tuple(weight.shape)}, which is more than the file holds."
        )


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the one in a folder as timm saves it: its config.json names no `model_type`."""
    path = Path(path)
    if not path.is_dir():
        return path
    config = path / "config.json"
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    if not files or not config.is_file() or "model_type" in json.loads(config.read_text(encoding="utf-8")):
        raise ValueError(f"{path} is a folder, expected a checkpoint file; open a saved model with `from_pretrained`.")
    return files[0]


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again.") from error


def _read_pickle(path: Path) -> Any:
    if zipfile.is_zipfile(path) and _unpacked_size(path) > path.stat().st_size:
        raise ValueError(f"{path} is refused: it unpacks to more than it holds, and PyTorch does not compress weights.")
    with path.open("rb") as file:
        try:
            # Training scripts put their argparse.Namespace beside the weights; it holds plain values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle raises whatever the unpickler stumbles over
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise ValueError(
                    f"{path} is refused: it is a pickle that would run code ({refused[1]}); only tensors and plain "
                    "values are read."
                ) from error
            raise ValueError(
                f"{path} is not a PyTorch checkpoint, or not a whole one; expected a .pth or .safetensors file."
            ) from error


def _unpacked_size(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # PyTorch says what is wrong


def listing(keys: Iterable[str], limit: int = 8) -> str:
    """The first keys, and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
