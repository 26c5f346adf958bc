"""Instance segmentation of real input: digits somebody wrote, over one another on pieces of photographs.

    python examples/demo_detection.py [--full] [--output_dir out/demo]

A small Mask R-CNN on a small PVTv2 trains on scenes composed of scikit-learn's digits and photographs, and is tested on
scenes of other digits and other parts of the photographs. Ends with the box and mask AP50 of the saved model on them,
with how many digits `pipeline("image-segmentation")` finds, and with a picture of ground truth beside predictions.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digit_scenes import LARGE, SMALL, Layout, Scene, extent, scenes
from one_cycle import train_one_cycle
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, pipeline
from transformers.utils import logging

import hf_pvt
from hf_pvt.detection.coco_masks import encode_mask
from hf_pvt.drawing.segmentations import side_by_side
from hf_pvt.metrics import CocoAveragePrecision
from hf_pvt.training.heap import DEFAULT_HEAP, keep_large_blocks

NAMES = {digit: f"digit {digit}" for digit in range(10)}
LABELS = {name: digit for digit, name in NAMES.items()}
ENLARGED = 3  # times, in the picture


@dataclass(frozen=True)
class Recipe:
    """What to train on, which model, for how long, and what every number that is printed reaches."""

    layout: Layout
    scenes: int
    pyramid: Mapping[str, Any]
    detector: Mapping[str, Any]
    steps: int
    goal: float


SHORT = Recipe(
    layout=SMALL,
    scenes=1000,
    pyramid={"depths": [1, 1, 1, 1], "mlp_ratios": [4, 4, 2, 2]},
    detector={
        "fpn_hidden_size": 32,
        "anchor_scales": [6, 8],  # 24 and 32 pixels on the finest level
        "rpn_candidates": 100,
        "rpn_training_candidates": 100,
        "max_proposals": 50,
        "num_mask_convs": 1,
    },
    steps=400,
    goal=0.35,
)
FULL = Recipe(
    layout=LARGE,
    scenes=2000,
    pyramid={"depths": [1, 1, 2, 1], "mlp_ratios": [4, 4, 4, 4]},
    detector={
        "fpn_hidden_size": 48,
        "anchor_scales": [6, 9],  # 24 and 36 pixels on the finest level
        "rpn_candidates": 200,
        "rpn_training_candidates": 200,
        "max_proposals": 100,
        "num_mask_convs": 2,
    },
    steps=1100,
    goal=0.7,
)

Detections = dict[str, Any]  # of one image: scores (n,), labels (n,), boxes (n, 4), and masks in one form


def coco_annotations(scene: Scene, image_id: int) -> dict[str, Any]:
    """A scene's digits as COCO's file has them."""
    annotations = [
        {
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "category_id": int(digit),
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": encode_mask(mask),
        }
        for digit, mask, (x1, y1, x2, y2) in zip(scene.digits, scene.masks, scene.boxes, strict=True)
    ]
    return {"image_id": image_id, "size": scene.image.shape[:2], "annotations": annotations}


def train(
    pixel_values: Tensor, labels: Sequence[Mapping[str, Tensor]], recipe: Recipe, steps: int, batch_size: int = 8
) -> hf_pvt.MaskRcnnForInstanceSegmentation:
    """A small Mask R-CNN for images (N, 3, H, W) and the digits of each: AdamW, one-cycle schedule."""
    backbone = hf_pvt.PvtV2Config(
        hidden_sizes=[32, 64, 96, 128], num_attention_heads=[1, 2, 3, 4], drop_path_rate=0.0, **recipe.pyramid
    )
    config = hf_pvt.MaskRcnnConfig(
        backbone_config=backbone,
        anchor_ratios=[1, 1.6],  # digits are high rather than wide
        rpn_samples=64,
        box_samples=32,
        box_hidden_size=128,
        max_detections=20,
        **recipe.detector,
        id2label=NAMES,
        label2id=LABELS,
    )
    model = hf_pvt.MaskRcnnForInstanceSegmentation(config)

    def loss_of_batch() -> Tensor:
        batch = torch.randint(len(pixel_values), (batch_size,))
        return model(pixel_values[batch], labels=[labels[index] for index in batch.tolist()]).loss

    train_one_cycle(model, loss_of_batch, steps, "training the detector", max_grad_norm=1.0)
    return model


@torch.inference_mode()
def average_precision(model: Any, processor: Any, held_out: Sequence[Scene], batch_size: int = 20) -> dict[str, Any]:
    """COCO's numbers for boxes and masks."""
    metric = CocoAveragePrecision(list(NAMES.values()), with_masks=True)
    for first in range(0, len(held_out), batch_size):
        some = held_out[first : first + batch_size]
        outputs = model(**processor([scene.image for scene in some], return_tensors="pt"))
        found = processor.post_process_instance_segmentation(
            outputs, target_sizes=[scene.image.shape[:2] for scene in some], return_coco_annotation=True
        )
        metric.add_batch(
            predictions=found, references=[coco_annotations(scene, first + i) for i, scene in enumerate(some)]
        )
    scores: Any = metric.compute()
    return scores


