"""What the metrics share: counts that are added up, here and over processes.

Of the package `evaluate` this needs neither the Hub nor the scripts: `evaluate.load` downloads and keeps every
prediction on disk.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class CountingMetric(evaluate.Metric):
    """A metric that is a function of sums of counts: what the subclasses add are vectors of int64.

    With num_process > 1 each process hands one row to `evaluate`, which gathers them through files in `cache_dir`; so
    all processes have to call `compute()`, and those besides process 0 get None. A process without a single example
    takes part.
    """

    def __init__(self, length: int, **evaluate_kwargs: Any) -> None:
        super().__init__(**evaluate_kwargs)
        self._length = length
        self._reset()

    def count(self, predictions: Any, references: Any) -> Counts:
        """The counts of a batch, of shape (length,)."""
        raise NotImplementedError

    def result(self, counts: Counts, examples: int) -> dict[str, Any]:
        """The scores that the summed counts of so many examples make."""
        raise NotImplementedError

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Count a batch. One that is refused with a ValueError leaves the metric as it was."""
        if kwargs:
            raise ValueError(
                f"{type(self).__name__} takes predictions and references, not {', '.join(map(repr, kwargs))}."
            )
        if predictions is None or references is None:
            raise ValueError(f"{type(self).__name__} needs both predictions and references.")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references; expected one for each.")
        self._counts += self.count(predictions, references)
        self._examples += len(predictions)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one example."""
        if prediction is None or reference is None:
            raise ValueError(f"{type(self).__name__} needs both a prediction and a reference.")
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The scores of everything added, and of the batch given here; then start anew.

        Raises ValueError where no process has added an example.
        """
        if predictions is not None or references is not None or kwargs:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        totals = self._gather()
        self._reset()
        if totals is None:
            return None
        if totals[0] == 0:
            raise ValueError(f"{type(self).__name__} has nothing to compute; call add or add_batch before compute.")
        return self.result(totals[1:], int(totals[0]))

    def __len__(self) -> int:
        return self._examples

    def _reset(self) -> None:
        self._examples = 0
        self._counts: Counts = np.zeros(self._length, dtype=np.int64)

    def _gather(self) -> Counts | None:
        """Examples and counts summed over the processes, None on all but the main one."""
        row = np.concatenate([[self._examples], self._counts])
        if self.num_process == 1:
            return row
        super().add_batch(counts=[row])
        gathered = super().compute()
        return None if gathered is None else gathered["totals"]

    def _compute(self, *, counts: Any, **_: Any) -> dict[str, Any]:
        return {"totals": np.asarray(counts, dtype=np.int64).sum(axis=0)}

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"counts": datasets.Sequence(datasets.Value("int64"))})
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation="", features=features)
