"""The CPU's fast path: the ordinary path's numbers, in less memory, and only where nobody would notice."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import peft
import pytest
import torch
from families import FAMILIES, PVT_V2_LINEAR, perturb
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import hf_pvt
from hf_pvt.cpu import banded_feed_forward, onednn_linear, plain_calls, query_bands, row_bands
from hf_pvt.pyramid import feed_forward

FAMILY = {family.name: family for family in (*FAMILIES, PVT_V2_LINEAR)}
HUGE = 2**40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, threads that wait for each other would count as work, and cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    with (
        torch.enable_grad(),
        patch.object(plain_calls, "is_eager", lambda tokens: False),
        patch.object(query_bands, "is_eager", lambda tokens: False),
    ):
        return outputs(model, pixel_values)


def fast(model: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return outputs(model, pixel_values)


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each difference is this small a share of what is expected, both measured over the whole tensor."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert (a - e).double().norm() <= tolerance * e.double().norm()


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.fixture
def bands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the tokens of every feed-forward that goes through in bands; bands are small."""
    calls: list[tuple[int, ...]] = []
    banded = row_bands.in_row_bands

    def spy(*args: Any) -> Tensor:
        calls.append(tuple(args[2].shape))
        return banded(*args)

    monkeypatch.setattr(feed_forward, "in_row_bands", spy)
    monkeypatch.setattr(row_bands, "BAND_BYTES", 2**12)
    return calls


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the map of every linear that goes through as a convolution; the smallest do."""
    calls: list[tuple[int, ...]] = []
    convolution = torch.conv2d

    def spy(feature_map: Tensor, *args: Any) -> Tensor:
        if len(args) == 2:  # weight and bias; compiled graphs pass real convolutions with all their arguments
            calls.append(tuple(feature_map.shape))
        return convolution(feature_map, *args)

    monkeypatch.setattr(torch, "conv2d", spy)
    monkeypatch.setattr(onednn_linear, "MIN_ONEDNN_TOKENS", 1)
    return calls


# Bytes of a band, tokens from which oneDNN multiplies, and images: rows of one image after another, several rows, whole
# images in groups (of two and one in the second stage), all at once.
PATHS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "rows by oneDNN": (1, 1, (3, 3, 45, 70)),
    "bands by BLAS": (2**13, HUGE, (1, 3, 97, 33)),
    "images by oneDNN": (2**13, 1, (3, 3, 32, 32)),
    "whole by BLAS": (HUGE, HUGE, (1, 3, 64, 64)),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", FAMILY)
def test_same_numbers(family: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the bands lie. In float64 to the last digits: in float32 nothing but rounding differs."""
    band_bytes, min_tokens, shape = PATHS[path]
    monkeypatch.setattr(row_bands, "BAND_BYTES", band_bytes)
    monkeypatch.setattr(onednn_linear, "MIN_ONEDNN_TOKENS", min_tokens)
    monkeypatch.setattr(row_bands, "keep_bands_on_the_heap", lambda: None)  # HUGE is more than there is
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        pixel_values = images(*shape, dtype=dtype)
        expected = plain(tiny(family, dtype), pixel_values)
        assert_close(fast(tiny(family, dtype), pixel_values), expected, tolerance)


@pytest.mark.parametrize("halo", [0, 1])
def test_row_bands(halo: int) -> None:
    """Each row of each image once, with the neighbours that there are, in no more bytes than a row or the limit."""
    for batch, height, width, limit in itertools.product((1, 3, 5), (1, 2, 7, 12), (1, 5), (1, 40, 100, 10**6)):
        case = batch, height, width, limit
        times = torch.zeros(batch, height)
        for band in row_bands.row_bands(batch, (height, width), 4, halo, limit):
            rows = range(*band.rows.indices(height))
            times[band.images, band.rows] += 1
            assert band.outer == slice(max(rows.start - halo, 0), min(rows.stop + halo, height)), case
            count = len(range(*band.images.indices(batch))) * len(rows)
            assert count == 1 or 4 * width * count <= limit, case
            assert len(rows) == height or band.images.stop - band.images.start == 1, case
        assert (times == 1).all(), case


