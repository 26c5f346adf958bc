"""What training does to images, boxes and masks, against the image processor, and against numpy."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision import tv_tensors

import hf_pvt
from hf_pvt.detection.coco_annotations import detection_target
from hf_pvt.training.augmentation.detection import (
    RandomCrop,
    RandomResize,
    WithoutEmptyBoxes,
    scene_of,
    target_of,
    training_transform,
)
from hf_pvt.training.data.detection_batches import padded_batch
from hf_pvt.training.data.sampling import EpochOrder

PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427
SIZE = PHOTO.height, PHOTO.width
OBJECTS: list[dict[str, Any]] = [
    {"bbox": [100.5, 50.25, 200, 150], "category_id": 3, "segmentation": [[100.5, 50.25, 300.5, 60, 200, 200.25]]},
    {"bbox": [600, 400, 39, 26], "category_id": 0, "segmentation": [[600, 400, 639, 400, 639, 426, 600, 426]]},
    {"bbox": [0, 0, 30, 20], "category_id": 1, "segmentation": [[0, 0, 30, 0, 30, 20]]},
]
PLAIN: dict[str, Any] = {"lowest": 1.0, "crop": 0.0, "horizontal_flip": 0.0, "photometric_distortion": 0.0}


def scene(size: tuple[int, int] = SIZE, image: Image.Image = PHOTO) -> dict[str, Any]:
    annotation = {"image_id": 1, "annotations": OBJECTS}
    return scene_of(image, detection_target(annotation, size, size, size, None, with_masks=True))


def test_without_chance_it_is_the_image_processor_s() -> None:
    """The published resize of the image, boxes and masks: the same numbers as in evaluation."""
    processor = hf_pvt.detection_image_processor(return_segmentation_masks=True, do_pad=False)
    expected = processor(PHOTO, {"image_id": 1, "annotations": OBJECTS}, return_tensors="pt")
    done = training_transform(800, 1333, **PLAIN)(scene())
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    pixels = (done["image"].as_subclass(Tensor).float() / 255 - mean) / std
    torch.testing.assert_close(pixels, expected["pixel_values"][0], rtol=0, atol=1e-6)
    target, (labels,) = target_of(done), expected["labels"]
    assert target["class_labels"].tolist() == [3, 0, 1]
    torch.testing.assert_close(target["boxes"], labels["boxes"], rtol=0, atol=1e-6)
    assert target["masks"].equal(labels["masks"]) and target["masks"].any(dim=(1, 2)).all()


def test_mirrored() -> None:
    done = training_transform(400, 1333, **PLAIN | {"horizontal_flip": 1.0})(scene())
    plain = training_transform(400, 1333, **PLAIN)(scene())
    assert done["image"].equal(plain["image"].flip(-1)) and done["masks"].equal(plain["masks"].flip(-1))
    width = plain["image"].shape[-1]
    x1, y1, x2, y2 = plain["boxes"].unbind(1)
    torch.testing.assert_close(
        done["boxes"].as_subclass(Tensor), torch.stack((width - x2, y1, width - x1, y2), 1).as_subclass(Tensor)
    )


def sides(lowest: float, shorter: int = 800) -> set[int]:
    transform = training_transform(shorter, 1333, **PLAIN | {"lowest": lowest})
    (resize,) = (step for step in transform.transforms if isinstance(step, RandomResize))
    return {*resize.shorter}


def test_published_scales() -> None:
    assert sides(1.0) == {800}
    assert sides(480 / 800) == {*range(480, 801, 32)}
    assert sides(640 / 800) == {*range(640, 801, 32)}
    assert sides(480 / 800, shorter=400) == {*range(240, 401, 16)}


def test_all_scales_are_drawn_and_the_longer_side_is_bounded() -> None:
    torch.manual_seed(0)
    resize = RandomResize([64, 96, 128], 200)
    seen = {tuple(resize(tv_tensors.Image(torch.zeros(3, 300, 1000, dtype=torch.uint8))).shape[1:]) for _ in range(20)}
    assert seen == {(60, 200)}
    square = {tuple(resize(tv_tensors.Image(torch.zeros(3, 50, 50, dtype=torch.uint8))).shape[1:]) for _ in range(40)}
    assert square == {(64, 64), (96, 96), (128, 128)}


def test_crops_are_parts() -> None:
    """Pixels, masks and boxes of the same place; sizes in their range; objects outside are left out."""
    torch.manual_seed(0)
    whole, crop = scene(), RandomCrop(150, 250)
    whole["image"] = tv_tensors.Image(torch.from_numpy(np.indices((1, *SIZE))[:, 0].astype(np.float32)))  # its places
    heights = set()
    for _ in range(60):
        done = WithoutEmptyBoxes()(crop(whole))
        top, left = done["image"][1:, 0, 0].int().tolist()
        rows, columns = done["image"].shape[1:]
        place = np.s_[..., top : top + rows, left : left + columns]
        assert done["image"].equal(whole["image"][place])
        heights.add(rows)
        assert 150 <= rows <= 250 and 150 <= columns <= 250
        corner, extent = np.array([left, top] * 2), np.array([columns, rows] * 2)
        boxes = (whole["boxes"].numpy() - corner).clip(0, extent)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        np.testing.assert_allclose(done["boxes"].numpy(), boxes[inside], atol=1e-4)
        assert done["masks"].equal(whole["masks"][place][inside]) and done["labels"].equal(whole["labels"][inside])
    assert len(heights) > 20


def test_a_crop_of_a_small_image_is_whole() -> None:
    annotation, size = {"image_id": 1, "annotations": [{"bbox": [1, 2, 3, 4], "category_id": 0}]}, (30, 40)
    small = scene_of(Image.new("RGB", (40, 30)), detection_target(annotation, size, size, size, None, with_masks=False))
    done = RandomCrop(384, 600)(small)
    assert done["image"].shape == (3, 30, 40) and "masks" not in target_of(done)
    np.testing.assert_allclose(done["boxes"].numpy(), [[1, 2, 4, 6]], atol=1e-5)


def test_half_of_the_images_are_cut() -> None:
    """`random_crop` is the probability; what is cut out is scaled as the others are."""
    torch.manual_seed(0)
    transform = training_transform(80, 1333, **PLAIN | {"crop": 0.5, "lowest": 0.6})
    heights = [transform(scene())["image"].shape[1:] for _ in range(100)]
    ratios = [height / width for height, width in heights]
    cut = [ratio for ratio in ratios if abs(ratio - SIZE[0] / SIZE[1]) > 0.03]
    assert 30 <= len(cut) <= 55  # some have nearly the ratio of the whole
    assert all(48 <= min(size) <= 80 for size in heights)


def test_a_scene_without_objects() -> None:
    nothing = detection_target({"image_id": 1, "annotations": []}, SIZE, SIZE, SIZE, None, True)
    transform = training_transform(80, 1333, lowest=0.6, crop=1.0, horizontal_flip=1.0, photometric_distortion=1.0)
    done = target_of(transform(scene_of(PHOTO, nothing)))
    assert done["boxes"].shape == (0, 4) and done["class_labels"].shape == (0,) and done["masks"].shape[0] == 0


def test_batches_are_the_image_processor_s() -> None:
    """Zeros and masks of padding, masks of objects: as the processor pads a batch of two sizes."""
    other = PHOTO.crop((0, 0, 300, 427))
    size = {"shortest_edge": 100, "longest_edge": 400}
    processor = hf_pvt.detection_image_processor(size=size, return_segmentation_masks=True)
    annotations = [{"image_id": n, "annotations": OBJECTS[: 1 + n]} for n in range(2)]
    expected = processor([PHOTO, other], [annotations[1], annotations[0]], return_tensors="pt")
    single = [
        processor(image, annotation, do_pad=False, return_tensors="pt")
        for image, annotation in ((PHOTO, annotations[1]), (other, annotations[0]))
    ]
    samples = [
        {"pixel_values": one["pixel_values"][0], "labels": dict(one["labels"][0]), "counted": n == 0}
        for n, one in enumerate(single)
    ]
    batch = padded_batch(samples, size_divisor=32)
    assert batch["pixel_values"].equal(expected["pixel_values"]) and batch["pixel_mask"].equal(expected["pixel_mask"])
    for target, wanted in zip(batch["labels"], expected["labels"], strict=True):
        assert target["masks"].equal(wanted["masks"]) and target["boxes"].equal(wanted["boxes"])
    assert batch["counted"].tolist() == [True, False] and expected["pixel_values"].shape[-2:] == (160, 160)


def test_steps_of_one_shape() -> None:
    """But for what is left over; every image once in an epoch, and other steps in the next."""
    kinds = torch.tensor([0, 1, 1] * 17)  # 17 and 34
    order = EpochOrder(51, 4, seed=0, kinds=kinds)
    epochs = [order.indices(epoch).clone() for epoch in range(3)]
    for indices in epochs:
        assert sorted(indices.tolist()) == list(range(51))
        steps = kinds[indices[:48]].view(12, 4)
        assert (steps == steps[:, :1]).all() and 0 < steps[:, 0].sum() < 12
        assert len(steps[:, 0].unique_consecutive()) > 2  # kinds are mixed, step by step
    assert not epochs[0].equal(epochs[1]) and not epochs[1].equal(epochs[2])
    again = EpochOrder(51, 4, seed=0, kinds=kinds)
    assert again.indices(1).equal(epochs[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_chance_is_the_generator_s(seed: int) -> None:
    transform = partial(training_transform(80, 1333, 0.6, 0.5, 0.5, 0.5), scene())
    torch.manual_seed(seed)
    first = transform()
    torch.manual_seed(seed)
    second = transform()
    assert first["image"].equal(second["image"]) and first["boxes"].equal(second["boxes"])
    assert not transform()["image"].equal(first["image"])
