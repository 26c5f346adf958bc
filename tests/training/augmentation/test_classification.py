"""What the published recipe adds to torchvision's augmentation does what it says."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from run_image_classification import RECIPES, Classification, ClassificationArguments, TrainingView
from torch import nn
from torch.nn import functional as F

import hf_pvt
from hf_pvt.training.augmentation.classification import OPERATIONS, Mixing, RandAugment


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def photo() -> Image.Image:
    """Grey values of every kind, no two rows or columns alike."""
    y, x = np.mgrid[0:40, 0:40]
    return Image.fromarray(np.stack((3 * x + 3 * y, 6 * x, 255 - 6 * y), axis=2).clip(0, 255).astype(np.uint8))


def arguments(recipe: str, **fields: object) -> ClassificationArguments:
    known = ClassificationArguments.__dataclass_fields__
    return ClassificationArguments(**({k: v for k, v in RECIPES[recipe].items() if k in known} | fields))  # type: ignore[arg-type]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images, each full of its own number, of eight labels."""
    labels = torch.arange(8)
    return labels[:, None, None, None].float().expand(8, 3, 16, 16).clone(), labels


def test_mixup_mixes_images_as_their_targets_say() -> None:
    images, targets = Mixing(0.8, 0.0, num_labels=10)(*batch())
    assert targets.shape == (8, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    assert ((targets > 0).sum(1) == 2).all()  # two different images
    # An image full of its label's number is, mixed, full of the expected number.
    expected = (targets * torch.arange(10)).sum(1)
    torch.testing.assert_close(images, expected[:, None, None, None].expand_as(images))


def test_cutmix_gives_a_rectangle_of_another_image() -> None:
    mixing = Mixing(0.0, 1.0, num_labels=10)
    images, targets = mixing(*batch())
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    for image, target in zip(images, targets, strict=True):
        found, pixels = image[0].unique(return_counts=True)
        assert len(found) == 2  # no pixel is mixed
        torch.testing.assert_close(target[found.long()], pixels / 256)
        changed = (image[0] == found[pixels.argmin()]).nonzero()
        top, left = changed.min(0).values
        bottom, right = changed.max(0).values
        assert len(changed) == (bottom - top + 1) * (right - left + 1)


def test_both_take_turns_and_none_changes_nothing() -> None:
    mixing = Mixing(0.8, 1.0, num_labels=10)
    integral = [bool((mixing(*batch())[0] % 1 == 0).all()) for _ in range(200)]  # CutMix leaves numbers whole
    assert 0.4 < np.mean(integral) < 0.6
    images, labels = batch()
    same_images, same_labels = Mixing(0.0, 0.0, num_labels=10)(images, labels)
    assert same_images is images and same_labels is labels


def test_copies_of_an_image_are_not_mixed_with_each_other() -> None:
    """torchvision mixes neighbours; with three copies in a row most of them would be the same image."""
    labels = torch.arange(30).repeat_interleave(3)
    images = torch.zeros(90, 3, 4, 4)
    _, targets = Mixing(0.8, 0.0, num_labels=30)(images, labels)
    assert ((targets > 0).sum(1) == 2).float().mean() > 0.9


class Fixed(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixel_values: torch.Tensor) -> "Fixed":
        return self


def test_label_smoothing() -> None:
    logits, labels = torch.randn(4, 7), torch.tensor([0, 3, 6, 3])
    task = Classification(arguments("finetune", label_smoothing=0.1), 7, None, None)
    loss = task.loss(Fixed(logits), {"pixel_values": torch.zeros(4, 3, 8, 8), "labels": labels})
    smooth = torch.full((4, 7), 0.1 / 7)
    smooth[range(4), labels] += 0.9
    torch.testing.assert_close(loss, -(smooth * F.log_softmax(logits, dim=1)).sum(1).mean())


def test_the_loss_of_mixed_targets_is_smoothed_too() -> None:
    logits = torch.randn(8, 10)
    task = Classification(arguments("pvt-imagenet"), 10, None, None)
    images, labels = batch()
    torch.manual_seed(3)
    loss = task.loss(Fixed(logits), {"pixel_values": images, "labels": labels})
    torch.manual_seed(3)
    _, targets = Mixing(0.8, 1.0, num_labels=10)(images, labels)
    smooth = 0.9 * targets + 0.1 / 10
    torch.testing.assert_close(loss, -(smooth * F.log_softmax(logits, dim=1)).sum(1).mean())


def test_levels_of_rand_augment() -> None:
    """Magnitude 9 with deviation 0.5, within [0, 10]."""
    levels = torch.tensor([RandAugment().level() for _ in range(4000)])
    assert levels.max() == 1.0 and levels.min() > 0.65
    inside = levels[levels < 1]
    assert abs(levels.median() - 0.9) < 0.003
    assert abs((0.9 - inside[inside < 0.9]).square().mean().sqrt() - 0.05) < 0.003
    assert abs((levels == 1).float().mean() - 0.0228) < 0.01  # two deviations and more
    assert {RandAugment(std=0.0).level() for _ in range(10)} == {0.9}


def test_rand_augment_draws_two_operations_and_applies_half_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, *_, name=name: applied.append(name) or image)
    counts = []
    for _ in range(2000):
        before = len(applied)
        RandAugment()(photo())
        counts.append(len(applied) - before)
    assert np.allclose([counts.count(n) / 2000 for n in (0, 1, 2)], [0.25, 0.5, 0.25], atol=0.04)
    shares = [applied.count(name) / len(applied) for name in OPERATIONS]
    assert len(shares) == 15 and np.allclose(shares, 1 / 15, atol=0.025)


