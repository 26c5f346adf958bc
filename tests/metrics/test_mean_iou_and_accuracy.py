"""The metrics against the published algorithm and torch.topk; in two processes see test_two_processes.py."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from hf_pvt.metrics import MeanIoU, TopKAccuracy

RANDOM = np.random.default_rng(0)
SCORES = ("mean_iou", "mean_accuracy", "mean_dice", "overall_accuracy")
SCORES += ("per_category_iou", "per_category_accuracy", "per_category_dice")


def published(predictions: Any, references: Any, num_labels: int, ignore_index: int = 255) -> dict[str, Any]:
    """Three histograms for each image, as the published evaluations have it, and scikit-learn's F1, which is Dice."""
    totals = np.zeros((3, num_labels))
    pixels = [(p[r != ignore_index], r[r != ignore_index]) for p, r in zip(predictions, references, strict=True)]
    predicted, labelled = (np.concatenate(each) for each in zip(*pixels, strict=True))
    dice = f1_score(labelled, predicted, labels=range(num_labels), average=None, zero_division=np.nan)
    for prediction, reference in zip(predictions, references, strict=True):
        labelled = reference != ignore_index
        prediction, reference = prediction[labelled], reference[labelled]
        for total, labels in zip(totals, (prediction[prediction == reference], prediction, reference), strict=True):
            total += np.histogram(labels, bins=num_labels, range=(0, num_labels - 1))[0]
    intersection, predicted, labelled = totals
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersection / (predicted + labelled - intersection), intersection / labelled
    overall = intersection.sum() / labelled.sum()
    means = (np.nanmean(iou), np.nanmean(accuracy), np.nanmean(dice), overall)
    return dict(zip(SCORES, (*means, iou, accuracy, dice), strict=True))


