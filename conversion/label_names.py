"""Names for the labels of a converted head: given, its own, or those of the benchmark whose count fits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_pvt
from hf_pvt.original import labels_of

# The labels of each task's benchmark (see `tasks`).
BENCHMARK_LABELS = labels_of.BENCHMARK_LABELS | {"instance-segmentation": hf_pvt.coco_id2label}


def read_labels(path: Path, count: int) -> dict[int, str]:
    """`{0: name, ...}` from a JSON file: a list of names, or an object from each label, "0" and on, to its name.

    Raises:
        ValueError: the file is something else, names are missing, empty or named twice, or there are not `count`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"the labels file {path} cannot be read as JSON: {error}.") from error
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not all(isinstance(name, str) and name.strip() for name in content.values()):
        raise ValueError(f"the labels file {path} must hold a list of names, or an object from labels to names.")
    if sorted(map(str, content)) != sorted(map(str, range(len(content)))):
        raise ValueError(f"the labels file {path} must name the labels 0 to {len(content) - 1}, each once.")
    if len(content) != count:
        raise ValueError(f"the labels file {path} names {len(content)} labels, the checkpoint has {count}.")
    twice = sorted({name for name in content.values() if list(content.values()).count(name) > 1})
    if twice:
        raise ValueError(f"the labels file {path} gives a name to several labels: {', '.join(twice)}.")
    return {int(label): name for label, name in sorted(content.items(), key=lambda item: int(item[0]))}


def name_labels(config: Any, task: str, labels: Path | None) -> bool:
    """Set the names in `config` where they are given or follow from the count; whether they are the benchmark's."""
    if task == "features":
        return False
    benchmark = BENCHMARK_LABELS[task]()
    if labels is not None:
        set_labels(config, read_labels(labels, config.num_labels))
    elif len(benchmark) == config.num_labels and not has_names(config):
        set_labels(config, benchmark)
        if task == "segmentation":
            config.palette = [list(colour) for colour in hf_pvt.ade20k_palette()]
    return _same_names(config.id2label, benchmark)


def has_names(config: Any) -> bool:
    """Whether the labels are called something else than Transformers' LABEL_0 and on."""
    return any(name != f"LABEL_{label}" for label, name in config.id2label.items())


def set_labels(config: Any, id2label: dict[int, str]) -> None:
    config.id2label = id2label
    config.label2id = {name: label for label, name in id2label.items()}


def _same_names(first: Mapping[int, str], second: Mapping[int, str]) -> bool:
    """Whether both name the same things; sources differ in how many synonyms they list."""

    def heads(names: Mapping[int, str]) -> list[str]:
        return [names[label].split(",")[0].strip().lower() for label in sorted(names)]

    return heads(first) == heads(second)