def detections_of(results: Sequence[dict[str, Any]], side: int) -> Detections:
    """What the pipeline finds in one scene (side, side), whose masks do not overlap, with the boxes around these."""
    masks = np.array([np.asarray(result["mask"]) > 0 for result in results]).reshape(-1, side, side)
    return {
        "scores": np.array([result["score"] for result in results]),
        "labels": np.array([LABELS[result["label"]] for result in results], dtype=np.int64),
        "masks": masks,
        "boxes": np.array([extent(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
    }


def found_digits(scene: Scene, detections: Detections) -> int:
    """The digits that have a mask of the right name, and with it more than half of their union in common.

    Neither the scene's masks overlap nor the detections': no mask is that of two digits.
    """
    shared = np.einsum("nhw,mhw->nm", scene.masks.astype(int), detections["masks"].astype(int))
    union = scene.masks.sum((1, 2))[:, None] + detections["masks"].sum((1, 2)) - shared  # (n, m)
    return int(((shared > union / 2) & (scene.digits[:, None] == detections["labels"])).sum())


def truth_of(scene: Scene) -> Detections:
    """A scene's digits as detections that are sure."""
    return {"scores": np.ones(len(scene.digits)), "labels": scene.digits, "masks": scene.masks, "boxes": scene.boxes}


def draw(held_out: Sequence[Scene], predictions: Sequence[Detections], path: Path, shown: int = 4) -> None:
    """Ground truth beside predictions, the scenes below one another in two columns."""
    sides = {"ground truth": [truth_of(scene) for scene in held_out], "predictions": predictions}
    tiles = {heading: list(map(drawn, held_out[:shown], side[:shown])) for heading, side in sides.items()}
    side_by_side({heading: mosaic(pictures) for heading, pictures in tiles.items()}).save(path)


def drawn(scene: Scene, detections: Detections) -> Image.Image:
    """A scene with its detections, enlarged for their names."""
    side = ENLARGED * scene.image.shape[0]
    masks = detections["masks"].repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    enlarged = detections | {"boxes": ENLARGED * detections["boxes"], "masks": masks}
    return hf_pvt.draw_detections(Image.fromarray(scene.image).resize((side, side)), enlarged, NAMES)


def mosaic(tiles: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures of one size in rows of `columns`."""
    width, height = tiles[0].size
    picture = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for index, tile in enumerate(tiles):
        picture.paste(tile, (index % columns * width, index // columns * height))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("out/demo"))
    parser.add_argument(
        "--full", action="store_true", help=f"larger scenes and model, {FULL.steps} steps, for an AP50 of {FULL.goal}"
    )
    parser.add_argument("--steps", type=int, help=f"default: {SHORT.steps}, or {FULL.steps} with --full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default_heap", action="store_true", help=DEFAULT_HEAP)
    arguments = parser.parse_args()
    if not arguments.default_heap:
        keep_large_blocks()
    recipe = FULL if arguments.full else SHORT
    steps = recipe.steps if arguments.steps is None else arguments.steps
    side = recipe.layout.side
    logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    folder = arguments.output_dir / "digit-scenes-mask-rcnn"

    processor = hf_pvt.detection_image_processor(size={"height": side, "width": side}, return_segmentation_masks=True)
    learnt = scenes(recipe.scenes, held_out=False, seed=0, overlapping=True, layout=recipe.layout)
    annotations = [coco_annotations(scene, index) for index, scene in enumerate(learnt)]
    batch = processor([scene.image for scene in learnt], annotations, return_tensors="pt")
    model = train(batch["pixel_values"], batch["labels"], recipe, steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    saved = AutoModelForInstanceSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    held_out = scenes(100, held_out=True, seed=1, overlapping=True, layout=recipe.layout)
    precision = average_precision(saved, processor, held_out)
    segmenter = pipeline("image-segmentation", model=saved, image_processor=processor)
    images = [Image.fromarray(scene.image) for scene in held_out]
    predictions = [detections_of(segmenter(image, subtask="instance", threshold=0.3), side) for image in images]
    digits = sum(len(scene.digits) for scene in held_out)
    found = sum(found_digits(*pair) for pair in zip(held_out, predictions, strict=True))
    picture = arguments.output_dir / "detection.png"
    draw(held_out, predictions, picture)
    reached = {
        "box AP50": precision["box_ap50"],
        "mask AP50": precision["mask_ap50"],
        "digits found by the pipeline": found / digits,
    }
    for name, share in reached.items():
        print(f"{name}: {share:.2%}")
    print(f"on {len(held_out)} held-out scenes of {digits} digits\nmodel: {folder}\npicture: {picture}")
    missed = [name for name, share in reached.items() if not share >= recipe.goal]
    if missed:
        sys.exit(f"{' and '.join(missed)} below {recipe.goal:.0%}, which the default number of steps reaches.")


if __name__ == "__main__":
    main()
