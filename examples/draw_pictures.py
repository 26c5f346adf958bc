"""The README's four pictures, of models that `make demo-full` has trained: labels, objects, feature maps, attention.

    python examples/draw_pictures.py [--demo_dir out/demo-full] [--output_dir docs/pictures]

The scenes are of digits that the models have not seen. The photograph is of what they know nothing about: Chelsea the
cat, by Stefan van der Walt, CC0 (scikit-image).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from digit_scenes import Scene, scenes
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, AutoModelForSemanticSegmentation

import hf_pvt

CAT = Path(__file__).parent.parent / "model_cards" / "images" / "cat.jpg"
SHOWN = 3  # scenes in a picture
SEED = 1  # of the scenes that the demos are measured on
ENLARGED = 3  # times
THRESHOLD = 0.5  # of detections
POINT = (172, 145)  # of the cat: an eye
MARGIN = 12  # pixels
QUALITY = 90  # of JPEG, without halving the colours: letters and outlines stay sharp


def opened(auto_class: Any, folder: Path) -> tuple[Any, Any]:
    """A model in evaluation mode, and its image processor."""
    if not (folder / "config.json").is_file():
        sys.exit(f"there is no model in {folder}; run `make demo-full` first.")
    return auto_class.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)


def enlarged(scene: Scene) -> Image.Image:
    picture = Image.fromarray(scene.image)
    return picture.resize((ENLARGED * picture.width, ENLARGED * picture.height))


@torch.inference_mode()
def segmented(model: Any, processor: Any, scene: Scene) -> Image.Image:
    """A scene with its labels."""
    picture = enlarged(scene)
    outputs = model(**processor(scene.image, return_tensors="pt"))
    size = (picture.height, picture.width)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
    return hf_pvt.draw_segmentation(picture, labels, model.config.id2label)


@torch.inference_mode()
def detected(model: Any, processor: Any, scene: Scene) -> Image.Image:
    """A scene with its digits, which lie over one another."""
    picture = enlarged(scene)
    outputs = model(**processor(scene.image, return_tensors="pt"))
    (found,) = processor.post_process_instance_segmentation(
        outputs, THRESHOLD, target_sizes=[(picture.height, picture.width)], return_binary_maps=True
    )
    return hf_pvt.draw_detections(picture, found, model.config.id2label)


def in_a_row(pictures: list[Image.Image]) -> Image.Image:
    width = sum(picture.width for picture in pictures) + MARGIN * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo_dir", type=Path, default=Path("out/demo-full"))
    parser.add_argument("--output_dir", type=Path, default=Path("docs/pictures"))
    arguments = parser.parse_args()
    segmenter = opened(AutoModelForSemanticSegmentation, arguments.demo_dir / "digit-scenes-p2t")
    detector = opened(AutoModelForInstanceSegmentation, arguments.demo_dir / "digit-scenes-mask-rcnn")
    with Image.open(CAT) as file:
        cat = file.convert("RGB")
    apart, overlapping = (scenes(SHOWN, held_out=True, seed=SEED, overlapping=overlap) for overlap in (False, True))
    pictures = {
        "segmentation": in_a_row([segmented(*segmenter, scene) for scene in apart]),
        "detection": in_a_row([detected(*detector, scene) for scene in overlapping]),
        "features": hf_pvt.draw_features(segmenter[0], cat),
        "attention": hf_pvt.draw_attention(segmenter[0], cat, POINT, stage=2),
    }
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        path = arguments.output_dir / f"{name}.jpg"
        picture.save(path, quality=QUALITY, subsampling=0)
        print(path)


if __name__ == "__main__":
    main()
