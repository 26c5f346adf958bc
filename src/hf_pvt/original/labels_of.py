"""What the labels of a published checkpoint are called.

As the caller says; else as MMSegmentation or MMDetection notes beside the weights; else as the benchmark of as many
labels names them.
"""

from typing import Any

from ..published.labels import ade20k_id2label, ade20k_palette, coco_id2label, imagenet_1k_id2label

# The labels of each task's benchmark.
BENCHMARK_LABELS = {"classification": imagenet_1k_id2label, "segmentation": ade20k_id2label, "detection": coco_id2label}


def label_fields(meta: dict[str, Any], overrides: dict[str, Any], count: int, task: str) -> dict[str, Any]:
    """The configuration's `id2label`, `label2id` and `palette` of a head of `count` labels, as far as there are names.

    Args:
        meta: what the file holds beside its weights.
        overrides: the caller's fields: with names of their own, neither the file's names nor its colours are used.
    """
    if overrides.get("id2label"):
        return {"label2id": {name: int(label) for label, name in overrides["id2label"].items()}}
    if overrides.get("label2id"):
        return {"id2label": {int(label): name for name, label in overrides["label2id"].items()}}
    names, palette = noted_labels(meta)
    if not names and overrides.get("num_labels", count) == count:
        names, palette = benchmark_labels(count, task)
    if not names:
        return {}
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }
    if task == "segmentation" and palette is not None and len(palette) == len(names):
        fields["palette"] = [[int(value) for value in colour] for colour in palette]
    return fields


def noted_labels(meta: dict[str, Any]) -> tuple[Any, Any]:
    """Names and colours as MMSegmentation 0.x or 1.x, MMDetection 2.x or 3.x saves them."""
    meta = meta.get("dataset_meta", meta)
    names, palette = (meta.get(name.upper()) or meta.get(name) for name in ("classes", "palette"))
    return names, palette


def benchmark_labels(count: int, task: str) -> tuple[Any, Any]:
    """ImageNet-1k's 1,000 names, ADE20K's 150 with their colours, or COCO's 80."""
    names = list(BENCHMARK_LABELS[task]().values())
    if len(names) != count:
        return None, None
    return names, ade20k_palette() if task == "segmentation" else None
