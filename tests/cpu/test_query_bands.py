"""Attention in bands of queries: PyTorch's own numbers, and only where nobody would notice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, PVT_V2_LINEAR, perturb
from torch import Tensor, nn
from torch.nn import functional as F

from hf_pvt import pack_for_cpu
from hf_pvt.cpu import query_bands, row_bands
from hf_pvt.pyramid import layers

FAMILY = {family.name: family for family in (*FAMILIES, PVT_V2_LINEAR)}


@pytest.fixture
def banded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the tokens of every attention that goes through in bands; the smallest do, in small bands.

    By oneDNN, whatever this processor is.
    """
    calls: list[tuple[int, ...]] = []

    def spy(*args: Any) -> Tensor:
        calls.append(tuple(args[0].shape))
        return query_bands.in_query_bands(*args)

    monkeypatch.setattr(layers, "in_query_bands", spy)
    monkeypatch.setattr(query_bands, "has_fast_blas", lambda: False)
    monkeypatch.setattr(query_bands, "MIN_SCORES", 1)
    monkeypatch.setattr(query_bands, "MIN_QUERY_BYTES", 1)
    for module in (query_bands, row_bands):
        monkeypatch.setattr(module, "BAND_BYTES", 2**12)
    return calls


def model_of(family: str, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILY[family].model(FAMILY[family].tiny_config(**fields)).eval()
    perturb(model)
    return model


def images(batch: int = 2, height: int = 96, width: int = 64) -> Tensor:
    return torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(0))


# Whether the model is packed, whether PyTorch multiplies, and bytes of a band.
PATHS = {
    "queries": (False, False, 1),
    "bands of a packed model": (True, False, 2**12),
    "bands by PyTorch": (False, True, 2**12),
    "whole, packed, by PyTorch": (True, True, 2**30),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILY)
