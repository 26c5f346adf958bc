"""Soft Dice against loops over one-hot maps and scikit-learn, and however a step's images are divided."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from families import PVT_V2
from run_semantic_segmentation import Segmentation
from segmentation_runs import configuration, flags, run, write_png
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from hf_pvt.metrics import MeanIoU
from hf_pvt.training.segmentation_loss import SegmentationLoss, soft_dice_loss

IGNORED = 255
CONFIG = PreTrainedConfig(semantic_loss_ignore_index=IGNORED, semantic_loss_class_weights=None)


def label_maps(images: int, num_labels: int, seed: int = 0, size: tuple[int, int] = (12, 16)) -> Tensor:
    """(B, H, W): fewer labels from image to image, more and more ignored."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for image in range(images):
        labels = torch.randint(0, max(1, num_labels - image), size, generator=generator)
        ignored = torch.rand(size, generator=generator) < image / images
        maps.append(labels.masked_fill(ignored, IGNORED))
    return torch.stack(maps)


def by_loops(logits: Tensor, labels: Tensor) -> Tensor:
    """One image, one label, one one-hot map at a time."""
    images = []
    for scores, label_map in zip(logits, labels, strict=True):
        known = label_map != IGNORED
        probabilities, truth = scores[:, known].softmax(0), label_map[known]  # (K, n), (n,)
        dice = []
        for label in truth.unique():
            p, y = probabilities[label], (truth == label).to(scores.dtype)
            dice.append(2 * (p * y).sum() / (p.sum() + y.sum()))
        if dice:
            images.append(1 - torch.stack(dice).mean())
    return torch.stack(images).mean()


