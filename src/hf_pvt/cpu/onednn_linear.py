"""The linears of tokens, by whichever product is the quickest here, forward and backward.

A linear over channels-last tokens is a 1x1 convolution, which PyTorch sends to oneDNN. In float32 that is faster than
the BLAS behind `nn.Linear`: two to three times on AMD; on Intel a little in inference, and a twentieth slower in
training, where linears stay linears. Both products of the backward are such convolutions, too.

Legend: B batch, N tokens, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .packing import PackedLinear
from .plain_calls import has_fast_blas, is_plain_inference, is_plain_training

# Below this many tokens reordering the weight for oneDNN costs more than the product gains.
MIN_ONEDNN_TOKENS = 128
# PyTorch sends 1x1 convolutions of so many images to oneDNN; of fewer, with one thread or on a small map, it takes
# im2col instead, and copies. A linear does not mind which tokens make an image.
ONEDNN_IMAGES = 16


def linear(layer: nn.Module, tokens: Tensor) -> Tensor:
    """`layer(tokens)` for a linear layer and tokens (B, N, C), in training and in inference."""
    if type(layer) is nn.Linear and torch.is_grad_enabled() and is_plain_training(tokens, layer):
        return product(tokens, layer.weight, layer.bias)
    if type(layer) is PackedLinear and tokens.dtype == layer.dtype and is_plain_inference(tokens, layer):
        return layer.multiply(tokens)  # without a module's call, a tenth of a small product
    if (
        type(layer) is nn.Linear
        and tokens.dtype == torch.float32 == layer.weight.dtype
        and is_plain_inference(tokens, layer)
        and has_enough_tokens(tokens)  # last: compilation would guard on it
    ):
        return as_convolution(tokens, layer.weight, layer.bias)
    return layer(tokens)


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of contiguous tokens (B, N, C)."""
    if gains_as_convolution(tokens, weight):
        return as_convolution(tokens, weight, bias)
    return F.linear(tokens, weight, bias)


def gains_as_convolution(tokens: Tensor, weight: Tensor) -> bool:
    """In float32, that is; bfloat16 goes to oneDNN either way."""
    return (
        tokens.dtype == torch.float32 == weight.dtype
        and not has_fast_blas()
        and not torch.is_autocast_enabled("cpu")
        and has_enough_tokens(tokens)
    )


def has_enough_tokens(tokens: Tensor) -> bool:
    """Whether tokens (B, N, C) are worth the reordered weight of a convolution."""
    return tokens.shape[0] * tokens.shape[1] >= MIN_ONEDNN_TOKENS


def as_convolution(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(tokens, weight, bias)` of contiguous tokens (B, N, C), as a 1x1 convolution."""
    output = torch.conv2d(column_map(tokens), weight[:, :, None, None], bias)  # (images, C_out, B*N/images, 1)
    return output.permute(0, 2, 3, 1).reshape(*tokens.shape[:2], -1)  # (B, N, C_out)


def column_map(tokens: Tensor) -> Tensor:
    """Contiguous tokens (B, N, C) as a channels-last map (images, C, B*N/images, 1): a view."""
    batch, count, channels = tokens.shape
    images = ONEDNN_IMAGES if batch * count % ONEDNN_IMAGES == 0 else batch
    return tokens.view(images, -1, 1, channels).permute(0, 3, 1, 2)


def product_gradients(gradient: Tensor, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the tokens, the weight and the bias of `product`."""
    if gains_as_convolution(tokens, weight):
        maps = column_map(gradient), column_map(tokens)
        of_map, of_filters, of_bias = torch.ops.aten.convolution_backward(
            *maps, weight[:, :, None, None], [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3
        )
        return of_map.permute(0, 2, 3, 1).reshape(tokens.shape), of_filters.view(weight.shape), of_bias
    rows = gradient.flatten(0, 1)  # (b*N, C_out)
    return gradient @ weight, rows.t() @ tokens.flatten(0, 1), rows.sum(0)
