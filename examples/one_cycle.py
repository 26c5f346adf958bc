"""The demos' training: AdamW, and a rate that rises and falls once."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from hf_pvt.training.progress import ProgressBar

WARM_UP_STEPS, TIMED_STEPS = 3, 5


def train_one_cycle(
    model: nn.Module,
    loss_of_batch: Callable[[], Tensor],
    steps: int,
    title: str,
    learning_rate: float = 2e-3,
    max_grad_norm: float | None = None,
) -> None:
    """Train a model for so many steps, and say after a few how long they take here; it ends in evaluation mode.

    Args:
        loss_of_batch: draws a batch, and gives its loss.
        title: of the progress bar.
        learning_rate: the highest.
        max_grad_norm: None does not clip.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    progress = ProgressBar(range(steps), desc=title, unit="step")
    ends: list[float] = []  # of the steps before
    for step in progress:
        ends.append(time.perf_counter())
        if step == WARM_UP_STEPS + TIMED_STEPS:
            # The median: one step may have waited for something else.
            seconds = steps * median(later - earlier for earlier, later in pairwise(ends[WARM_UP_STEPS:]))
            progress.write(f"{title}: about {seconds:.0f} s for {steps} steps on this machine")
        loss = loss_of_batch()
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