def token_shapes(family: str, batch: int, size: int) -> list[tuple[int, ...]]:
    """What the feed-forward of each block receives, for square images."""
    config = FAMILY[family].tiny_config()
    shapes = []
    for stage, (depth, dim) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        class_tokens = 1 if family == "pvt" and stage == 3 else 0
        shapes += depth * [(batch, class_tokens + (size // (4 << stage)) ** 2, dim)]
    return shapes


@pytest.mark.parametrize("family", FAMILY)
def test_taken_in_plain_inference(
    family: str, bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]
) -> None:
    """By every feed-forward once; by the linears in float32 only."""
    for dtype, mode in (
        (torch.float32, torch.no_grad),
        (torch.float32, torch.inference_mode),
        (torch.float64, torch.no_grad),
        (torch.bfloat16, torch.inference_mode),
    ):
        bands.clear()
        convolutions.clear()
        with mode():
            tiny(family, dtype)(images(2, 3, 64, 64, dtype=dtype))
        assert bands == token_shapes(family, 2, 64), (dtype, mode)
        assert (len(convolutions) > 6 * len(bands)) == (dtype == torch.float32), (dtype, mode)
        assert bool(convolutions) == (dtype == torch.float32), (dtype, mode)


@contextmanager
def global_hook(register: Callable[..., Any]) -> Iterator[None]:
    handle = register(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


CIRCUMSTANCES: dict[str, Callable[[], Any]] = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "global hook": lambda: global_hook(register_module_forward_hook),
    "global pre-hook": lambda: global_hook(register_module_forward_pre_hook),
    "compilation": lambda: patch.object(torch.compiler, "is_compiling", lambda: True),
    "tracing": lambda: patch.object(torch.jit, "is_tracing", lambda: True),
}


class Tagged(Tensor):
    """A tensor that others have extended."""


TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda tokens: tokens.as_subclass(Tagged),
    "device": lambda tokens: tokens.to("meta"),
    "strides": lambda tokens: tokens.transpose(1, 2),
}


def are_plain(tokens: Tensor, *modules: nn.Module) -> list[bool]:
    """What is asked of the modules, the first of which holds the others; a survey before does not change it."""
    answers = [plain_calls.is_plain_inference(tokens, module) for module in modules]
    with plain_calls.survey(modules[0], tokens):
        assert [plain_calls.is_plain_inference(tokens, module) for module in modules] == answers
    return answers


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
def test_no_plain_inference_under(circumstance: str) -> None:
    module, tokens = nn.Linear(4, 4).eval(), torch.zeros(1, 2, 4)
    with torch.no_grad():
        assert are_plain(tokens, module) == [True]
        with CIRCUMSTANCES[circumstance]():
            assert are_plain(tokens, module) == [False]
        assert are_plain(tokens, module) == [True]


@pytest.mark.parametrize("kind", TOKENS)
def test_no_plain_inference_of(kind: str) -> None:
    with torch.no_grad():
        assert are_plain(TOKENS[kind](torch.zeros(1, 2, 4)), nn.Linear(4, 4).eval()) == [False]


def without_a_parameter(part: nn.Module) -> None:
    """As `torch.func.functional_call` leaves it."""
    part._parameters["weight"] = part.weight.detach()


TOUCH: dict[str, Callable[[nn.Module], Any]] = {
    "hook": lambda part: part.register_forward_hook(lambda *_: None),
    "pre-hook": lambda part: part.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda part: part.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda part: part.register_full_backward_pre_hook(lambda *_: None),
    "replaced forward": lambda part: setattr(part, "forward", part.forward),
    "replaced parameter": without_a_parameter,
    "training mode": lambda part: part.train(),
}


@pytest.mark.parametrize("touch", TOUCH)
def test_a_touched_part_and_what_holds_it_are_not_plain(touch: str) -> None:
    """The others are. In training the mode does not count."""
    whole = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    group, (touched, sibling), other = whole[0], whole[0], whole[1]
    TOUCH[touch](touched)
    with torch.no_grad():
        answers = are_plain(torch.zeros(1, 2, 4), whole, group, touched, sibling, other)
    assert answers == [False, False, False, True, True]
    assert plain_calls.is_unwatched(touched) == (touch == "training mode")
    assert plain_calls.is_plain_training(torch.zeros(1, 2, 4), whole) == (touch == "training mode")


@pytest.mark.parametrize("circumstance", ["autocast", "global hook", "global pre-hook"])
def test_not_taken_under(circumstance: str, bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]) -> None:
    model, pixel_values = tiny("pvt_v2"), images(2, 3, 64, 64)
    with torch.no_grad(), CIRCUMSTANCES[circumstance]():
        actual = outputs(model, pixel_values)
    assert not bands and not convolutions
    with CIRCUMSTANCES[circumstance]():
        assert_equal(actual, plain(model, pixel_values))


