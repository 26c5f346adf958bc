"""What a loss is divided by: counts of the whole batch, however many processes it is divided over."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, distributed


class LossTerm(NamedTuple):
    """A sum over a batch, and the number of what it is the mean of, or `least` where the whole batch has fewer."""

    total: Tensor
    number: float
    least: float = 0.0


def means(terms: Mapping[str, LossTerm], over_processes: bool) -> dict[str, Tensor]:
    """Each term's mean; a term of nothing is 0.

    Args:
        over_processes: where several train together, which average their gradients, a count is the mean of all
            processes' counts. So two processes learn what one with the joint batch does. Every process has to call
            this. As published, each one divides by its own counts, and an image counts more beside poor ones.
    """
    counts = torch.tensor([term.number for term in terms.values()], dtype=torch.float32)
    processes = 1
    if over_processes and distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        shared = counts.to(next(iter(terms.values())).total.device)  # NCCL adds up on GPUs alone
        distributed.all_reduce(shared)
        counts = shared.cpu() / processes
    return {
        # `least` is of the joint batch.
        name: term.total / (max(count, term.least / processes) or 1)
        for (name, term), count in zip(terms.items(), counts.tolist(), strict=True)
    }
