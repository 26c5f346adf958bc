"""Tiny checkpoints in the authors' and MMSegmentation's layouts, and what `load_original` says of those it refuses."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Family, perturb
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_pvt import load_original
from hf_pvt.original.load_original import LAYOUTS

StateDict = dict[str, Tensor]

PUBLISHED = {layout.model_type: layout for layout in LAYOUTS if layout.source.startswith("published")}

# Heads cannot be read off a checkpoint: these widths divide by the published 1, 2, 5 and 8.
FIELDS: dict[str, Any] = {"hidden_sizes": (8, 16, 20, 16), "num_attention_heads": (1, 2, 5, 8)}


def published(model: PreTrainedModel) -> StateDict:
    """The weights as the authors would have saved them: keys above values, P2T's feed-forward as 1x1 convolutions."""
    layout = PUBLISHED[model.config.model_type]
    weights: StateDict = {}
    for name, weight in model.state_dict().items():
        ours = name.removeprefix(f"{model.base_model_prefix}.")
        theirs = layout.name(ours)
        if layout.model_type == "p2t" and re.search(r"\.mlp\.dense\d\.weight", ours):
            weight = weight[:, :, None, None]
        weights[theirs] = torch.cat((weights[theirs], weight)) if ".attention.value." in ours else weight.clone()
    return weights


def saved(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_same_weights(loaded: PreTrainedModel, expected: PreTrainedModel) -> None:
    assert type(loaded) is type(expected)
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=0)


def message_of(path: Path, **overrides: Any) -> str:
    """What `load_original` says of a file that it cannot take: one sentence, which names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.load's own remarks on odd files
        try:
            load_original(path, **overrides)
        except ValueError as error:
            assert type(error) is ValueError
            message = str(error)
        else:
            pytest.fail(f"{path.name} is read")
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message, message
    return message.removeprefix(str(path))


def segmenter(family: Family, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {**FIELDS, "fpn_hidden_size": 24, "decoder_hidden_size": 12} | overrides
    model = family.segmenter(family.tiny_config(**fields)).eval()
    perturb(model)
    return model


def mmsegmentation(model: PreTrainedModel) -> StateDict:
    """The weights as MMSegmentation would have saved them."""
    pyramid = {name: weight for name, weight in published(model).items() if not name.startswith("decode_head.")}
    weights = {f"backbone.{name}": weight for name, weight in pyramid.items()}
    for name, weight in model.state_dict().items():
        if name.startswith("decode_head."):
            name = re.sub(r"^decode_head\.(lateral_convs|fpn_convs)\.(\d)", r"neck.\1.\2.conv", name)
            name = name.replace("decode_head.classifier.", "decode_head.conv_seg.").replace(".batch_norm.", ".bn.")
            weights[name] = weight.clone()
    return weights
