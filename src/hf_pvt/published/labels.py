"""The label names, and ADE20K's colours, of the datasets that the papers train on, for `id2label` and for drawing."""

import json
from importlib import resources
from typing import Any


def ade20k_id2label() -> dict[int, str]:
    """ADE20K's 150 labels of scene parsing, from 0 (wall). Annotations count from 1; their 0 is no label."""
    return dict(enumerate(_read("ade20k.json")["names"]))


def ade20k_palette() -> list[tuple[int, int, int]]:
    """The usual RGB colours of ADE20K's 150 labels, in [0, 255]; two labels share one."""
    return [(red, green, blue) for red, green, blue in _read("ade20k.json")["palette"]]


def coco_id2label() -> dict[int, str]:
    """COCO's 80 labels of detection, from 0 (person), in the order of the published detectors."""
    return dict(enumerate(_read("coco.json")["names"].values()))


def coco_category_ids() -> list[int]:
    """The `category_id` of each of COCO's 80 labels in its annotations, which count from 1 to 90 and leave ten out."""
    return [int(category_id) for category_id in _read("coco.json")["names"]]


def imagenet_1k_id2label() -> dict[int, str]:
    """ImageNet-1K's 1000 labels, from 0 (tench), in the order of the published classifiers."""
    return dict(enumerate(_read("imagenet_1k.json")["names"]))


def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("data", name).read_text(encoding="utf-8"))
