"""Mean IoU and Dice of label maps, as an `evaluate` metric."""

from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from .evidence_metric import Array, Counts, EvidenceMetric, as_integers


class MeanIoU(EvidenceMetric):
    """Intersection over union of semantic segmentation, as MMSegmentation and `evaluate` define it.

    Predictions and references are label maps (H, W) of integers, or batches of them: arrays, tensors, or lists whose
    maps may differ in size. `compute()` returns mean_iou, mean_accuracy, mean_dice and overall_accuracy (floats in
    [0, 1]), and per_category_iou, per_category_accuracy and per_category_dice, float64 arrays (num_labels,). Dice is
    2 |A and B| / (|A| + |B|) of all images' pixels together, which is the F1 score, and not a mean over images. A label
    that is in neither predictions nor references is NaN and left out of the means, which are of fewer labels then: say
    so beside them. Pixels whose reference is `ignore_index` count nowhere.

    Args:
        num_labels: predictions lie in [0, num_labels), references too or are `ignore_index`.
        ignore_index: the reference of pixels without a label. Default: 255, or none where 255 is a label's number.
        reduce_labels: references count from 1 and 0 is no label: 0 is ignored, the others but `ignore_index` shift down
            by one, as ADE20K's published annotations want it.
        evaluate_kwargs: `num_process`, `process_id`, `experiment_id`, `cache_dir`, ... of `evaluate.Metric`.
    """

    def __init__(
        self, num_labels: int, ignore_index: int | None = None, reduce_labels: bool = False, **evaluate_kwargs: Any
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}, expected at least 1.")
        self.num_labels = num_labels
        self._labels = slice(int(reduce_labels), int(reduce_labels) + num_labels)  # those that references name
        default = 255 if self._labels.stop <= 255 else -100
        self.ignore_index = default if ignore_index is None else ignore_index
        # One row for each value of a byte, which is counted before it is judged, and one for other ignored references.
        self._rows = max(256, self._labels.stop) + 1
        fits = self._rows * num_labels <= 2**16  # narrow numbers are quick
        self._label_type: DTypeLike = np.uint8 if fits else np.int32
        self._cell_type: DTypeLike = np.uint16 if fits else np.int32
        self._tables = 4 if fits else 1
        super().__init__(np.zeros(num_labels * num_labels, dtype=np.int64), **evaluate_kwargs)

    def count(self, predictions: Any, references: Any) -> Counts:
        """The flattened confusion matrix: references in rows, predictions in columns."""
        confusion = np.zeros((self.num_labels, self.num_labels), dtype=np.int64)
        for prediction, reference in zip(predictions, references, strict=True):
            confusion += self._confusion(_label_map(prediction, "prediction"), _label_map(reference, "reference"))
        return confusion.ravel()

    def result(self, counts: Counts, examples: int) -> dict[str, Any]:
        confusion = counts.reshape(self.num_labels, self.num_labels)
        intersection, labelled, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an absent label
            iou = intersection / (labelled + predicted - intersection)
            accuracy, dice = intersection / labelled, 2 * intersection / (labelled + predicted)
            return {
                "mean_iou": _mean_of_present(iou),
                "mean_accuracy": _mean_of_present(accuracy),
                "mean_dice": _mean_of_present(dice),
                "overall_accuracy": float(intersection.sum() / labelled.sum()),
                "per_category_iou": iou,
                "per_category_accuracy": accuracy,
                "per_category_dice": dice,
            }

    def _confusion(self, prediction: Array, reference: Array) -> Counts:
        """The confusion matrix of one pair: all cells of reference rows and prediction columns in one bincount."""
        if prediction.shape != reference.shape:
            raise ValueError(
                f"a prediction has shape {prediction.shape}, its reference {reference.shape}; expected equal shapes, "
                "resize the logits before their argmax."
            )
        if _highest(prediction) >= self.num_labels:
            self._refuse("prediction", prediction, (prediction < 0) | (prediction >= self.num_labels))
        # torch.bincount is twice as fast as numpy's, which widens to int64. Neighbours mostly share their cell, and an
        # addition waits for the one before to the same address: so they take turns in several tables.
        size, tables = self._rows * self.num_labels, self._tables
        cells = np.multiply(self._to_rows(reference), self.num_labels, dtype=self._cell_type)
        cells += prediction.astype(self._label_type, copy=False)
        cells = cells.astype(np.int32, copy=False)
        cells += np.arange(cells.shape[1], dtype=np.int32) % tables * size
        counts = torch.bincount(torch.from_numpy(cells.ravel()), minlength=tables * size).view(tables, -1).sum(0)
        return self._labelled(counts.numpy().reshape(self._rows, self.num_labels), reference)

    def _to_rows(self, reference: Array) -> Array:
        if _highest(reference) < 256:
            return reference.astype(np.uint8, copy=False)
        ignored = reference == self.ignore_index
        strangers = ((reference < 0) | (reference >= self._labels.stop)) & ~ignored
        if strangers.any():
            self._refuse("reference", reference, strangers)
        return np.where(ignored, self._rows - 1, reference).astype(self._cell_type)

    def _labelled(self, counts: Counts, reference: Array) -> Counts:
        """The rows of labels. Those of ignored references are dropped, all others have to be empty."""
        counts[-1] = 0
        if 0 <= self.ignore_index < self._rows:
            counts[self.ignore_index] = 0
        if counts[self._labels.stop :].any():
            strangers = (reference >= self._labels.stop) & (reference != self.ignore_index)
            self._refuse("reference", reference, strangers)
        return counts[self._labels]

    def _refuse(self, name: str, label_map: Array, strangers: NDArray[np.bool_]) -> NoReturn:
        labels = range(self.num_labels) if name == "prediction" else range(self._labels.start, self._labels.stop)
        ignored = "" if name == "prediction" else f" or ignore_index {self.ignore_index}"
        raise ValueError(
            f"a {name} holds {label_map[strangers][0]}, expected labels in [{labels.start}, {labels.stop}){ignored}."
        )


def _label_map(values: Any, name: str) -> Array:
    label_map = as_integers(values, f"{name}s")
    if label_map.ndim != 2:
        raise ValueError(f"a {name} has shape {label_map.shape}, expected a label map (height, width).")
    return label_map


def _highest(label_map: Array) -> int:
    """The highest label, in one pass over the map; a negative one, seen as unsigned, is higher than all."""
    return int(label_map.view(f"u{label_map.itemsize}").max(initial=0))


def _mean_of_present(values: NDArray[np.float64]) -> float:
    """The mean of the numbers that are not NaN, NaN where there is none (np.nanmean would warn)."""
    return float(np.nansum(values) / np.count_nonzero(~np.isnan(values)))
