"""Attention on a CPU: the same numbers, faster, and without its full-size intermediates.

A band of queries is projected, mixed with all keys and values, and projected back: queries and mixed values exist for
one band only. PyTorch's own kernel multiplies its tiles by the BLAS. Where that is slow, oneDNN multiplies a band with
all keys and with all values, one head after another, and bands are small enough that scores stay in the cache. On
Intel's processors PyTorch's kernel is the quicker one, by 3 to 20% of a forward: there bands are large, and only for
images whose queries are. `python -m benchmarks` measures it.

In training PyTorch's fused attention is slow in bfloat16, its backward above all: written out, a step is a tenth
faster.

Legend: see `layers`; R queries of a band.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .plain_calls import has_fast_blas, has_products, is_eager
from .row_bands import BAND_BYTES, keep_bands_on_the_heap

# Scores of one image and head: below, the calls cost more than oneDNN's products gain.
MIN_SCORES = 80_000
# Keys of an attention that is written out, at most: four times the dimension of a head in all published variants.
MOST_KEYS = 256
# Queries of a batch, in bytes: below, PyTorch's kernel takes them all at once.
MIN_QUERY_BYTES = 8 * 2**20

Project = Callable[[Tensor], Tensor]


def pays_off(tokens: Tensor, reduced: Tensor) -> bool:
    """Whether bands are the better way for tokens (B, N, C) over reduced ones (B, M, C), on this CPU."""
    if not has_products(tokens.dtype):
        return False
    if has_fast_blas():
        return tokens.nbytes >= MIN_QUERY_BYTES
    return tokens.shape[1] * reduced.shape[1] >= MIN_SCORES


def gains_written_out(key: Tensor) -> bool:
    """Whether products and a softmax train sooner than PyTorch's fused attention: in bfloat16, with few keys.

    Of more, the weights (B, heads, N, M) that they keep would be larger than the feed-forward's expanded activation.
    """
    return (
        key.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and is_eager(key)
        and key.shape[2] <= MOST_KEYS
        and has_products(key.dtype)
    )


def in_query_bands(
    tokens: Tensor, keys: Tensor, values: Tensor, query: Project, project: Project, scaling: float
) -> Tensor:
    """`project(softmax(query(tokens) K^T * scaling) V)`, band by band.

    Args:
        tokens: (B, N, C).
        keys: (B, heads, M, D).
        values: (B, heads, M, D).
        query: the linear before attention, on (1, R, C).
        project: the linear after attention, on (1, R, C).

    Returns:
        (B, N, C).
    """
    keys = keys * scaling
    if has_fast_blas():
        mix, bytes_of_query = _by_pytorch, tokens.shape[2] * tokens.element_size()
    else:
        mix, bytes_of_query = _by_onednn, keys.shape[2] * keys.element_size()
        # As oneDNN takes the weights of a linear, (outputs, inputs). Of other layouts it has slow code alone.
        keys, values = keys.contiguous(), values.transpose(2, 3).contiguous()  # (B, heads, M, D), (B, heads, D, M)
    rows = max(1, BAND_BYTES // bytes_of_query)
    output = torch.empty_like(tokens)
    keep_bands_on_the_heap()
    for image in range(len(tokens)):
        for top in range(0, tokens.shape[1], rows):
            band = query(tokens[image : image + 1, top : top + rows])  # (1, R, C)
            output[image, top : top + rows] = project(mix(band, keys[image], values[image])).squeeze(0)
    return output


def _by_pytorch(band: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(1, R, C), (heads, M, D), (heads, M, D) -> (1, R, C)."""
    query = band.unflatten(2, (len(keys), -1)).transpose(1, 2)  # (1, heads, R, D)
    mixed = F.scaled_dot_product_attention(query, keys.unsqueeze(0), values.unsqueeze(0), scale=1.0)
    return mixed.transpose(1, 2).flatten(2)  # (1, R, C)


def _by_onednn(band: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(1, R, C), (heads, M, D), (heads, D, M) -> (1, R, C)."""
    heads = zip(band.squeeze(0).chunk(len(keys), dim=1), keys, values, strict=True)
    return torch.cat([_mix_head(*head) for head in heads], dim=1).unsqueeze(0)


def _mix_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(R, D), (M, D), (D, M) -> (R, D)."""
    scores = _product(query, key)  # (R, M)
    return _product(torch.softmax(scores, dim=1, out=scores), value)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right.T` by oneDNN, whichever library PyTorch prefers."""
    return torch.ops.mkldnn._linear_pointwise.default(left, right, None, "none", [], "")
