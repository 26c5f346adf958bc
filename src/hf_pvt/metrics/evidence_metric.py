"""What the metrics share: evidence that is put together, here and over processes.

Of the package `evaluate` this needs neither the Hub nor the scripts: `evaluate.load` downloads and keeps every
prediction on disk.
"""

import copy
import itertools
import json
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Counts = NDArray[np.int64]
# What is found in some examples, small: counts, which are added up, or a list with a record of each, ready for JSON.
Evidence = Counts | list[dict[str, Any]]


class EvidenceMetric(evaluate.Metric):
    """A metric that is a function of all evidence, which the subclasses find in one batch at a time.

    With num_process > 1 each process hands one row to `evaluate`, which gathers them through files in `cache_dir`; so
    all processes have to call `compute()`, of several metrics in the same order, and those besides process 0 get None.
    A process without a single example takes part.

    Args:
        nothing: the evidence of no example: counts that are all 0, or an empty list.
    """

    _rounds = itertools.count()  # of gathering, whichever metric's

    def __init__(self, nothing: Evidence, **evaluate_kwargs: Any) -> None:
        super().__init__(**evaluate_kwargs)
        self._nothing = nothing
        self._round = 0
        self._reset()

    @property
    def experiment_id(self) -> str:
        """The name of the files, one of two in turn.

        The others go on as soon as their row is written, and would write the next over it before it is read. They only
        wait until the main process opens its file: the next, of another name, when it has read this one.
        """
        return f"{super().experiment_id}-{self._round % 2}"

    def count(self, predictions: Any, references: Any) -> Any:
        """The evidence in a batch."""
        raise NotImplementedError

    def result(self, evidence: Any, examples: int) -> dict[str, Any]:
        """The scores that the evidence of so many examples makes."""
        raise NotImplementedError

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Take in a batch. One that is refused with a ValueError leaves the metric as it was."""
        if kwargs:
            raise ValueError(
                f"{type(self).__name__} takes predictions and references, not {', '.join(map(repr, kwargs))}."
            )
        if predictions is None or references is None:
            raise ValueError(f"{type(self).__name__} needs both predictions and references.")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references; expected one for each.")
        self._keep(self.count(predictions, references))
        self._examples += len(predictions)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Take in one example."""
        if prediction is None or reference is None:
            raise ValueError(f"{type(self).__name__} needs both a prediction and a reference.")
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The scores of everything added, and of the batch given here; then start anew.

        Raises ValueError where no process has added an example.
        """
        if predictions is not None or references is not None or kwargs:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        gathered = self._gather()
        self._reset()
        if gathered is None:
            return None
        if gathered["examples"] == 0:
            raise ValueError(f"{type(self).__name__} has nothing to compute; call add or add_batch before compute.")
        return self.result(gathered["evidence"], gathered["examples"])

    def __len__(self) -> int:
        return self._examples

    def _reset(self) -> None:
        self._examples = 0
        self._evidence: Any = copy.copy(self._nothing)

    def _keep(self, evidence: Any) -> None:
        self._evidence += evidence

    def _gather(self) -> dict[str, Any] | None:
        """Evidence and number of examples of all processes, None on all but the main one."""
        if self.num_process == 1:
            return {"evidence": self._evidence, "examples": self._examples}
        self._round = next(self._rounds)
        super().add_batch(rows=[json.dumps([self._examples, self._evidence], default=np.ndarray.tolist)])
        return super().compute()

    def _compute(self, *, rows: Sequence[str], **_: Any) -> dict[str, Any]:
        total, evidence = 0, copy.copy(self._nothing)
        for examples, found in map(json.loads, rows):
            total += examples
            evidence += found
        return {"evidence": evidence, "examples": total}

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"rows": datasets.Value("large_string")})
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation="", features=features)


def as_array(values: Any) -> Array:
    """Tensors of any device and dtype, arrays and lists as an array, without a copy where possible."""
    if isinstance(values, Sequence) and values and isinstance(values[0], torch.Tensor):
        values = torch.stack(list(values))
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def as_integers(values: Any, name: str) -> Array:
    array = as_array(values)
    if not np.issubdtype(array.dtype, np.integer) and array.size:
        raise ValueError(f"{name} hold {array.dtype}, expected integers.")
    return array