def watch_by_hook(part: nn.Module, seen: list[Tensor]) -> None:
    part.register_forward_hook(lambda module, arguments, output: seen.append(output.detach().clone()))


def watch_by_pre_hook(part: nn.Module, seen: list[Tensor]) -> None:
    part.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach().clone()))


def watch_by_replaced_forward(part: nn.Module, seen: list[Tensor]) -> None:
    forward = part.forward

    def replaced(*args: Any) -> Tensor:
        output = forward(*args)
        seen.append(output.detach().clone())
        return output

    part.forward = replaced


WATCH: dict[str, Callable[[nn.Module, list[Tensor]], None]] = {
    "hook": watch_by_hook,
    "pre-hook": watch_by_pre_hook,
    "replaced forward": watch_by_replaced_forward,
}
# Each part once; the families and the ways to watch take turns.
WATCHED = [
    ("pvt", "mlp", "hook"),
    ("pvt", "mlp.dense1", "pre-hook"),
    ("pvt_v2", "mlp.dense2", "replaced forward"),
    ("p2t", "mlp.activation", "hook"),
    ("pvt_v2_linear", "mlp.inner_activation", "replaced forward"),
    ("pvt_v2", "mlp.dropout", "pre-hook"),
    ("p2t", "mlp.dwconv", "pre-hook"),
    ("pvt_v2_linear", "mlp.dwconv.dwconv", "hook"),
    ("pvt", "attention.query", "replaced forward"),
    ("pvt_v2", "attention.key", "hook"),
    ("pvt_v2_linear", "attention.value", "pre-hook"),
    ("p2t", "attention.proj", "replaced forward"),
]


@pytest.mark.parametrize(("family", "part", "watch"), WATCHED)
def test_whoever_watches_a_part_sees_all_of_it(
    family: str, part: str, watch: str, bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]
) -> None:
    """The whole activation, as often and with the values as on the ordinary path; other blocks stay fast."""
    model, pixel_values = copy.deepcopy(tiny(family)), images(2, 3, 64, 64)
    seen: list[Tensor] = []
    WATCH[watch](model.get_submodule(f"encoder.layers.0.blocks.0.{part}"), seen)
    expected, seen_on_the_ordinary_path = plain(model, pixel_values), seen.copy()
    assert not bands and not convolutions
    seen.clear()
    actual = fast(model, pixel_values)
    assert len(seen) == (2 if part == "mlp.dropout" else 1)
    assert_close(seen, seen_on_the_ordinary_path, 1e-6)
    assert_close(actual, expected, 1e-6)
    all_blocks = token_shapes(family, 2, 64)
    assert bands == (all_blocks if part.startswith("attention") else all_blocks[1:])


