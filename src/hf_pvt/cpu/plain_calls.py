"""Whether a forward may take a path of its own: nothing watches, replaces, compiles or exports it.

Whatever is not plain (training in the inference's case, autocast, hooks, wrapped or quantised layers, compilation,
export, transforms of `torch.func`) takes PyTorch's ordinary path.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

# The modules, by their identity, that nobody watches or replaces in the forward that runs; None outside of one.
_plain_modules: ContextVar[frozenset[int] | None] = ContextVar("plain_modules", default=None)


@contextmanager
def survey(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Look at a model's parts once, for all questions of `is_plain_inference` inside."""
    plain: set[int] = set()
    if is_eager_inference(images):
        _collect_plain(model, plain)
    token = _plain_modules.set(frozenset(plain))
    try:
        yield
    finally:
        _plain_modules.reset(token)


def _collect_plain(module: nn.Module, plain: set[int]) -> bool:
    """Add the modules that are untouched with all of their parts; whether this one is."""
    is_plain = is_untouched(module)
    for part in module._modules.values():
        if part is not None and not _collect_plain(part, plain):
            is_plain = False
    if is_plain:
        plain.add(id(module))
    return is_plain


def is_eager(tokens: Tensor) -> bool:
    """Whether tensors on the CPU are computed with as they are: no compilation, tracing, hooks."""
    return (
        type(tokens) is Tensor
        and tokens.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch_module._has_any_global_hook()
    )


def is_eager_inference(tokens: Tensor) -> bool:
    """Whether that is all: no gradients, no autocast."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")) and is_eager(tokens)


def is_plain_inference(tokens: Tensor, module: nn.Module) -> bool:
    """Whether this is eager inference on the CPU, and nobody watches or replaces `module` or a part of it."""
    if torch.compiler.is_compiling():
        return False
    plain = _plain_modules.get()
    if plain is None:
        is_plain = is_eager_inference(tokens) and all(map(is_untouched, module.modules()))
    else:
        is_plain = id(module) in plain
    return is_plain and tokens.is_contiguous()


def is_plain_training(tokens: Tensor, module: nn.Module) -> bool:
    """Whether this is eager on the CPU, without transforms, and nobody watches or replaces a part of `module`."""
    return (
        is_eager(tokens)
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and all(map(is_unwatched, module.modules()))
        and tokens.is_contiguous()
    )


def is_untouched(module: nn.Module) -> bool:
    """Unwatched, and not in training mode (Monte Carlo dropout)."""
    return not module.training and is_unwatched(module)


def is_unwatched(module: nn.Module) -> bool:
    """No hooks, no replaced forward, no wrapped or quantised parameters."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    ):
        return False
    # A loop, not a generator: hundreds of modules are asked in each forward.
    for parameter in module._parameters.values():
        if parameter is not None and type(parameter) is not nn.Parameter:
            return False
    return True


@cache
def has_fast_blas() -> bool:
    """Whether the BLAS behind `nn.Linear` is as fast as oneDNN: MKL is, on processors of Intel's own."""
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in about


def has_products(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's operators, and this CPU the type."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
