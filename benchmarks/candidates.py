"""Who computes a forward: this package, and its peers.

A builder gives a function of images (B, 3, H, W) in float32, for one model, size and batch; `missing` says why there is
none. All have random weights, and the same number of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch._inductor.config
import transformers
from torch import Tensor, nn

import hf_pvt
from hf_pvt.cpu.packing import can_pack

from .models import SEMANTIC_FPN, ours
from .onnx_exports import LARGEST, session

Forward = Callable[[Tensor], Any]
Builder = Callable[[str, int, int], Forward]
BFLOAT16 = torch.bfloat16


def plain(model: str, size: int, batch: int, dtype: torch.dtype = torch.float32) -> Forward:
    return in_type(ours(model), dtype)


def packed(model: str, size: int, batch: int, dtype: torch.dtype = torch.float32) -> Forward:
    if not can_pack(dtype):  # it would stay as it is, and another candidate be timed in its name
        raise RuntimeError(f"this processor has no {dtype} for packed models; leave this candidate out of --only.")
    return hf_pvt.pack_for_cpu(ours(model), dtype)


def in_type(model: nn.Module, dtype: torch.dtype, memory_format: Any = torch.preserve_format) -> Forward:
    """A model that converts its weights once and its images in each call."""
    converted: Any = model.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    return lambda images: converted(images.to(dtype, memory_format=memory_format))


def timm_model(model: str) -> nn.Module:
    return timm.create_model(model.replace("pvt-v2", "pvt_v2").replace("-li", "_li").replace("-", "_")).eval()


def timm_channels_last(model: str, size: int, batch: int, dtype: torch.dtype = torch.float32) -> Forward:
    return in_type(timm_model(model), dtype, torch.channels_last)


def timm_compiled(model: str, size: int, batch: int) -> Forward:
    """Compiled for this size, with the weights frozen; compilation is over when this returns."""
    torch._inductor.config.freezing = True
    forward = torch.compile(in_type(timm_model(model), torch.float32, torch.channels_last))
    with torch.no_grad():
        forward(torch.randn(batch, 3, size, size))
    return forward


def stock_transformers(model: str) -> nn.Module:
    fields = ours_config(model)
    if model.startswith("pvt-v2"):
        return transformers.PvtV2ForImageClassification(transformers.PvtV2Config(**fields)).eval()
    return transformers.PvtForImageClassification(transformers.PvtConfig(**fields)).eval()


def ours_config(model: str) -> dict[str, Any]:
    """The fields in which a model differs from its family's default; Transformers has the same names."""
    return hf_pvt.VARIANTS[model].architecture | {"num_labels": 1000, "drop_path_rate": 0.0}


def onnx(model: str, size: int, batch: int, kind: str) -> Forward:
    run = session(model, size, batch, kind).run
    return lambda images: run(None, {"pixel_values": images.numpy()})


@dataclass(frozen=True)
class Candidate:
    """One column. `any_size`: built for a size, it takes others, too."""

    build: Builder
    dtype: str = "float32"
    largest: int = 2048
    any_size: bool = True


CANDIDATES: dict[str, Candidate] = {
    "packed": Candidate(packed),
    "not packed": Candidate(plain),
    "timm": Candidate(lambda model, size, batch: timm_model(model), largest=1024),
    "timm channels-last": Candidate(timm_channels_last),
    "timm compiled": Candidate(timm_compiled, largest=512, any_size=False),
    "transformers": Candidate(lambda model, size, batch: stock_transformers(model), largest=1024),
    "onnxruntime": Candidate(partial(onnx, kind="float32"), largest=LARGEST["float32"], any_size=False),
    "onnxruntime int8 dynamic": Candidate(
        partial(onnx, kind="int8 dynamic"), largest=LARGEST["int8 dynamic"], any_size=False
    ),
    "onnxruntime int8 static": Candidate(
        partial(onnx, kind="int8 static"), largest=LARGEST["int8 static"], any_size=False
    ),
    "packed bf16": Candidate(partial(packed, dtype=BFLOAT16), "bfloat16", largest=1024),
    "not packed bf16": Candidate(partial(plain, dtype=BFLOAT16), "bfloat16", largest=1024),
    "timm channels-last bf16": Candidate(partial(timm_channels_last, dtype=BFLOAT16), "bfloat16", largest=1024),
}
COMPILED_MODELS = ("pvt-v2-b2",)


def runs_here(candidate: str) -> bool:
    """Whether this processor has what a candidate needs."""
    return candidate != "packed bf16" or can_pack(BFLOAT16)


def lacking(candidate: str, model: str, size: int) -> str | None:
    """Why a peer has no such model, None where it has."""
    if candidate.startswith("timm") and (model == SEMANTIC_FPN or not model.startswith("pvt-v2")):
        return "timm has none of PVT, P2T and Semantic FPN"
    if candidate == "transformers" and (model == SEMANTIC_FPN or model.startswith("p2t")):
        return "Transformers has neither P2T nor a Semantic FPN"
    if candidate == "transformers" and model.startswith("pvt-small") and size != 224:
        return "Transformers' PVT fails at other sizes than the 224 pixels of its position embeddings"
    return None


def missing(candidate: str, model: str, size: int) -> str | None:
    """Why a candidate does not compute a model's forward at a size, None where it does."""
    if "int8" in candidate and model == SEMANTIC_FPN:
        return "only classifiers are quantised"
    if reason := lacking(candidate, model, size):
        return reason
    if candidate == "timm compiled" and model not in COMPILED_MODELS:
        return "not timed: each size of each model would compile for a minute"
    if size > CANDIDATES[candidate].largest:
        return "not timed: the slower candidates stop at a smaller size"
    return None