def test_the_watched_activation_is_the_expanded_one() -> None:
    """What the test above calls all of it: (B, N, E)."""
    model, seen = copy.deepcopy(tiny("pvt_v2")), []
    watch_by_hook(model.encoder.layers[0].blocks[0].mlp.activation, seen)
    fast(model, images(2, 3, 64, 64))
    assert [tuple(hidden.shape) for hidden in seen] == [(2, 16 * 16, 2 * 16)]


@pytest.mark.parametrize("family", ["pvt", "pvt_v2"])
def test_monte_carlo_dropout(family: str, bands: list[tuple[int, ...]]) -> None:
    """Dropout alone in training mode, as for uncertainty: it drops, and what it drops on the ordinary path.

    In float64, in which attention's linears are the same on both paths.
    """
    torch.manual_seed(0)
    model = FAMILY[family].model(FAMILY[family].tiny_config(hidden_dropout_prob=0.5)).eval().double()
    pixel_values = images(2, 3, 64, 64, dtype=torch.float64)
    without = fast(model, pixel_values)
    assert bands == token_shapes(family, 2, 64)
    bands.clear()
    for block in (block for stage in model.encoder.layers for block in stage.blocks):
        block.mlp.dropout.train()
    torch.manual_seed(1)
    actual = fast(model, pixel_values)
    assert not bands
    torch.manual_seed(1)
    assert_equal(actual, plain(model, pixel_values))
    assert not torch.allclose(actual[-1], without[-1], rtol=0.1)


ADAPTED = {
    "pvt": ["dense1"],
    "p2t": ["dense2"],
    "pvt_v2": ["query", "value"],
    "pvt_v2_linear": ["dense1", "dense2", "query", "key", "value", "attention.proj"],
}


@pytest.mark.parametrize("family", ADAPTED)
def test_low_rank_adapters(family: str, bands: list[tuple[int, ...]]) -> None:
    """They act as when merged into the weights, on the ordinary path; where they are in attention, bands stay."""
    pixel_values = images(2, 3, 64, 64)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=ADAPTED[family], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(tiny(family)), lora).eval()
    actual = fast(model, pixel_values)
    assert bands == (token_shapes(family, 2, 64) if family == "pvt_v2" else [])
    merged = copy.deepcopy(model).merge_and_unload()
    assert_close(actual, plain(merged, pixel_values), 2e-6)
    without = plain(tiny(family), pixel_values)
    assert (actual[-1] - without[-1]).norm() > 0.01 * without[-1].norm()


class OneScale(nn.Module):
    """A wrapped linear whose result depends on all tokens together, as that of a dynamically quantised one does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer((tokens / tokens.abs().max() * 7).round())


def wrapped(model: PreTrainedModel) -> PreTrainedModel:
    for block in (block for stage in model.encoder.layers for block in stage.blocks):
        block.mlp.dense1, block.mlp.dense2 = OneScale(block.mlp.dense1), OneScale(block.mlp.dense2)
    return model.eval()


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}).eval()


@pytest.mark.filterwarnings("ignore")  # PyTorch's, that its quantisation moves house
@pytest.mark.parametrize(
    ("family", "replace", "dtype"),
    [
        # In float64: where the two paths' last digits differ in float32, rounding could go the other way.
        ("pvt", wrapped, torch.float64),
        ("pvt_v2", wrapped, torch.float64),
        ("p2t", quantised, torch.float32),
    ],
)
def test_replaced_linears(
    family: str,
    replace: Callable[[PreTrainedModel], PreTrainedModel],
    dtype: torch.dtype,
    bands: list[tuple[int, ...]],
) -> None:
    """They see all tokens at once: in bands, each would have a scale of its own."""
    model, pixel_values = replace(copy.deepcopy(tiny(family, dtype))), images(2, 3, 64, 64, dtype=dtype)
    actual = fast(model, pixel_values)
    assert not bands
    assert_close(actual, plain(model, pixel_values), 1e-6)
    without = plain(tiny(family, dtype), pixel_values)
    assert (actual[-1] - without[-1]).norm() > 1e-3 * without[-1].norm()


def test_tensor_subclasses(bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]) -> None:
    pixel_values = images(2, 3, 64, 64)
    actual = fast(tiny("pvt_v2"), pixel_values.as_subclass(Tagged))
    assert not bands and not convolutions
    assert {type(tensor) for tensor in actual} == {Tagged}
    assert_equal([tensor.as_subclass(Tensor) for tensor in actual], plain(tiny("pvt_v2"), pixel_values))


class Last(nn.Module):
    """A model with tensors only on both sides, as compilers and exporters want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).last_hidden_state


