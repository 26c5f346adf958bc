"""The main job, on real input: train a small PVTv2 on handwritten digits, save it, use it as anybody would, draw it.

    python examples/demo_classification.py [--full] [--output_dir out/demo]

The digits are scikit-learn's 1,797 scans; a fifth of them is held out. Ends with the accuracy of
`pipeline("image-classification")` on the held-out scans, and with a picture: scans with predictions, and the feature
maps of a photograph at a size and ratio the model has never seen.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from one_cycle import train_one_cycle
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, PvtImageProcessor, pipeline
from transformers.utils import logging

import hf_pvt
from hf_pvt.drawing.features import as_colours
from hf_pvt.training.heap import DEFAULT_HEAP, keep_large_blocks

matplotlib.use("Agg")
from matplotlib import pyplot as plt

IMAGE_SIZE = 32
PHOTO_SIZE = (512, 768)


@dataclass(frozen=True)
class Recipe:
    """How long to train, and the accuracy that it reaches."""

    epochs: int
    goal: float


SHORT = Recipe(epochs=6, goal=0.95)
FULL = Recipe(epochs=40, goal=0.97)


def digits() -> tuple[list[Image.Image], list[Image.Image], np.ndarray, np.ndarray]:
    """Training and held-out images and labels."""
    scans = load_digits()
    images = [Image.fromarray((scan * 255 / 16).astype(np.uint8)) for scan in scans.images]
    return train_test_split(images, scans.target, test_size=0.2, stratify=scans.target, random_state=0)


def train(images: Tensor, labels: Tensor, epochs: int, batch_size: int = 64) -> hf_pvt.PvtV2ForImageClassification:
    """A small PVTv2 for images (N, 3, 32, 32): AdamW, one-cycle schedule, small shifts and rotations."""
    config = hf_pvt.PvtV2Config(
        hidden_sizes=[32, 64, 160, 256],
        depths=[1, 1, 1, 1],
        drop_path_rate=0.05,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    model = hf_pvt.PvtV2ForImageClassification(config)
    augment = v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), fill=float(images.min()))

    def loss_of_batch() -> Tensor:
        batch = torch.randint(len(images), (batch_size,))
        pixel_values = torch.stack([augment(image) for image in images[batch]])  # (B, 3, 32, 32)
        return model(pixel_values, labels=labels[batch]).loss

    train_one_cycle(model, loss_of_batch, epochs * len(images) // batch_size, "training")
    return model


def feature_maps(folder: Path) -> tuple[Image.Image, tuple[Tensor, ...]]:
    """A photograph and the four feature maps (1, C, H, W) that the trained backbone gives of it."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize(PHOTO_SIZE[::-1])
    backbone = hf_pvt.PvtV2Backbone.from_pretrained(folder, out_indices=[0, 1, 2, 3])
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return photo, backbone(**processor(photo, do_resize=False, return_tensors="pt")).feature_maps


def draw(images: list[Image.Image], labels: np.ndarray, predictions: list[str], folder: Path, path: Path) -> None:
    """Held-out scans with their predictions, wrong ones first and red, above the feature maps of a photograph."""
    figure = plt.figure(figsize=(15, 9), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(5, 3))
    scans, maps = halves
    scans.suptitle("Held-out digits and predictions")
    order = sorted(range(len(images)), key=lambda index: predictions[index] == str(labels[index]))
    for axis, index in zip(scans.subplots(4, 12).flat, order, strict=False):
        right = predictions[index] == str(labels[index])
        axis.imshow(images[index], cmap="gray")
        axis.set_title(
            predictions[index] if right else f"{predictions[index]}, is {labels[index]}",
            color="black" if right else "red",
            fontsize=9,
        )
        axis.axis("off")
    photo, pyramid = feature_maps(folder)
    maps.suptitle(f"A photograph of {photo.height}x{photo.width} and its feature maps (three main directions)")
    axes = maps.subplots(1, 5)
    axes[0].imshow(photo)
    for axis, feature_map in zip(axes[1:], pyramid, strict=True):
        axis.imshow(as_colours(feature_map[0]))
        axis.set_title("x".join(map(str, feature_map.shape[1:])), fontsize=9)
    for axis in axes:
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("out/demo"))
    parser.add_argument("--full", action="store_true", help=f"{FULL.epochs} epochs for {FULL.goal:.0%}")
    parser.add_argument("--epochs", type=int, help=f"default: {SHORT.epochs}, or {FULL.epochs} with --full")
    parser.add_argument("--default_heap", action="store_true", help=DEFAULT_HEAP)
    arguments = parser.parse_args()
    if not arguments.default_heap:
        keep_large_blocks()
    recipe = FULL if arguments.full else SHORT
    epochs = recipe.epochs if arguments.epochs is None else arguments.epochs
    logging.disable_progress_bar()
    torch.manual_seed(0)
    folder = arguments.output_dir / "digits-pvt-v2"

    train_images, test_images, train_labels, test_labels = digits()
    processor = PvtImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_convert_rgb=True)
    pixel_values = processor(train_images, return_tensors="pt")["pixel_values"]
    model = train(pixel_values, torch.from_numpy(train_labels), epochs)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    classifier = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    predictions = [result[0]["label"] for result in classifier(test_images, top_k=1, batch_size=32)]
    correct = sum(prediction == str(label) for prediction, label in zip(predictions, test_labels, strict=True))
    picture = arguments.output_dir / "demo.png"
    draw(test_images, test_labels, predictions, folder, picture)
    print(f"test accuracy: {correct / len(test_labels):.2%} ({correct} of {len(test_labels)} held-out digits)")
    print(f"model: {folder}\npicture: {picture}")
    if correct < recipe.goal * len(test_labels):
        sys.exit(f"the accuracy is below {recipe.goal:.0%}, which the default number of epochs reaches.")


if __name__ == "__main__":
    main()
