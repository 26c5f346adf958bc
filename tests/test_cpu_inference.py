"""The CPU's fast path: the ordinary path's numbers, in less memory, and only where nobody would notice."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt import cpu_inference, layers

FAMILY = {family.name: family for family in (*FAMILIES, PVT_V2_LINEAR)}
HUGE = 2**40


@cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A bare model of the family, never to be changed: copy it first."""
    torch.manual_seed(0)
    model = FAMILY[family].model(FAMILY[family].tiny_config()).eval()
    perturb(model)
    return model.to(dtype)


@cache
def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def outputs(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """The maps of all stages and what comes last, detached."""
    output = model(pixel_values, output_hidden_states=True)
    return [tensor.detach() for tensor in (*output.hidden_states, output.last_hidden_state)]


def plain(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """The ordinary path's outputs."""
    with torch.enable_grad():
        return outputs(model, pixel_values)


def fast(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return outputs(model, pixel_values)


@cache
def plain_of_tiny(family: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return plain(tiny(family, dtype), images(*shape, dtype=dtype))


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal to a share of each tensor's largest value."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * e.abs().max().item())


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the tokens of every feed-forward that goes through in bands; bands are small."""
    calls: list[tuple[int, ...]] = []
    banded = cpu_inference.in_row_bands

    def spy(*args: Any) -> Tensor:
        calls.append(tuple(args[2].shape))
        return banded(*args)

    monkeypatch.setattr(layers, "in_row_bands", spy)
    monkeypatch.setattr(cpu_inference, "BAND_BYTES", 2**12)
    return calls


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the map of every linear that goes through as a convolution, be it ever so small."""
    calls: list[tuple[int, ...]] = []
    convolution = torch.conv2d

    def spy(feature_map: Tensor, *args: Any) -> Tensor:
        calls.append(tuple(feature_map.shape))
        return convolution(feature_map, *args)

    monkeypatch.setattr(torch, "conv2d", spy)
    monkeypatch.setattr(cpu_inference, "MIN_ONEDNN_TOKENS", 1)
    return calls


@pytest.mark.parametrize("min_tokens", [1, HUGE], ids=["oneDNN", "BLAS"])
@pytest.mark.parametrize("band_bytes", [1, 2**13, HUGE], ids=["rows", "bands", "whole"])
@pytest.mark.parametrize(
    "shape", [(1, 3, 64, 64), (3, 3, 45, 70), (1, 3, 97, 33), (3, 3, 32, 32)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("family", FAMILY)
def test_same_numbers(
    family: str, shape: tuple[int, ...], band_bytes: int, min_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the bands lie: in float64 to the last digits, so nothing but rounding differs in float32."""
    monkeypatch.setattr(cpu_inference, "BAND_BYTES", band_bytes)
    monkeypatch.setattr(cpu_inference, "MIN_ONEDNN_TOKENS", min_tokens)
    monkeypatch.setattr(cpu_inference, "_keep_bands_on_the_heap", lambda: None)  # HUGE is more than there is
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        expected = plain_of_tiny(family, shape, dtype)
        assert_close(fast(tiny(family, dtype), images(*shape, dtype=dtype)), expected, tolerance)