def compiled(model: nn.Module, pixel_values: Tensor) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


def traced(model: nn.Module, pixel_values: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(model, pixel_values, check_trace=False)  # which would run the model untraced


def exported(model: nn.Module, pixel_values: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.export.export(model, (pixel_values,)).module()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "capture"),
    [("pvt", compiled), ("p2t", compiled), ("pvt_v2", exported), ("pvt_v2_linear", exported)],
)
def test_captured_graphs(
    family: str,
    capture: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]],
    bands: list[tuple[int, ...]],
    convolutions: list[tuple[int, ...]],
) -> None:
    """A graph holds the ordinary path: its compiler knows better."""
    pixel_values = images(2, 3, 64, 64)
    with torch.no_grad():
        actual = capture(Last(tiny(family)), pixel_values)(pixel_values)
    assert not bands and not convolutions
    assert_close([actual], plain(tiny(family), pixel_values)[-1:], 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tracing warns of every size that it fixes
@pytest.mark.parametrize("family", FAMILY)
def test_a_trace_holds_for_other_sizes(
    family: str, bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]
) -> None:
    """It holds the ordinary path, too."""
    with torch.no_grad():
        graph = traced(Last(tiny(family)), images(1, 3, 64, 64))
        for shape in (2, 3, 64, 64), (3, 3, 97, 131), (1, 3, 32, 32), (1, 3, 256, 192):
            actual = graph(images(*shape))
            assert not bands and not convolutions
            assert_close([actual], plain(tiny(family), images(*shape))[-1:], 1e-6)