def label_maps(num_labels: int, images: int = 4, ignore_index: int = 255) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and references of different sizes, half of the pixels right, a tenth ignored."""
    sizes = [(20 + 3 * i, 31 - i) for i in range(images)]
    references = [RANDOM.integers(0, num_labels, size) for size in sizes]
    predictions = [
        np.where(RANDOM.random(r.shape) < 0.5, r, RANDOM.integers(0, num_labels, r.shape)) for r in references
    ]
    return predictions, [np.where(RANDOM.random(r.shape) < 0.1, ignore_index, r) for r in references]


def assert_same(scores: Any, expected: dict[str, Any]) -> None:
    assert list(scores) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(scores[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("num_labels", "ignore_index", "kind"),
    [
        (1, 255, "uint8"),
        (7, 255, "int32"),
        (150, 255, "uint8"),
        (150, 255, "torch"),
        (150, 0, "int64"),
        (150, 0, "torch"),
        (150, 7, "uint8"),
        # wider than a byte
        (150, -100, "int64"),
        (150, 65535, "int32"),
        (255, 255, "torch"),
        (256, -1, "int64"),
        (300, 299, "int64"),
    ],
)
def test_published_algorithm(num_labels: int, ignore_index: int, kind: str) -> None:
    predictions, references = label_maps(num_labels, ignore_index=ignore_index)
    expected = published(predictions, references, num_labels, ignore_index)
    if kind == "torch":
        predictions, references = ([torch.from_numpy(m) for m in maps] for maps in (predictions, references))
    else:
        predictions, references = ([m.astype(kind) for m in maps] for maps in (predictions, references))
    metric = MeanIoU(num_labels, ignore_index)
    assert_same(metric.compute(predictions=predictions, references=references), expected)


def test_255_is_ignored_where_it_is_no_label() -> None:
    """By default; with more labels it counts."""
    for num_labels, reduced, expected in ((255, False, 1.0), (254, True, 1.0), (256, False, 0.5), (255, True, 0.5)):
        prediction, reference = np.array([[0, 0]]), np.array([[255, int(reduced)]])
        metric = MeanIoU(num_labels, reduce_labels=reduced)
        scores = metric.compute(predictions=[prediction], references=[reference])
        assert scores["overall_accuracy"] == expected, (num_labels, reduced)


def test_chunks_and_reset() -> None:
    """However the images are handed over the scores are the same, and computing starts anew."""
    predictions, references = label_maps(7)
    expected = published(predictions, references, 7)
    metric = MeanIoU(7)
    for i in range(2):
        metric.add(prediction=predictions[i], reference=references[i])
    metric.add_batch(predictions=predictions[2:], references=references[2:])
    assert len(metric) == 4
    assert_same(metric.compute(), expected)
    assert len(metric) == 0
    stacked = [np.stack([m[:20, :28] for m in maps]) for maps in (predictions, references)]
    assert_same(metric.compute(predictions=stacked[0], references=stacked[1]), published(*stacked, 7))


def test_absent_and_unlabelled() -> None:
    prediction, reference = np.array([[0, 0, 1, 3]]), np.array([[0, 1, 1, 255]])
    scores = MeanIoU(4).compute(predictions=[prediction], references=[reference])
    np.testing.assert_array_equal(scores["per_category_iou"], [0.5, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(scores["per_category_dice"], [2 / 3, 2 / 3, np.nan, np.nan])
    assert (scores["mean_iou"], scores["mean_accuracy"], scores["overall_accuracy"]) == (0.5, 0.75, 2 / 3)
    assert scores["mean_dice"] == 2 / 3
    nothing = MeanIoU(4).compute(predictions=[prediction], references=[np.full_like(reference, 255)])
    assert np.isnan([nothing["mean_iou"], nothing["mean_dice"], nothing["overall_accuracy"]]).all()


@pytest.mark.parametrize(("ignore_index", "kind"), [(255, "uint8"), (0, "uint8"), (255, "int64")])
def test_reduce_labels(ignore_index: int, kind: str) -> None:
    """References count from 1: their 0 and ignore_index are ignored."""
    predictions, references = label_maps(150)
    raw = [np.where(r == 255, RANDOM.choice([0, ignore_index], r.shape), r + 1).astype(kind) for r in references]
    scores = MeanIoU(150, ignore_index, reduce_labels=True).compute(predictions=predictions, references=raw)
    assert_same(scores, published(predictions, references, 150))


BAD_LABEL_MAPS: list[tuple[Any, Any, str]] = [
    (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\), its reference \(3, 2\)"),
    (np.full((2, 3), 7), np.zeros((2, 3), int), r"a prediction holds 7, expected labels in \[0, 7\)"),
    (np.full((2, 3), -1), np.zeros((2, 3), int), "a prediction holds -1"),
    (np.full((2, 3), 255, np.uint8), np.zeros((2, 3), int), "a prediction holds 255"),
    (np.zeros((2, 3), int), np.full((2, 3), 7, np.uint8), r"a reference holds 7, .*\[0, 7\) or ignore_index 255"),
    (np.zeros((2, 3), int), np.full((2, 3), 256), "a reference holds 256"),
    (np.zeros((2, 3), int), np.full((2, 3), -1), "a reference holds -1"),
    (np.zeros((2, 3)), np.zeros((2, 3), int), "predictions hold float64, expected integers"),
    (np.zeros((2, 3), int), torch.zeros(2, 3, dtype=torch.bfloat16), "references hold float32, expected integers"),
    (np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int), r"expected a label map \(height, width\)"),
    (None, np.zeros((2, 3), int), "both a prediction and a reference"),
]


def test_refused_label_maps() -> None:
    metric = MeanIoU(7)
    for prediction, reference, message in BAD_LABEL_MAPS:
        with pytest.raises(ValueError) as caught:
            metric.add(prediction=prediction, reference=reference)
        assert re.search(message, str(caught.value)), (message, caught.value)
        assert len(metric) == 0, message


def test_refused_batches() -> None:
    """A refused batch leaves what was added before."""
    metric, good, bad = MeanIoU(7), np.zeros((2, 3), int), np.full((2, 3), 9)
    metric.add(prediction=good, reference=good)
    with pytest.raises(ValueError, match="a prediction holds 9"):
        metric.add_batch(predictions=[good + 1, bad], references=[good, good])
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        metric.add_batch(predictions=[good, good], references=[good])
    with pytest.raises(ValueError, match="both predictions and references"):
        metric.compute(predictions=[good])
    with pytest.raises(ValueError, match="not 'masks'"):
        metric.add_batch(predictions=[good], references=[good], masks=[good])
    assert metric.compute()["overall_accuracy"] == 1.0
    with pytest.raises(ValueError, match="MeanIoU has nothing to compute; call add or add_batch before"):
        metric.compute()
    with pytest.raises(ValueError, match="num_labels is 0"):
        MeanIoU(0)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "list"])
def test_top_k(kind: str) -> None:
    scores = torch.from_numpy(RANDOM.permuted(np.tile(np.arange(12.0), (40, 1)), axis=1))
    labels = torch.from_numpy(RANDOM.integers(0, 12, 40))
    hits = {k: (scores.topk(k).indices == labels[:, None]).any(1).double().mean().item() for k in (1, 3, 12)}
    metric = TopKAccuracy((1, 3, 12))
    given = list(scores.bfloat16()) if kind == "list" else scores.to(getattr(torch, kind))
    metric.add_batch(predictions=given[:25], references=labels[:25])
    metric.add_batch(predictions=given[25:], references=labels[25:].tolist())
    expected = {f"top{k}_accuracy": hit for k, hit in hits.items()}
    assert metric.compute() == expected
    assert 0 < expected["top1_accuracy"] < expected["top3_accuracy"] < expected["top12_accuracy"] == 1


def test_top_k_of_equal_scores() -> None:
    """The lower label comes first, so that a constant model is right no more than by chance."""
    scores = TopKAccuracy((1, 5)).compute(predictions=np.zeros((10, 10)), references=np.arange(10))
    assert scores == {"top1_accuracy": 0.1, "top5_accuracy": 0.5}
    assert TopKAccuracy(1).compute(predictions=[[0.0, 0.0]], references=[0]) == {"top1_accuracy": 1.0}
    assert TopKAccuracy(1).compute(predictions=[[0.0, 1.0]], references=[1]) == {"top1_accuracy": 1.0}


BAD_SCORES: list[tuple[np.ndarray, list[Any], str]] = [
    (np.zeros((2, 6)), [0, 6], r"references lie in \[0, 6\], expected \[0, 6\)"),
    (np.zeros((2, 6)), [-1, 5], r"references lie in \[-1, 5\]"),
    (np.zeros((2, 6)), [0.0, 1.0], "references hold float64"),
    (np.zeros((2, 6)), [[0], [1]], r"references have shape \(2, 1\)"),
    (np.zeros(2), [0, 1], r"predictions have shape \(2,\), expected scores"),
    (np.full((2, 6), np.nan), [0, 1], "predictions hold NaN"),
    (np.zeros((2, 4)), [0, 1], "top-5 accuracy needs as many labels, the scores have 4"),
]


def test_refused_scores() -> None:
    for scores, labels, message in BAD_SCORES:
        with pytest.raises(ValueError) as caught:
            TopKAccuracy().add_batch(predictions=scores, references=labels)
        assert re.search(message, str(caught.value)), (message, caught.value)
    for k in (0, (1, 0), ()):
        with pytest.raises(ValueError, match="expected numbers of at least 1"):
            TopKAccuracy(k)