@pytest.mark.parametrize(("num_labels", "seed"), [(2, 0), (150, 1)])
def test_formula_and_gradient(num_labels: int, seed: int) -> None:
    """The last image has no labelled pixel and is in no mean."""
    labels = label_maps(4, num_labels, seed)
    labels[3] = IGNORED
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, num_labels, 12, 16, generator=generator, dtype=torch.float64)
    results = []
    for loss_of in (lambda x: soft_dice_loss(x, labels, IGNORED), lambda x: by_loops(x, labels)):
        given = logits.clone().requires_grad_()
        loss = loss_of(given)
        loss.backward()
        results.append((loss.detach(), given.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)
    assert 0 < results[0][0] < 1 and not results[0][1][3].any()


def test_of_certain_predictions_it_is_one_minus_f1() -> None:
    """scikit-learn's, of each label that an image has; pixels without a label count nowhere."""
    labels, predicted = label_maps(3, 4), label_maps(1, 4, seed=1)[0].expand(3, -1, -1)
    logits = 1e4 * F.one_hot(predicted, 4).movedim(3, 1).double()  # (B, K, H, W)
    means = []
    for label_map, prediction in zip(labels.flatten(1).numpy(), predicted.flatten(1).numpy(), strict=True):
        known = label_map != IGNORED
        names = np.unique(label_map[known])
        means.append(f1_score(label_map[known], prediction[known], labels=names, average="macro"))
    assert soft_dice_loss(logits, labels, IGNORED).item() == pytest.approx(1 - np.mean(means), abs=1e-12)


def test_perfect_and_wrong() -> None:
    labels = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    right = 1e4 * F.one_hot(labels, 3).movedim(3, 1).float()
    assert soft_dice_loss(right, labels, IGNORED) == 0
    assert soft_dice_loss(right.roll(1, dims=1), labels, IGNORED) == 1


@pytest.mark.parametrize("name", ["cross_entropy", "dice+cross_entropy"])
def test_no_labelled_pixel(name: Any) -> None:
    labels = torch.full((2, 12, 16), IGNORED)
    model = Pixelwise(3)
    loss = SegmentationLoss(name, CONFIG)
    batch = {"pixel_values": torch.randn(2, 3, 12, 16), "labels": labels}
    terms = loss(model, batch)
    terms.sum().backward()
    assert not terms.any() and all(not parameter.grad.any() for parameter in model.parameters())
    assert not loss.amounts(batch).any()
    task = Segmentation(Accelerator(cpu=True), loss, None, None)  # type: ignore[arg-type]
    assert not task.shares([batch, batch]).any()


class Pixelwise(nn.Module):
    """Logits (B, K, H/2, W/2), and cross-entropy, as segmenters give them, without batch norm."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.GELU(), nn.Conv2d(8, num_labels, 1))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.layers(pixel_values)
        if labels is None:
            return SimpleNamespace(logits=logits)
        scores = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        count = (labels != IGNORED).sum().clamp(min=1)
        return SimpleNamespace(loss=F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum") / count)


def step_gradients(name: Any, parts: Sequence[slice], by_shares: bool = True) -> list[Tensor]:
    """Of one step over images that are accumulated in these parts, as the loop does it."""
    labels = label_maps(4, 3)
    labels[2] = IGNORED
    pixel_values = torch.randn(4, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    model = Pixelwise(3)
    task = Segmentation(Accelerator(cpu=True), SegmentationLoss(name, CONFIG), None, None)  # type: ignore[arg-type]
    batches = [{"pixel_values": pixel_values[part], "labels": labels[part]} for part in parts]
    for batch, share in zip(batches, task.shares(batches), strict=True):
        ((share if by_shares else 1) * task.loss(model, batch)).sum().div(len(parts)).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["cross_entropy", "dice+cross_entropy"])
def test_however_a_step_is_divided(name: Any) -> None:
    """Though images differ in labelled pixels, and one has none."""
    whole = step_gradients(name, [slice(0, 4)])
    for parts in ([slice(0, 2), slice(2, 4)], [slice(i, i + 1) for i in range(4)]):
        torch.testing.assert_close(step_gradients(name, parts), whole, rtol=0, atol=1e-6)
        plain = step_gradients(name, parts, by_shares=False)
        assert max((a - b).abs().max().item() for a, b in zip(plain, whole, strict=True)) > 1e-3


def test_terms_are_the_model_s_cross_entropy_and_dice() -> None:
    """With class weights, at the label maps' size; gradients reach every weight."""
    config = PVT_V2.tiny_config(num_labels=3, semantic_loss_class_weights=[1.0, 2.0, 5.0])
    torch.manual_seed(0)
    model = PVT_V2.segmenter(config)
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": label_maps(2, 3, size=(64, 64))}
    alone = SegmentationLoss("cross_entropy", config)(model.eval(), batch)
    terms = SegmentationLoss("dice+cross_entropy", config)(model, batch)
    assert alone.shape == (1,) and terms.shape == (2,)
    torch.testing.assert_close(terms[0], alone[0])
    logits = F.interpolate(model(batch["pixel_values"]).logits, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(terms[1], by_loops(logits, batch["labels"]))
    terms[1].backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_rare_labels_are_found() -> None:
    """Three pixels of 100 are foreground and look a little different: cross-entropy alone finds hardly any."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(8, 64, 64, generator=generator) < 0.03).long()
    pixel_values = torch.randn(8, 1, 64, 64, generator=generator) + 1.5 * labels[:, None]
    dice = {}
    for name in ("cross_entropy", "dice+cross_entropy"):
        weights = torch.zeros(2, 2, requires_grad=True)  # scale and offset of each label's logit
        loss = SegmentationLoss(name, CONFIG)  # type: ignore[arg-type]

        def model(pixel_values: Tensor, labels: Tensor | None = None, w: Tensor = weights) -> SimpleNamespace:
            logits = w[0, :, None, None] * pixel_values + w[1, :, None, None]  # (B, 2, H, W)
            return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))

        optimizer = torch.optim.Adam([weights], lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss(model, {"pixel_values": pixel_values, "labels": labels}).sum().backward()  # type: ignore[arg-type]
            optimizer.step()
        predictions = model(pixel_values).logits.argmax(1)
        dice[name] = MeanIoU(2).compute(predictions=predictions, references=labels)["per_category_dice"][1]
    assert dice["cross_entropy"] < 0.15 and dice["dice+cross_entropy"] > 0.2


def test_run(tmp_path: Path) -> None:
    """Dice is in results.json and the card, and the loss is learnt from: the weights are others'."""
    random = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 3)):
        for index in range(count):
            labels = np.zeros((64, 64), np.uint8)
            labels[20:40, 10 + 4 * index : 30] = 1
            image = (random.integers(0, 100, (64, 64, 3)) + 100 * labels[..., None]).astype(np.uint8)
            write_png(tmp_path / "images" / split / f"{index}.png", image)
            write_png(tmp_path / "annotations" / split / f"{index}.png", labels)
    (tmp_path / "labels.json").write_text('["background", "lesion"]')
    start = configuration(tmp_path)
    results = [
        run(flags(tmp_path, tmp_path / name, from_scratch=start, loss=name, max_grad_norm=1))
        for name in ("cross_entropy", "dice+cross_entropy")
    ]
    plain, mixed = (result["metrics"] for result in results)
    assert [result["arguments"]["loss"] for result in results] == ["cross_entropy", "dice+cross_entropy"]
    assert len(mixed["per_category_dice"]) == 2 and 0 < mixed["mean_dice"] <= 1
    assert mixed["mean_dice"] == pytest.approx(np.nanmean(np.array(mixed["per_category_dice"], dtype=float)))
    assert mixed["mean_dice"] != plain["mean_dice"]
    assert "| mean_dice" in (tmp_path / "dice+cross_entropy" / "model" / "README.md").read_text()
