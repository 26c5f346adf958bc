"""Top-k accuracy of scores, as an `evaluate` metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .evidence_metric import Array, Counts, EvidenceMetric, as_array, as_integers


class TopKAccuracy(EvidenceMetric):
    """The share of images whose label is among the k largest scores.

    Predictions are scores (B, num_labels), references labels (B,). `compute()` returns {"top1_accuracy": ...,
    "top5_accuracy": ...}, floats in [0, 1]. Of equal scores the lower label comes first, so that constant scores earn
    no more than chance.

    Args:
        k: one number or several.
        evaluate_kwargs: `num_process`, `process_id`, `experiment_id`, `cache_dir`, ... of `evaluate.Metric`.
    """

    def __init__(self, k: int | Sequence[int] = (1, 5), **evaluate_kwargs: Any) -> None:
        self.k = (k,) if isinstance(k, int) else tuple(k)
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k is {k}, expected numbers of at least 1.")
        super().__init__(np.zeros(len(self.k), dtype=np.int64), **evaluate_kwargs)

    def count(self, predictions: Any, references: Any) -> Counts:
        """How many labels are among the k largest scores, for each k."""
        scores, labels = _scores(predictions), as_integers(references, "references")
        if labels.shape != scores.shape[:1]:
            raise ValueError(
                f"references have shape {labels.shape}, expected one label for each row of {scores.shape}."
            )
        num_labels = scores.shape[1]
        if max(self.k) > num_labels:
            raise ValueError(f"top-{max(self.k)} accuracy needs as many labels, the scores have {num_labels}; lower k.")
        if labels.size and (labels.min() < 0 or labels.max() >= num_labels):
            raise ValueError(f"references lie in [{labels.min()}, {labels.max()}], expected [0, {num_labels}).")
        columns = labels[:, None].astype(np.int64)
        own = np.take_along_axis(scores, columns, axis=1)
        before = (scores > own) | ((scores == own) & (np.arange(num_labels) < columns))
        rank = before.sum(axis=1)
        return np.array([(rank < k).sum() for k in self.k], dtype=np.int64)

    def result(self, counts: Counts, examples: int) -> dict[str, Any]:
        return {f"top{k}_accuracy": float(hits / examples) for k, hits in zip(self.k, counts, strict=True)}


def _scores(values: Any) -> Array:
    scores = as_array(values)
    if scores.ndim != 2:
        raise ValueError(f"predictions have shape {scores.shape}, expected scores (batch, num_labels).")
    if np.isnan(scores).any():
        raise ValueError("predictions hold NaN; expected scores, one for each label.")
    return scores
