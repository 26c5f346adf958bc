"""Small runs of examples/run_object_detection.py, in this process or others."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import digit_scenes
import numpy as np
import run_object_detection as script
import script_runs
import torch
from families import PVT_V2, RETINANET, DetectorRow
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hf_pvt.detection.coco_masks import encode_mask

SCRIPT = Path(script.__file__)
SIDE = 64
FIRST_ID = 3  # of COCO's categories, which are not labels: its ids neither start at 0 nor follow each other
NAMES = [f"digit {digit}" for digit in range(10)]
# What detectors have few of, as far as they have it.
FEW = {
    "num_head_convs": 1,
    "num_box_convs": 1,
    "num_mask_convs": 1,
    "box_hidden_size": 32,
    "max_proposals": 40,
    "max_training_proposals": 40,
    "box_samples": 32,
    "rpn_samples": 64,
}


def annotated_scenes(root: Path, training: int, validation: int, one_name: bool = False) -> Path:
    """Digits somebody wrote, on photographs, each in its quarter of 64 pixels, with COCO's JSON in each folder.

    Args:
        one_name: all are of the one category "digit".
    """
    for split, count in (("train", training), ("validation", validation)):
        folder = root / split
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        scenes = digit_scenes.scenes(count, split == "validation", seed=0, layout=digit_scenes.SMALL)
        for number, scene in enumerate(scenes):
            name, image_id = f"{number:04}.png", 100 + number
            Image.fromarray(scene.image).save(folder / name)
            images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
            for digit, mask in zip(scene.digits.tolist(), scene.masks, strict=True):
                known = {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": FIRST_ID + 2 * digit * (not one_name),
                }
                objects.append(known | annotation(mask))
        names = ["digit"] if one_name else NAMES
        categories = [{"id": FIRST_ID + 2 * label, "name": name} for label, name in enumerate(names)]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(content))
    return root


def annotation(mask: np.ndarray) -> dict[str, Any]:
    """What COCO says of an object's pixels (H, W)."""
    left, top, right, bottom = digit_scenes.extent(mask)
    box = [left, top, right - left, bottom - top]
    return {"bbox": box, "area": int(mask.sum()), "iscrowd": 0, "segmentation": encode_mask(mask)}


def annotate(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON of a folder in place."""
    file = folder / "annotations.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def detector(
    folder: Path, kind: DetectorRow, hidden_sizes: Sequence[int] = (8, 16, 20, 32), sure: bool = False, **overrides: Any
) -> Path:
    """A saved detector of the digits with fresh weights; by default too small to learn, and quick.

    Args:
        sure: RetinaNet says of many places that there is something, so that it has detections.
    """
    backbone = PVT_V2.tiny_config(
        hidden_sizes=hidden_sizes, depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 4, 4), drop_path_rate=0.0
    )
    quick = {"fpn_hidden_size": 16, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    own = {field.name for field in dataclasses.fields(kind.config)}  # type: ignore[arg-type]
    quick |= {name: value for name, value in FEW.items() if name in own}
    torch.manual_seed(0)
    model = kind.model(kind.config(backbone_config=backbone, **(kind.fields | quick | overrides)))
    if sure and kind is RETINANET:
        model.bbox_head.retina_cls.bias.data.add_(3)
    model.save_pretrained(folder)
    return folder


def flags(data: Path, output: Path, **values: Any) -> list[str]:
    """Four steps of four images of 64 pixels."""
    defaults = {
        "train_dir": data / "train",
        "validation_dir": data / "validation",
        "output_dir": output,
        "shorter_side": SIDE,
        "longer_side": SIDE,
        "max_steps": 4,
        "warmup_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "layer_decay": 1,
        "dataloader_num_workers": 0,
        "overlays": 0,
    }
    chosen = {name: value for name, value in (defaults | values).items() if value is not None}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """results.json of a run in this process."""
    return script_runs.run(script.main, arguments)


def launch(arguments: Sequence[str], processes: int = 1, **environment: str) -> CompletedProcess[str]:
    """A run in processes of its own."""
    return script_runs.launch(SCRIPT, arguments, processes, **environment)


def by_hand(folder: Path, data: Path) -> dict[str, float]:
    """What pycocotools says of a saved model on a folder of images with COCO's JSON, image by image."""
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    found: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "annotations.json"))
        ids = sorted(truth.getCatIds())
        for image_id, image in truth.imgs.items():
            with Image.open(data / image["file_name"]) as picture, torch.no_grad():
                outputs = model(**processor(picture, return_tensors="pt"))
            sizes = [(image["height"], image["width"])]
            if model.has_masks:
                (answer,) = processor.post_process_instance_segmentation(
                    outputs, threshold=0.0, target_sizes=sizes, return_coco_annotation=True
                )
            else:
                (answer,) = processor.post_process_object_detection(outputs, 0.0, target_sizes=sizes)
            for number, (x1, y1, x2, y2) in enumerate(answer["boxes"].double().tolist()):
                entry = {"image_id": image_id, "category_id": ids[int(answer["labels"][number])]}
                entry |= {"score": float(answer["scores"][number]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
                found.append(entry | ({"segmentation": answer["segmentation"][number]} if model.has_masks else {}))
        scores = dict(zip(("box_ap", "box_ap50"), average_precision(truth, found, "bbox"), strict=True))
        if model.has_masks:
            masks = [{name: value for name, value in entry.items() if name != "bbox"} for entry in found]
            scores["mask_ap"], scores["mask_ap50"] = average_precision(truth, masks, "segm")
    return scores


def average_precision(truth: COCO, found: list[dict[str, Any]], kind: str) -> tuple[float, float]:
    """Over all overlaps, and at 0.5."""
    evaluation = COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0], evaluation.stats[1]
