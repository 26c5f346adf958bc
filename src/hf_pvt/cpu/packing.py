"""A packed form for serving on a CPU: each weight lies once in oneDNN's own layout.

oneDNN otherwise reorders the weights of all products in every forward, which at a batch of one image is a good part of
it. These are the operators that `torch.compile` uses when it freezes a model. `python -m benchmarks` measures
what they gain.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .plain_calls import has_products, is_untouched

logger = logging.get_logger(__name__)

# Rows of the products that the layout is chosen for; of others it serves as well.
TYPICAL_TOKENS = 784

NOT_TO_TRAIN = "a packed model cannot be trained; take one that pack_for_cpu has not seen."


class Packed(nn.Module):
    """A layer whose weight is packed; a subclass says how. Its bias stays a parameter."""

    dtype: torch.dtype
    packed: Tensor  # of oneDNN's opaque layout

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.training = layer.training
        self.register_parameter("bias", layer._parameters["bias"])
        self.dtype = layer.weight.dtype

    def pack(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "the weight of a packed layer cannot be read or changed in place; use state_dict and load_state_dict, "
                "or change it before pack_for_cpu."
            )
        return super().__getattr__(name)

    def multiply(self, inputs: Tensor) -> Tensor:
        """The layer's output, of inputs in its type."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _outside_of_graphs(self, inputs)
        if inputs.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a packed model has no gradients; take one that pack_for_cpu has not seen.")
        # In the layer's type, whatever autocast has made of them.
        return self.multiply(inputs if inputs.dtype == self.dtype else inputs.to(self.dtype))

    def train(self, mode: bool = True) -> "Packed":
        if mode:
            raise RuntimeError(NOT_TO_TRAIN)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "Packed":
        """What `.to()`, `.float()`, `.cuda()` and the like call, with the parts of a model before the whole."""
        probe = torch.empty(0, dtype=self.dtype)
        moved = fn(probe)
        if moved.dtype != probe.dtype or moved.device != probe.device:
            raise RuntimeError(
                f"a packed model stays on the CPU in {self.dtype}; move or convert it before pack_for_cpu."
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.packed.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        _, _, missing, _, errors = arguments
        name = f"{prefix}weight"
        weight = state_dict.get(name)
        if weight is None:
            missing.append(name)
        elif weight.shape != self.packed.shape:
            errors.append(f"{name} has shape {tuple(weight.shape)}, expected {tuple(self.packed.shape)}.")
        else:
            self.packed = self.pack(weight.detach().to("cpu", self.dtype))
        others = {key: value for key, value in state_dict.items() if key != name and key.startswith(prefix)}
        super()._load_from_state_dict(others, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold the opaque layout.

        As numpy's: a tensor would be shared with the other process by a file that is closed when the copy goes.
        """
        weight = self.packed.to_dense()
        return self.__dict__ | {"packed": weight.view(torch.uint8).numpy(), "shape": weight.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed, shape = state.pop("packed"), state.pop("shape")
        super().__setstate__(state)
        self.packed = self.pack(torch.from_numpy(packed).view(self.dtype).view(shape))


@torch.compiler.disable(reason="a compiled graph takes only weights that it has packed itself; compile a plain model")
def _outside_of_graphs(layer: Packed, inputs: Tensor) -> Tensor:
    return layer(inputs)


class PackableMixin:
    """A model that says that it is packed before a part of it has changed its mode."""

    def train(self, mode: bool = True) -> Any:
        if mode and any(isinstance(part, Packed) for part in self.modules()):  # type: ignore[attr-defined]
            raise RuntimeError(NOT_TO_TRAIN)
        return super().train(mode)  # type: ignore[misc]


class PackedLinear(Packed):
    """`nn.Linear` on tokens (..., C)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = self.pack(layer.weight.detach())

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_TOKENS)

    def multiply(self, inputs: Tensor) -> Tensor:
        bias = self._parameters["bias"]  # without the detour of __getattr__, which a hundred layers pay for
        return torch.ops.mkldnn._linear_pointwise.default(inputs, self.packed, bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"


class PackedConv2d(Packed):
    """`nn.Conv2d` on maps (B, C, H, W)."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        assert not isinstance(layer.padding, str)
        self.settings = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        self.packed = self.pack(layer.weight.detach())

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(weight.contiguous(), *self.settings)

    def multiply(self, inputs: Tensor) -> Tensor:
        bias = self._parameters["bias"]
        return torch.ops.mkldnn._convolution_pointwise.default(
            inputs, self.packed, bias, *self.settings, "none", [], ""
        )

    def extra_repr(self) -> str:
        padding, stride, dilation, groups = self.settings
        return f"{tuple(self.packed.shape)}, {stride=}, {padding=}, {dilation=}, {groups=}, dtype={self.dtype}"


Model = TypeVar("Model", bound=nn.Module)


def pack_for_cpu(model: Model, dtype: torch.dtype | None = None) -> Model:
    """The model itself, its linears and convolutions packed, for serving on a CPU: no training, no gradients.

    The plain weights go, so memory is not doubled. `state_dict`, `save_pretrained`, `load_state_dict`, copies and
    pickles work as before, with plain copies of the weights. Other types and devices, training and gradients are
    refused. Layers that somebody watches, wraps or quantises stay as they are.

    Args:
        model: one of this package, in evaluation mode. Away from the CPU, or without oneDNN, it stays as it is, with a
            warning.
        dtype: `torch.bfloat16` on a CPU that computes in it; by default the model's own.

    Raises:
        ValueError: a model in training mode, or another type than float32 and bfloat16.
    """
    if model.training:
        raise ValueError("the model is in training mode, and a packed one cannot be trained; call model.eval() first.")
    weights = next(model.parameters())
    dtype = dtype or weights.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16.")
    if weights.device.type != "cpu" or not can_pack(dtype):
        logger.warning(f"not packed: the model is on {weights.device}, in {dtype}, which oneDNN has no layout for here")
        return model
    model.requires_grad_(False).to(dtype)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            kind = packed_kind(layer)
            if kind is not None:
                setattr(parent, name, kind(layer))
    return model


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, and this CPU the type."""
    return has_products(dtype) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def packed_kind(layer: nn.Module) -> Callable[[Any], Packed] | None:
    """What becomes of a layer; None of one that is no plain product, or is watched or wrapped."""
    if not is_untouched(layer):
        return None
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return PackedLinear
    if isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward:
        return PackedConv2d if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    return None
