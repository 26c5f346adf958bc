"""Runs of the commands of conversion/ in this process, and tiny models to convert."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import convert
import pytest
import torch
from checkpoints import FIELDS
from families import Family, perturb
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_pvt.original.load_original import LAYOUTS
from hf_pvt.original.pyramid_layouts import Layout, to_original

SCRIPTS = Path(convert.__file__).parent


def tiny(family: Family, kind: str = "classifier", **overrides: Any) -> PreTrainedModel:
    """A tiny model with weights that are nowhere zero or one."""
    torch.manual_seed(0)
    model = getattr(family, kind)(family.tiny_config(**(FIELDS | overrides))).eval()
    perturb(model)
    return model


def layout_of(model: PreTrainedModel) -> Layout:
    """The authors' layout of a model."""
    return next(
        layout
        for layout in LAYOUTS
        if layout.model_type == model.config.model_type and layout.is_segmentation == hasattr(model, "decode_head")
    )


def checkpoint(model: PreTrainedModel, path: Path, meta: dict[str, Any] | None = None) -> Path:
    """A file as the authors, or MMSegmentation, would have written it."""
    weights = to_original(model, layout_of(model))
    torch.save({"meta": meta or {}, "state_dict": weights} if hasattr(model, "decode_head") else weights, path)
    return path


def run(*arguments: object) -> None:
    """The command, in this process: seconds are saved, all else is the same."""
    command(convert.main, *arguments)


def command(main: Callable[[], None], *arguments: object) -> None:
    """Run a script's main; it quietens Transformers for its own process, which here is the tests'."""
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()


def failure(*arguments: object) -> str:
    """The one sentence with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    message = str(ended.value.code)
    assert message.startswith("error: ") and message.endswith(".") and "\n" not in message
    return message
