"""How a model is scored: images as its processor makes them, what is found in each batch, and the metric of all of it.

The training scripts and `evaluate_model.py` share these, so both give the same numbers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data.loaders import Prepare
from ..data.samples import Sample
from ..launch import TrainingError

# What is found in some samples: counts, which are added up, or a record of each image.
Evidence = np.ndarray | list[Any]


class Evaluation:
    """One task's evaluation.

    Args:
        metric: its `count` makes evidence of predictions and references, its `result(evidence, examples)` the scores.
        view: makes a sample of an example, as the model's processor does.
    """

    def __init__(self, metric: Any, view: Prepare) -> None:
        self.metric, self.view = metric, view

    def count(self, model: nn.Module, batch: Sample) -> Evidence:
        """The evidence of those samples of a batch on the device that are `counted`."""
        raise NotImplementedError

    def remarks(self, scores: dict[str, Any]) -> dict[str, str]:
        """What has to be said beside a score."""
        return {}

    def save_pictures(self, folder: Path) -> None:
        """Pictures of what was counted since the last time, where there are any."""


def together(one: Evidence | None, other: Evidence) -> Evidence:
    """The evidence of both."""
    return other if one is None else one + other


def of_all_processes(evidence: Evidence | None) -> Evidence | None:
    """The evidence of all processes together. Every process has to call this; those without a sample have None."""
    total: Evidence | None = None
    for found in gather_object([evidence]):
        total = total if found is None else together(total, found)
    return total


def scores(
    evaluation: Evaluation, evidence: Evidence | None, examples: int, accelerator: Accelerator
) -> dict[str, Any]:
    """The scores of all processes' evidence, the number of `examples` that it is of, and remarks.

    Every process has to call this.

    Raises:
        TrainingError: no sample counted.
    """
    total = int(accelerator.reduce(torch.tensor(examples, device=accelerator.device), "sum"))
    return scores_of_all(evaluation, of_all_processes(evidence), total)


def scores_of_all(evaluation: Evaluation, evidence: Evidence | None, examples: int) -> dict[str, Any]:
    """The same of evidence that is all there is.

    Raises:
        TrainingError: no sample counted.
    """
    if not examples or evidence is None:
        raise TrainingError("the validation data has no sample that counts.")
    found = evaluation.metric.result(evidence, examples)
    plain = {name: np.asarray(value).tolist() for name, value in found.items()} | {"examples": examples}
    return plain | {"remarks": evaluation.remarks(plain)}