def test_same_numbers(family: str, path: str, banded: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map equals that of eager attention, for images of a batch that differ."""
    pack, fast_blas, band_bytes = PATHS[path]
    monkeypatch.setattr(query_bands, "has_fast_blas", lambda: fast_blas)
    monkeypatch.setattr(query_bands, "BAND_BYTES", band_bytes)
    model = model_of(family)
    expected = model(images(), output_hidden_states=True, output_attentions=True).hidden_states
    assert not banded
    with torch.no_grad():
        actual = (pack_for_cpu(model) if pack else model)(images(), output_hidden_states=True).hidden_states
    assert len(banded) == sum(model.config.depths)
    for own, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, theirs.detach(), rtol=0, atol=2e-6 * theirs.abs().max().item())


@pytest.mark.parametrize("fast_blas", [False, True], ids=["onednn", "pytorch"])
@pytest.mark.parametrize(("heads", "queries", "keys"), [(1, 1000, 81), (5, 300, 300)])
def test_bfloat16_is_as_near_as_products_of_bfloat16(
    heads: int, queries: int, keys: int, fast_blas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what float64 gives: within a rounding or two of what the written-out attention in bfloat16 does.

    Where oneDNN has no bfloat16, and bands of it are not taken, they are those of PyTorch's products.
    """
    monkeypatch.setattr(query_bands, "has_fast_blas", lambda: fast_blas)
    if not query_bands.has_products(torch.bfloat16):
        monkeypatch.setattr(query_bands, "_product", lambda left, right: left @ right.T)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, queries, heads * 16, generator=draw).bfloat16()
    key, value = (torch.randn(2, heads, keys, 16, generator=draw).bfloat16() for _ in range(2))
    query = tokens.unflatten(2, (heads, 16)).transpose(1, 2)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    written_out = (query @ key.transpose(2, 3) * 0.25).softmax(dim=-1) @ value
    own = query_bands.in_query_bands(tokens, key, value, nn.Identity(), nn.Identity(), 0.25)
    own = own.unflatten(2, (heads, 16)).transpose(1, 2)
    assert (own - exact).norm() <= 1.2 * (written_out - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_types(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch, banded: list[tuple[int, ...]]) -> None:
    """Bands are of types that oneDNN has on this CPU; of none without oneDNN."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    taken = {torch.float32: True, torch.bfloat16: has_bfloat16, torch.float16: False, torch.float64: False}
    for dtype, expected in taken.items():
        tokens = torch.zeros(1, 4, 4, dtype=dtype)
        assert query_bands.pays_off(tokens, tokens) == expected, dtype
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not any(query_bands.has_products(dtype) for dtype in taken)


def test_small_ones_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch, banded: list[tuple[int, ...]]) -> None:
    """A stage of 24x16 tokens and 6 keys is banded from 2,304 scores on."""
    model = model_of("pvt_v2")
    monkeypatch.setattr(query_bands, "MIN_SCORES", 24 * 16 * 6)
    with torch.no_grad():
        model(images())
    assert {shape[1] for shape in banded} == {24 * 16}
    monkeypatch.setattr(query_bands, "MIN_SCORES", 24 * 16 * 6 + 1)
    banded.clear()
    with torch.no_grad():
        model(images())
    assert not banded


def test_on_fast_blas_large_ones_alone(monkeypatch: pytest.MonkeyPatch, banded: list[tuple[int, ...]]) -> None:
    """PyTorch's kernel takes bands of a batch from so many bytes of queries on."""
    monkeypatch.setattr(query_bands, "has_fast_blas", lambda: True)
    model = model_of("pvt_v2")
    largest = 4 * 2 * 24 * 16 * model.config.hidden_sizes[0]
    for least, shapes in ((largest, {24 * 16}), (largest + 1, set())):
        monkeypatch.setattr(query_bands, "MIN_QUERY_BYTES", least)
        banded.clear()
        with torch.no_grad():
            model(images())
        assert {shape[1] for shape in banded} == shapes


def with_hook(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, layers.ReducedAttention):
            part.query.register_forward_hook(lambda *_: None)


NOT_BANDED: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda model: model.set_attn_implementation("eager"),
    "training": lambda model: model.train(),
    "hook": with_hook,
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize(("family", "circumstance"), list(zip(FAMILY, NOT_BANDED, strict=True)))
def test_not_taken(family: str, circumstance: str, banded: list[tuple[int, ...]]) -> None:
    model = model_of(family)
    NOT_BANDED[circumstance](model)
    with torch.no_grad():
        model(images())
    assert not banded


@pytest.mark.parametrize(("family", "part"), list(zip(FAMILY, ["query", "key", "value", "proj"], strict=True)))
def test_whoever_watches_a_linear_sees_all_tokens(family: str, part: str, banded: list[tuple[int, ...]]) -> None:
    """And what else is watched, such as attention itself, stays banded."""
    model, seen, outputs = model_of(family), [], []
    attention = model.encoder.layers[0].blocks[0].attention
    getattr(attention, part).register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    last = model.encoder.layers[3].blocks[-1].attention
    last.register_forward_hook(lambda module, args, output: outputs.append((output[0], output[0].clone())))
    with torch.no_grad():
        model(images())
    assert len(seen) == 1 and (part in ("key", "value") or seen == [24 * 16])
    assert len(banded) == sum(model.config.depths) - (part in ("query", "proj"))
    for kept, then in outputs:  # nothing is added in place to what somebody keeps
        torch.testing.assert_close(kept, then, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["pvt", "pvt_v2"])
def test_without_a_norm_the_tokens_are_not_overwritten(family: str, banded: list[tuple[int, ...]]) -> None:
    """An identity hands the residual itself to the feed-forward, whose bands read rows of their neighbours."""
    model = model_of(family)
    for block in (block for stage in model.encoder.layers for block in stage.blocks):
        block.layer_norm_2 = nn.Identity()
    expected = model(images()).last_hidden_state.detach()
    with torch.no_grad():
        actual = model(images()).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("family", ["pvt", "pvt_v2"])
def test_a_block_leaves_its_tokens_alone(family: str, banded: list[tuple[int, ...]]) -> None:
    model, seen = model_of(family), []
    for stage in model.encoder.layers:
        stage.blocks[0].register_forward_pre_hook(lambda block, args: seen.append((args[0], args[0].clone())))
    with torch.no_grad():
        model(images())
    assert len(banded) == sum(model.config.depths) and len(seen) == 4
    for tokens, before in seen:
        torch.testing.assert_close(tokens, before, rtol=0, atol=0)
