"""Attention for inference on a CPU: the same numbers, faster, and without its full-size intermediates.

PyTorch's own kernel multiplies its tiles by the BLAS, and bfloat16 hardly faster than float32. Here a band of queries
is projected, multiplied with all keys and with all values by oneDNN, and projected back, one head after another. Scores
stay in the cache; queries and mixed values exist for one band only. `python -m benchmarks` measures it.

Legend: see `layers`; R queries of a band.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .cpu_inference import keep_bands_on_the_heap

# Scores of one band, in bytes: small enough for the cache, large enough to keep the calls few.
BAND_BYTES = 4 * 2**20
# Scores of one image and head: below, the calls cost more than the products gain.
MIN_SCORES = 80_000

Project = Callable[[Tensor], Tensor]


def pays_off(tokens: Tensor, reduced: Tensor) -> bool:
    """Whether bands are the faster way for tokens (B, N, C) over reduced ones (B, M, C), on this CPU."""
    return tokens.shape[1] * reduced.shape[1] >= MIN_SCORES and has_products(tokens.dtype)


def has_products(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's operators, and this CPU the type."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
    # As oneDNN takes the weights of a linear, (outputs, inputs). Of other layouts it has slow code alone.
    keys = (keys * scaling).contiguous()
    values = values.transpose(2, 3).contiguous()  # (B, heads, D, M)
    output = torch.empty_like(tokens)
    rows = max(1, BAND_BYTES // (keys.shape[2] * keys.element_size()))
    keep_bands_on_the_heap()
    for image, (head_keys, head_values) in enumerate(zip(keys, values, strict=True)):
        for top in range(0, tokens.shape[1], rows):
            band = query(tokens[image : image + 1, top : top + rows]).squeeze(0)  # (R, C)
            heads = zip(band.chunk(len(head_keys), dim=1), head_keys, head_values, strict=True)
            mixed = torch.cat([_mix(*head) for head in heads], dim=1)  # (R, C)
            output[image, top : top + rows] = project(mixed.unsqueeze(0)).squeeze(0)
    return output


def _mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head: (R, D), (M, D), (D, M) -> (R, D)."""
    scores = _product(query, key)  # (R, M)
    return _product(torch.softmax(scores, dim=1, out=scores), value)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right.T` by oneDNN, whichever library PyTorch prefers."""
    return torch.ops.mkldnn._linear_pointwise.default(left, right, None, "none", [], "")