def test_operations_grow_with_the_level() -> None:
    """Each level further from the image than the one before, and the lowest, of all but three, the image itself."""
    noise = np.random.default_rng(0).integers(-8, 9, size=(40, 40, 3))
    pixels = (np.asarray(photo()) * 0.7 + 30 + noise).astype(np.uint8)
    for name in set(OPERATIONS) - {"autocontrast", "equalize", "invert", "posterize"}:
        changed = [np.asarray(OPERATIONS[name](Image.fromarray(pixels), level, level)) for level in (0, 0.45, 0.9)]
        distances = [np.abs(image.astype(float) - pixels).mean() for image in changed]
        assert distances[0] == 0 and distances[1] < distances[2], name


def test_the_values_of_operations() -> None:
    """At level 0.9, as timm's `_level_to_arg` tables have them."""
    image = photo()
    pixels = np.asarray(image).astype(int)

    def result(name: str, signed: float = 0.9) -> np.ndarray:
        return np.asarray(OPERATIONS[name](image, 0.9, signed)).astype(int)

    np.testing.assert_array_equal(result("posterize"), pixels & 0b1000_0000)  # one bit
    threshold = 256 - int(256 * 0.9)
    np.testing.assert_array_equal(result("solarize"), np.where(pixels >= threshold, 255 - pixels, pixels))
    np.testing.assert_array_equal(result("solarize_add"), np.where(pixels < 128, np.minimum(pixels + 99, 255), pixels))
    np.testing.assert_array_equal(result("invert"), 255 - pixels)
    np.testing.assert_allclose(result("brightness", -0.9), pixels * 0.19, atol=1)
    # 0.45 * 0.9 of the width, with ImageNet's mean colour behind.
    shifted = result("translate_x")
    assert (shifted[:, :16] == [124, 116, 104]).all() and (shifted[:, 16:] == pixels[:, :-16]).all()
    # A shear moves row y by 0.27 y.
    sheared = result("shear_x", -0.9)[:, :, 1]
    offsets = [np.abs(sheared[30] - np.roll(pixels[30, :, 1], shift)).sum() for shift in range(-15, 16)]
    assert abs(abs(int(np.argmin(offsets)) - 15) - 0.27 * 30) <= 1.5


def test_erasing_is_noise_per_pixel() -> None:
    processor = hf_pvt.classification_image_processor(32)
    plain = {"crop_scale": 1.0, "rand_augment": 0.0, "color_jitter": 0.0, "horizontal_flip": 0.0}
    grey = Image.new("RGB", (32, 32), (124, 116, 104))
    view = TrainingView(arguments("pvt-imagenet", image_size=32, random_erasing=1.0, **plain), processor)
    noise = []
    for _ in range(50):
        pixel_values = view.transform(grey)
        erased = (pixel_values - pixel_values[:, :1, :1]).abs().amax(0) > 1e-3
        area = erased.float().mean()
        assert 0.01 < area < 0.4 or pixel_values[0, 0, 0].abs() > 0.1  # or the first pixel is in the rectangle
        noise.append(pixel_values[:, erased])
    values = torch.cat(noise, dim=1)
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1  # a normal deviate for each pixel and channel
    kept = TrainingView(arguments("pvt-imagenet", image_size=32, random_erasing=0.25, **plain), processor)
    share = np.mean([bool(kept.transform(grey).std((1, 2)).max() > 1e-3) for _ in range(400)])
    assert math.isclose(share, 0.25, abs_tol=0.07)


def test_what_the_recipes_apply() -> None:
    """RandAugment takes the place of colour jitter, as in timm."""
    processor = hf_pvt.classification_image_processor(32)
    names = [type(t).__name__ for t in TrainingView(arguments("pvt-imagenet"), processor).transform.transforms]
    assert names[:3] == ["RandomResizedCrop", "RandomHorizontalFlip", "RandAugment"] and names[-1] == "RandomErasing"
    mild = [type(t).__name__ for t in TrainingView(arguments("finetune"), processor).transform.transforms]
    assert "ColorJitter" in mild and "RandAugment" not in mild
