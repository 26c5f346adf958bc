"""The fast path of training on a CPU: the same gradients, of less memory, and only where nobody would notice."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES, PVT_V2_LINEAR, perturb
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

import hf_pvt
from benchmarks.training_memory import saved_storages
from hf_pvt.cpu import banded_feed_forward, onednn_linear, plain_calls, query_bands
from hf_pvt.pyramid import feed_forward, layers
from hf_pvt.pyramid.feed_forward import ConvFeedForward

FAMILY = {family.name: family for family in (*FAMILIES, PVT_V2_LINEAR)}
BATCH, CHANNELS, EXPANDED, GRID = 3, 8, 24, (5, 7)
NAMES = ("dense1.weight", "dwconv.dwconv.weight", "dense2.weight")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the tokens of each fast feed-forward; it goes by single rows, and linears of any size are fast."""
    calls: list[tuple[int, ...]] = []
    function = feed_forward.feed_forward

    def spy(*args: Any) -> Tensor:
        calls.append(tuple(args[1].shape))
        return function(*args)

    monkeypatch.setattr(feed_forward, "feed_forward", spy)
    monkeypatch.setattr(banded_feed_forward, "BAND_BYTES", 1)
    monkeypatch.setattr(banded_feed_forward, "KEPT_BYTES", 1)
    monkeypatch.setattr(onednn_linear, "MIN_ONEDNN_TOKENS", 1)
    monkeypatch.setattr(onednn_linear, "has_fast_blas", lambda: False)  # whatever this processor is
    return calls


def tiny(family: str, **fields: Any) -> PreTrainedModel:
    """In evaluation mode, where drop path draws nothing."""
    torch.manual_seed(0)
    model = FAMILY[family].model(FAMILY[family].tiny_config(**fields)).eval()
    perturb(model)
    return model


def watched(model: nn.Module) -> nn.Module:
    """A copy that takes the ordinary path everywhere: each part has a hook."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: None)
    return model


def gradients(model: nn.Module, pixel_values: Tensor, **context: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with context.get("inside", nullcontext()):
        output = model(pixel_values.to(next(model.parameters()).dtype)).last_hidden_state
    output.float().square().mean().backward() if output.dtype != torch.float64 else output.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def largest_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all tensors, as a share of the norm; one that has to be zero, of all their norms."""
    assert actual.keys() == expected.keys()
    scale = max(tensor.double().norm() for tensor in expected.values())
    return max(
        float((actual[name].double() - tensor.double()).norm() / max(tensor.double().norm(), 1e-3 * scale))
        for name, tensor in expected.items()
    )