def test_borrowed_weights(bands: list[tuple[int, ...]], convolutions: list[tuple[int, ...]]) -> None:
    """`torch.func.functional_call` puts tensors of its own in the parameters' places."""
    pixel_values = images(2, 3, 64, 64)
    model = Last(copy.deepcopy(tiny("p2t")))
    weights = {name: 1.1 * weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        actual = torch.func.functional_call(model, weights, pixel_values)
    assert not bands and not convolutions
    model.load_state_dict(weights)
    assert_equal([actual], plain(model.model, pixel_values)[-1:])


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that an operation returned."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    ("family", "batch", "fast_blas"),
    [("pvt", 1, False), ("pvt_v2", 3, True), ("pvt_v2_linear", 1, True), ("p2t", 2, False)],
)
def test_the_expanded_activation_is_never_held_whole(
    family: str, batch: int, fast_blas: bool, bands: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the fast paths nothing is larger than the images themselves, whatever this processor is."""
    for module in (query_bands, onednn_linear):
        monkeypatch.setattr(module, "has_fast_blas", lambda: fast_blas)
    for module in (row_bands, query_bands, banded_feed_forward):
        monkeypatch.setattr(module, "BAND_BYTES", 2**16)
    monkeypatch.setattr(banded_feed_forward, "KEPT_BYTES", 2**16)
    monkeypatch.setattr(row_bands, "LARGEST_HEAP_BLOCK", 2**16)  # never touched, so it takes no memory
    model = FAMILY[family].model(FAMILY[family].tiny_config(mlp_ratios=(8, 8, 8, 8), depths=(1, 1, 1, 1))).eval()
    pixel_values = images(batch, 3, 256, 256)
    with LargestTensor() as ordinary:
        plain(model, pixel_values)
    with torch.no_grad(), LargestTensor() as banded:
        model(pixel_values)
    assert len(bands) == 4
    with torch.enable_grad(), LargestTensor() as trained:
        model(pixel_values).last_hidden_state.sum().backward()
    assert ordinary.nbytes == batch * (64 * 64) * (8 * 16) * 4  # (B, N, E) of the first stage
    assert banded.nbytes == pixel_values.nbytes < ordinary.nbytes / 2
    assert trained.nbytes == pixel_values.nbytes


@pytest.mark.parametrize(
    ("family", "memory_format"),
    [("pvt", torch.channels_last), ("pvt_v2", torch.contiguous_format), ("p2t", torch.channels_last)],
    ids=str,
)
def test_images_are_left_alone(family: str, memory_format: torch.memory_format) -> None:
    pixel_values = images(2, 3, 64, 64).clone(memory_format=memory_format)
    fast(tiny(family), pixel_values)
    assert torch.equal(pixel_values, images(2, 3, 64, 64))


@pytest.mark.parametrize("family", ["pvt", "pvt_v2"])
def test_tokens_are_left_alone(family: str, bands: list[tuple[int, ...]]) -> None:
    """Activations overwrite what the feed-forward made itself, not what it was given."""
    mlp = tiny(family).encoder.layers[0].blocks[0].mlp
    tokens = images(2, 16 * 12, 16)
    given = tokens.clone()
    with torch.no_grad():
        first, second = mlp(given, (16, 12)), mlp(given, (16, 12))
    assert len(bands) == 2
    assert torch.equal(given, tokens) and torch.equal(first, second)
    with torch.enable_grad():
        assert_close([first], [mlp(tokens, (16, 12)).detach()], 1e-6)


@pytest.mark.parametrize(
    ("family", "dtype", "precision"),
    [
        ("pvt", torch.bfloat16, 2**-8),
        ("pvt_v2", torch.float16, 2**-11),
        ("pvt_v2_linear", torch.bfloat16, 2**-8),
        ("p2t", torch.float16, 2**-11),
    ],
)
def test_half_precision(family: str, dtype: torch.dtype, precision: float, bands: list[tuple[int, ...]]) -> None:
    """Both paths lie within a few roundings of float32.

    32 channels, as published models have: with 16 or fewer, oneDNN 3.13's strided convolutions are wrong on AMX.
    """
    torch.manual_seed(0)
    config = FAMILY[family].tiny_config(hidden_sizes=(32, 64, 96, 128), depths=(1, 1, 1, 1))
    model, pixel_values = FAMILY[family].model(config).eval(), images(2, 3, 97, 64)
    perturb(model)
    expected = plain(model, pixel_values)
    model, pixel_values = model.to(dtype), pixel_values.to(dtype)
    actual, ordinary = fast(model, pixel_values), plain(model, pixel_values)
    assert len(bands) == 4
    assert {tensor.dtype for tensor in (*actual, *ordinary)} == {dtype}
    assert_close(actual, ordinary, 2 * precision)
    for path in (actual, ordinary):
        assert_close([tensor.float() for tensor in path], expected, 8 * precision)


@pytest.mark.parametrize("fast_blas", [False, True])
def test_share_of_copies(fast_blas: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PVTv2-B0 at 512 pixels: less than a fifth of what oneDNN reads is copied, and every linear goes to oneDNN.

    Counted in numbers: a copy that a convolution makes of its map, or a linear of its tokens, doubles what it reads.
    """
    monkeypatch.setattr(query_bands, "has_fast_blas", lambda: fast_blas)
    model, pixel_values = hf_pvt.PvtV2Model(hf_pvt.variant_config("pvt-v2-b0")).eval(), images(1, 3, 512, 512)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(pixel_values)
    events = profiler.events()
    assert {event.name for event in events}.isdisjoint({"aten::addmm", "aten::_slow_conv2d_forward"})
    copied, read = (
        sum(math.prod(event.input_shapes[0]) for event in events if event.name == name)
        for name in ("aten::copy_", "aten::mkldnn_convolution")
    )
    assert 0 < copied < 0.2 * read
