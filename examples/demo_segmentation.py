"""Semantic segmentation of real input: digits somebody wrote, on pieces of photographs, with exact label maps.

    python examples/demo_segmentation.py [--full] [--output_dir out/demo]

A small P2T with a Semantic FPN trains on scenes composed of scikit-learn's digits and photographs, and is tested on
scenes of other digits and other parts of the photographs. Ends with the mean IoU of `pipeline("image-segmentation")` on
them, and with a picture of scenes, ground truth and predictions.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digit_scenes import LARGE, SMALL, Layout, Scene, scenes
from one_cycle import train_one_cycle
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from transformers.utils import logging

import hf_pvt
from hf_pvt.drawing.segmentations import distinct_colour
from hf_pvt.metrics import MeanIoU
from hf_pvt.training.heap import DEFAULT_HEAP, keep_large_blocks

NAMES = {0: "background", **{digit + 1: f"digit {digit}" for digit in range(10)}}
PALETTE = [(0, 0, 0), *(distinct_colour(digit) for digit in range(10))]


@dataclass(frozen=True)
class Recipe:
    """What to train on, which model, for how long, and the mean IoU that it reaches."""

    layout: Layout
    scenes: int
    architecture: Mapping[str, Any]
    batch_size: int
    learning_rate: float
    max_grad_norm: float
    steps: int
    goal: float


SHORT = Recipe(
    layout=SMALL,
    scenes=1000,
    architecture={
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 3, 4],
        "mlp_ratios": [4, 4, 2, 2],
        "fpn_hidden_size": 32,
        "decoder_hidden_size": 32,
        "classifier_dropout_prob": 0.0,
        # Without these the first hundred steps learn that nearly everything is background.
        "semantic_loss_class_weights": [0.25, *[1.0] * 10],
    },
    batch_size=16,
    learning_rate=4e-3,
    max_grad_norm=10.0,
    steps=300,
    goal=0.35,
)
FULL = Recipe(
    layout=LARGE,
    scenes=2000,
    architecture={
        "hidden_sizes": [32, 64, 128, 160],
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 2, 4, 5],
        "mlp_ratios": [4, 4, 4, 4],
        "fpn_hidden_size": 64,
        "decoder_hidden_size": 64,
    },
    batch_size=16,
    learning_rate=2e-3,
    max_grad_norm=1.0,
    steps=1200,
    goal=0.6,
)


def train(pixel_values: Tensor, labels: Tensor, recipe: Recipe, steps: int) -> hf_pvt.P2tForSemanticSegmentation:
    """A small P2T for images (N, 3, H, W) and label maps (N, H, W): AdamW, one-cycle schedule."""
    names: dict[str, Any] = {"id2label": NAMES, "label2id": {name: label for label, name in NAMES.items()}}
    model = hf_pvt.P2tForSemanticSegmentation(hf_pvt.P2tConfig(**recipe.architecture, **names))

    def loss_of_batch() -> Tensor:
        batch = torch.randint(len(pixel_values), (recipe.batch_size,))
        return model(pixel_values[batch], labels=labels[batch]).loss

    train_one_cycle(model, loss_of_batch, steps, "training the segmenter", recipe.learning_rate, recipe.max_grad_norm)
    return model


def label_map_of(results: list[dict], size: tuple[int, int]) -> np.ndarray:
    """One label map (H, W) from the pipeline's masks."""
    label_map = np.zeros(size, dtype=np.uint8)
    labels = {name: label for label, name in NAMES.items()}
    for result in results:
        label_map[np.asarray(result["mask"]) > 0] = labels[result["label"]]
    return label_map


def draw(held_out: list[Scene], predictions: list[np.ndarray], path: Path, columns: int = 4) -> None:
    """Ground truth above predictions, as overlays with legends."""
    rows = []
    for label_maps in ([scene.label_map for scene in held_out], predictions):
        overlays = [
            hf_pvt.draw_segmentation(Image.fromarray(enlarged(scene.image)), enlarged(labels), NAMES, PALETTE)
            for scene, labels in zip(held_out[:columns], label_maps[:columns], strict=True)
        ]
        row = Image.new("RGB", (sum(o.width for o in overlays), max(o.height for o in overlays)), "white")
        for index, overlay in enumerate(overlays):
            row.paste(overlay, (sum(o.width for o in overlays[:index]), 0))
        rows.append(row)
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for index, row in enumerate(rows):
        picture.paste(row, (0, sum(r.height for r in rows[:index])))
    picture.save(path)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Thrice as large, for the names: an image or a label map."""
    return pixels.repeat(3, axis=0).repeat(3, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("out/demo"))
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"larger scenes and model, {FULL.steps} steps, for a mean IoU of {FULL.goal}",
    )
    parser.add_argument("--steps", type=int, help=f"default: {SHORT.steps}, or {FULL.steps} with --full")
    parser.add_argument("--default_heap", action="store_true", help=DEFAULT_HEAP)
    arguments = parser.parse_args()
    if not arguments.default_heap:
        keep_large_blocks()
    recipe = FULL if arguments.full else SHORT
    steps = recipe.steps if arguments.steps is None else arguments.steps
    logging.disable_progress_bar()
    torch.manual_seed(0)
    folder = arguments.output_dir / "digit-scenes-p2t"

    processor = hf_pvt.segmentation_image_processor(size={"height": recipe.layout.side, "width": recipe.layout.side})
    learnt = scenes(recipe.scenes, held_out=False, seed=0, layout=recipe.layout)
    batch = processor([scene.image for scene in learnt], [scene.label_map for scene in learnt], return_tensors="pt")
    model = train(batch["pixel_values"], batch["labels"], recipe, steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    segmenter = pipeline(
        "image-segmentation",
        model=AutoModelForSemanticSegmentation.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    held_out = scenes(100, held_out=True, seed=1, layout=recipe.layout)
    metric = MeanIoU(len(NAMES))
    predictions = []
    for scene in held_out:
        predictions.append(label_map_of(segmenter(Image.fromarray(scene.image)), scene.label_map.shape))
        metric.add(prediction=predictions[-1], reference=scene.label_map)
    Image.fromarray(held_out[0].image).save(arguments.output_dir / "scene.png")
    picture = arguments.output_dir / "segmentation.png"
    draw(held_out, predictions, picture)
    scores: Any = metric.compute()
    mean_iou = scores["mean_iou"]
    print(f"mean IoU: {mean_iou:.2%} of {len(NAMES)} labels on {len(held_out)} held-out scenes")
    print(f"model: {folder}\npicture: {picture}")
    if mean_iou < recipe.goal:
        sys.exit(f"the mean IoU is below {recipe.goal:.0%}, which the default number of steps reaches.")


if __name__ == "__main__":
    main()