@pytest.mark.parametrize(("kept_bytes", "size"), [(1, (45, 70)), (2**30, (64, 64))], ids=["rows", "images"])
@pytest.mark.parametrize("family", FAMILY)
def test_gradients(
    family: str,
    kept_bytes: int,
    size: tuple[int, int],
    taken: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In float64 the ordinary path's to the last digits, in float32 to 1e-5 of them; so is a batch of one image."""
    monkeypatch.setattr(banded_feed_forward, "KEPT_BYTES", kept_bytes)
    model, images = tiny(family), torch.randn(BATCH, 3, *size)
    double = copy.deepcopy(model).double()
    for batch in (images, images[:1]):
        expected = gradients(watched(double), batch)
        assert not taken
        assert largest_error(gradients(double, batch), expected) < 1e-12
        assert largest_error(gradients(model, batch), expected) < 1e-5
        assert taken
        taken.clear()


@pytest.mark.parametrize("family", ["pvt", "p2t"])
def test_bfloat16(family: str, taken: list[tuple[int, ...]]) -> None:
    """Under autocast the gradients are float32's, as near to float64's as the ordinary path's."""
    model, images = tiny(family), torch.randn(BATCH, 3, 64, 64)
    expected = gradients(watched(model).double(), images)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    ordinary = largest_error(gradients(watched(model), images, inside=autocast()), expected)
    actual = gradients(model, images, inside=autocast())
    assert {gradient.dtype for gradient in actual.values()} == {torch.float32}
    assert largest_error(actual, expected) < max(1.5 * ordinary, 0.02)
    assert taken


def small_feed_forward(dtype: torch.dtype = torch.float64) -> tuple[ConvFeedForward, Tensor]:
    torch.manual_seed(0)
    module = ConvFeedForward(CHANNELS, EXPANDED, nn.Hardswish(), nn.GELU(), dropout=0.0).to(dtype)
    return module, torch.randn(BATCH, GRID[0] * GRID[1], CHANNELS, dtype=dtype, requires_grad=True)


def test_first_and_second_derivative(taken: list[tuple[int, ...]]) -> None:
    """Of tokens and parameters, against differences."""
    module, tokens = small_feed_forward()
    inputs = (tokens, *module.parameters())

    def output(tokens: Tensor, *_: Tensor) -> Tensor:
        return module(tokens, GRID)

    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(output, inputs, fast_mode=True)
    assert taken


def test_second_derivative_under_autocast(taken: list[tuple[int, ...]]) -> None:
    """Through the casts, in the types of the tensors, and as near to float64's as the ordinary path's."""
    double, of_double = small_feed_forward()
    tokens = of_double.detach().float().requires_grad_()
    module = copy.deepcopy(double).float()

    def penalty(module: nn.Module, tokens: Tensor, **autocast: bool) -> dict[str, Tensor]:
        """The gradients of the squared gradient of the tokens."""
        with torch.autocast("cpu", torch.bfloat16, **autocast):
            output = module(tokens, GRID)
        (first,) = torch.autograd.grad(output.square().sum(), [tokens], create_graph=True)
        return {"tokens": torch.autograd.grad(first.square().sum(), tokens, retain_graph=True)[0]} | dict(
            zip(NAMES, torch.autograd.grad(first.square().sum(), [module.get_parameter(n) for n in NAMES]), strict=True)
        )

    expected = penalty(watched(double), of_double, enabled=False)
    ordinary = largest_error(penalty(watched(module), tokens), expected)
    assert not taken
    actual = penalty(module, tokens)
    assert {gradient.dtype for gradient in actual.values()} == {torch.float32}
    assert largest_error(actual, expected) < max(1.5 * ordinary, 0.02)
    assert taken


@pytest.mark.parametrize("kept_bytes", [1, 4 * GRID[0] * GRID[1] * EXPANDED], ids=["rows", "images"])
def test_what_is_kept(kept_bytes: int, taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens, and of small images one expanded activation; the ordinary path keeps four of any."""
    monkeypatch.setattr(banded_feed_forward, "KEPT_BYTES", kept_bytes)
    module, tokens = small_feed_forward(torch.float32)
    narrow, wide = (4 * BATCH * GRID[0] * GRID[1] * dim for dim in (CHANNELS, EXPANDED))
    with saved_storages(module) as kept:
        output = module(tokens, GRID)
    assert sorted(kept.values()) == [narrow, *[wide] * (kept_bytes > 1)]
    assert output.requires_grad and taken == [(BATCH, GRID[0] * GRID[1], CHANNELS)]
    with saved_storages(module) as kept:
        output = watched(module)(tokens, GRID)
    assert sorted(kept.values())[-4:] == 4 * [wide]


@pytest.mark.parametrize(
    ("family", "use_reentrant"), [("pvt", True), ("pvt_v2", False), ("pvt_v2_linear", True), ("p2t", False)]
)
def test_checkpointing(family: str, use_reentrant: bool, taken: list[tuple[int, ...]]) -> None:
    model, images = tiny(family).double().train(), torch.randn(BATCH, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, layers.DropPath):
            module.rate = 0.0
    expected = gradients(watched(model), images)
    # Transformers 6 drops the old name, 5.17 lacks the new one.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": use_reentrant})
    assert largest_error(gradients(model, images), expected) < 1e-12
    assert taken


def test_used_twice(taken: list[tuple[int, ...]]) -> None:
    """A module twice in a graph, and a graph twice."""
    module, tokens = small_feed_forward()

    def twice(module: nn.Module) -> list[Tensor]:
        output = module(module(tokens, GRID), GRID).square().sum()
        first = torch.autograd.grad(output, list(module.parameters()), retain_graph=True)
        second = torch.autograd.grad(output, list(module.parameters()))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        return list(first)

    torch.testing.assert_close(twice(module), twice(watched(module)), rtol=1e-10, atol=1e-12)
    assert len(taken) == 2


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (3, 5), (1, 6)], ids=str)
def test_low_maps(grid: tuple[int, int], taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps lower than the filters are made as high for the convolution, no others, and the gradients are the same."""
    monkeypatch.setattr(banded_feed_forward, "KEPT_BYTES", 2**30)
    heights: list[int] = []
    convolution = F.conv2d

    def spy(feature_map: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heights.append(feature_map.shape[2])
        return convolution(feature_map, *args, **kwargs)

    module, _ = small_feed_forward()
    tokens = torch.randn(BATCH, grid[0] * grid[1], CHANNELS, dtype=torch.float64, requires_grad=True)
    inputs = (tokens, *module.parameters())
    expected = torch.autograd.grad(watched(module)(tokens, grid).square().sum(), tokens)
    monkeypatch.setattr(feed_forward.F, "conv2d", spy)
    assert torch.autograd.gradcheck(lambda tokens, *_: module(tokens, grid), inputs, fast_mode=True)
    actual = torch.autograd.grad(module(tokens, grid).square().sum(), tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert taken and set(heights) == {max(grid[0], 3)}


@pytest.mark.parametrize("fast_blas", [True, False])
def test_linears_by_the_faster_library(fast_blas: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward."""
    monkeypatch.setattr(onednn_linear, "has_fast_blas", lambda: fast_blas)
    tokens = torch.randn(2, onednn_linear.MIN_ONEDNN_TOKENS, CHANNELS, requires_grad=True)
    layer = nn.Linear(CHANNELS, CHANNELS)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        onednn_linear.linear(layer, tokens).sum().backward()
    of_blas, of_onednn = {"aten::addmm", "aten::mm"}, {"aten::mkldnn_convolution", "aten::convolution_backward"}
    called = {event.key for event in profiler.key_averages()}
    assert called & (of_blas | of_onednn) == (of_blas if fast_blas else of_onednn)


@pytest.mark.parametrize("vendor, fast", [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_whose_processor(vendor: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(plain_calls.Path, "exists", lambda path: True)
    monkeypatch.setattr(plain_calls.Path, "read_text", lambda path: f"vendor_id\t: {vendor}\n")
    assert plain_calls.has_fast_blas.__wrapped__() is fast


FROZEN = {"dense2": ["dense2"], "filters": ["dwconv"], "before": ["dense1"], "all but dense2": ["dense1", "dwconv"]}


@pytest.mark.parametrize("parts", FROZEN.values(), ids=FROZEN)
def test_frozen_parts(parts: list[str], taken: list[tuple[int, ...]]) -> None:
    """They get no gradient, and the others the same as ever; also where the tokens need none."""
    module, tokens = small_feed_forward()
    for part in parts:
        module.get_submodule(part).requires_grad_(False)
    for inputs in (tokens, tokens.detach()):
        chosen = [tensor for tensor in (inputs, *module.parameters()) if tensor.requires_grad]
        actual = torch.autograd.grad(module(inputs, GRID).square().sum(), chosen)
        ordinary = watched(module)
        chosen = [tensor for tensor in (inputs, *ordinary.parameters()) if tensor.requires_grad]
        expected = torch.autograd.grad(ordinary(inputs, GRID).square().sum(), chosen)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert len(taken) == 2


def with_lora(module: nn.Module) -> nn.Module:
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["dense1", "dense2"]), module)


def with_dropout(module: nn.Module) -> nn.Module:
    module.dropout.p = 0.5
    return module.train()


def with_a_hook(module: nn.Module) -> nn.Module:
    module.dense2.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def with_a_watched_convolution(module: nn.Module) -> nn.Module:
    module.dwconv.dwconv.register_full_backward_hook(lambda module, of_inputs, of_outputs: None)
    return module


def with_a_learnt_activation(module: nn.Module) -> nn.Module:
    module.activation = nn.PReLU(dtype=torch.float64)
    return module


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    change.__name__: change
    for change in (with_lora, with_dropout, with_a_hook, with_a_watched_convolution, with_a_learnt_activation)
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_not_taken(change: Callable[[nn.Module], nn.Module], taken: list[tuple[int, ...]]) -> None:
    """Where a part is wrapped, watched or drops: it does what it is there for."""
    module, tokens = small_feed_forward()
    module = change(module)
    torch.manual_seed(0)
    actual = module(tokens, GRID)
    torch.manual_seed(0)
    expected = module.contract(module.expand(tokens, GRID))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert not taken
    actual.square().sum().backward()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


def test_transforms(taken: list[tuple[int, ...]]) -> None:
    """`torch.func` and forward-mode derivatives go the ordinary way, which they can transform."""
    module, tokens = small_feed_forward()

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (tokens[None], GRID)).square().sum()

    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, tokens.detach())
    of_tokens = torch.func.vmap(torch.func.grad(lambda one: module(one[None], GRID).square().sum()))(tokens.detach())
    direction = torch.randn_like(tokens)
    with forward_ad.dual_level():
        forward = forward_ad.unpack_dual(module(forward_ad.make_dual(tokens, direction), GRID)).tangent
    assert not taken
    for name, parameter in module.named_parameters():
        for image in range(BATCH):
            (expected,) = torch.autograd.grad(module(tokens[image : image + 1], GRID).square().sum(), [parameter])
            torch.testing.assert_close(per_image[name][image], expected, rtol=1e-10, atol=1e-12)
    (expected,) = torch.autograd.grad(module(tokens, GRID).square().sum(), [tokens])
    torch.testing.assert_close(of_tokens, expected, rtol=1e-10, atol=1e-12)
    step = 1e-6 * direction
    difference = (module(tokens + step, GRID) - module(tokens - step, GRID)) / 2e-6
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-8)


def test_attention_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 of few keys only, and with gradients that are no worse than the fused attention's."""
    monkeypatch.setattr(query_bands, "has_products", lambda dtype: True)  # whatever this processor is
    torch.manual_seed(0)
    shapes = [(2, 4, length, 16) for length in (64, 49, 49)]
    double = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in double]
    many = torch.randn(2, 4, query_bands.MOST_KEYS + 1, 16).bfloat16()
    assert query_bands.gains_written_out(half[1])
    assert not query_bands.gains_written_out(many)
    assert not query_bands.gains_written_out(half[1].float())
    with torch.no_grad():
        assert not query_bands.gains_written_out(half[1])

    def error(attention: Callable[..., Tensor]) -> float:
        outputs = [attention(*tensors) for tensors in (half, double)]
        weights = torch.randn_like(outputs[1])
        found, expected = (
            torch.autograd.grad((output * weights.to(output.dtype)).sum(), tensors)
            for output, tensors in zip(outputs, (half, double), strict=True)
        )
        return max(float((a - e).norm() / e.norm()) for a, e in zip(found, expected, strict=True))

    written_out = partial(layers.eager_attention, nn.Module(), attention_mask=None, scaling=0.25)
    fused = error(lambda *tensors: nn.functional.scaled_dot_product_attention(*tensors, scale=0.25))
    assert error(lambda *tensors: written_out(*tensors)[0].transpose(1, 2)) < max(1.5 * fused, 0.01)


def test_a_whole_step_of_a_classifier() -> None:
    """AdamW after the fast path's gradients moves the weights as after the ordinary path's."""
    torch.manual_seed(0)
    fast = hf_pvt.PvtV2ForImageClassification(FAMILY["pvt_v2"].tiny_config(num_labels=5)).double()
    perturb(fast)
    fast.eval()
    ordinary = watched(fast)
    images, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 3])
    for model in (fast, ordinary):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model(images, labels=labels).loss.backward()
            optimizer.step()
    torch.testing.assert_close(fast.state_dict(), ordinary.state_dict(), rtol=1e-9, atol=1e-9)
