"""Mean IoU on the CPU: our metric, the published algorithm alone, and as `evaluate` runs it.

    python -m benchmarks.mean_iou

512x683 maps of 150 labels, smooth as a model's logits are, a fifth of the pixels wrong, a twentieth ignored. Times are
those of adding all images one by one and computing the score; candidates alternate round after round in one process,
and ratios are medians. All have to print the same score.
"""

import statistics
import time
from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch.nn import functional as F

from hf_pvt.metrics import MeanIoU

SIZE, LABELS, IGNORED = (512, 683), 150, 255
IMAGES, ROUNDS = 8, 5


def add_published(totals: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> None:
    """Three histograms for each image, as the published evaluations have it; totals (3, LABELS)."""
    labelled = reference != IGNORED
    prediction, reference = prediction[labelled], reference[labelled]
    for total, labels in zip(totals, (prediction[prediction == reference], prediction, reference), strict=True):
        total += np.histogram(labels, bins=LABELS, range=(0, LABELS - 1))[0]


def published_score(totals: np.ndarray) -> float:
    intersection, predicted, labelled = totals
    return float(np.nanmean(intersection / (predicted + labelled - intersection)))


class Published:
    """The published algorithm, holding three histograms."""

    def __init__(self) -> None:
        self.totals = np.zeros((3, LABELS))

    def add(self, prediction: np.ndarray, reference: np.ndarray) -> None:
        add_published(self.totals, prediction, reference)

    def compute(self) -> dict[str, float]:
        return {"mean_iou": published_score(self.totals)}


class AsEvaluate(evaluate.Metric):
    """The published algorithm behind `evaluate`'s usual interface, as its own mean_iou: all maps go to disk first."""

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        features = datasets.Features({"predictions": label_map, "references": label_map})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        totals = np.zeros((3, LABELS))
        for prediction, reference in zip(predictions, references, strict=True):
            add_published(totals, np.array(prediction), np.array(reference))
        return {"mean_iou": published_score(totals)}


def label_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and its reference: logits of a fourth of the size, enlarged as the evaluations do."""
    torch.manual_seed(seed)
    enlarge = partial(F.interpolate, mode="bilinear", align_corners=False)
    logits, noise = (enlarge(torch.randn(1, LABELS, *size), size=(128, 171)) for size in ((9, 11), (40, 50)))
    true, prediction = (enlarge(logits + share * noise, size=SIZE).argmax(1)[0].numpy() for share in (0, 0.15))
    return prediction, np.where(np.random.default_rng(seed).random((SIZE[0], 1)) < 0.05, IGNORED, true)


def seconds_of(metric: Any, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Seconds for each image, and the score."""
    start = time.perf_counter()
    for prediction, reference in pairs:
        metric.add(prediction=prediction, reference=reference)
    score = metric.compute()["mean_iou"]
    return (time.perf_counter() - start) / len(pairs), score


def main() -> None:
    smooth = [label_maps(seed) for seed in range(IMAGES)]
    candidates = {
        "ours": lambda: MeanIoU(LABELS, ignore_index=IGNORED),
        "published": Published,
        "evaluate": AsEvaluate,
    }
    for kinds in (("uint8", "uint8"), ("int64", "uint8"), ("int64", "int64")):
        pairs = [(prediction.astype(kinds[0]), reference.astype(kinds[1])) for prediction, reference in smooth]
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        scores = set()
        for _ in range(ROUNDS):
            for name, build in candidates.items():
                time_of_image, score = seconds_of(build(), pairs)
                seconds[name].append(time_of_image)
                scores.add(f"{score:.6f}")
        assert len(scores) == 1, scores
        for name, times in seconds.items():
            ratio = statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True))
            print(f"{kinds}: {name:10} {1 / statistics.median(times):6.0f} images/s, {ratio:6.1f} x our time")


if __name__ == "__main__":
    main()
