"""The metrics in two processes: the main one gets the scores of all, the other None."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as published_mask

from hf_pvt.metrics import CocoAveragePrecision, MeanIoU, TopKAccuracy

pytestmark = pytest.mark.processes

NAMES = ["cat", "dog", "bird"]
# Once both have examples, twice in a row; once the main process has all.
WORKER = """
import json, sys
import numpy as np
from hf_pvt.metrics import CocoAveragePrecision, MeanIoU, TopKAccuracy
process, folder = int(sys.argv[1]), sys.argv[2]
data, scenes = np.load(f"{folder}/data.npz"), json.load(open(f"{folder}/scenes.json"))
settings = dict(num_process=2, process_id=process, experiment_id="test", cache_dir=folder, timeout=60)
everything = slice(0, None if process == 0 else 0)
results = {"mean_iou": [], "top_k": [], "coco": []}

def add(name, metric, predictions, references):
    metric.add_batch(predictions=predictions, references=references)
    try:
        results[name].append(metric.compute())
    except ValueError as error:
        results[name].append(str(error))

for mine in (slice(0, 3) if process == 0 else slice(3, None), everything):
    add("mean_iou", MeanIoU(7, **settings), data["maps"][mine], data["truth"][mine])
    add("top_k", TopKAccuracy(**settings), data["scores"][mine], data["labels"][mine])
for mine in (slice(process, None, 2), everything, slice(process * 5, 7 + process * 5)):
    metric = CocoAveragePrecision(["cat", "dog", "bird"], with_masks=True, **settings)
    add("coco", metric, scenes["predictions"][mine], scenes["references"][mine])
print(json.dumps(results, default=lambda array: array.tolist()))
"""


def scenes(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images with three rectangles each, and predictions that lie beside them by some pixels."""
    random = np.random.default_rng(0)
    predictions, references = [], []
    for image_id in range(count):
        corners, labels = random.integers(0, 10, (3, 2)), random.integers(0, 3, 3)
        found = {"scores": random.random(3).tolist(), "labels": labels.tolist(), "boxes": [], "segmentation": []}
        annotations = []
        for (x, y), label in zip(corners.tolist(), labels.tolist(), strict=True):
            for left, known in ((x, True), (x + int(random.integers(0, 3)), False)):
                mask = np.zeros((20, 30), dtype=np.uint8, order="F")
                mask[y : y + 8, left : left + 12] = 1
                runs = published_mask.encode(mask)
                runs = {"size": runs["size"], "counts": runs["counts"].decode()}
                if known:
                    annotation = {"bbox": [left, y, 12, 8], "category_id": label, "iscrowd": 0, "area": 96}
                    annotations.append(annotation | {"segmentation": runs})
                else:
                    found["boxes"].append([left, y, left + 12, y + 8])
                    found["segmentation"].append(runs)
        predictions.append(found)
        references.append({"image_id": image_id, "size": (20, 30), "annotations": annotations})
    return predictions, references


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_two_processes(tmp_path: Path) -> None:
    """The same bits as in one, even where the other has no example; an image that both have is named."""
    random = np.random.default_rng(0)
    data: dict[str, Any] = {name: random.integers(0, 7, (5, 9, 11)) for name in ("maps", "truth")}
    data |= {"scores": random.random((5, 8)), "labels": random.integers(0, 8, 5)}
    np.savez(tmp_path / "data.npz", **data)
    predictions, references = scenes(8)
    (tmp_path / "scenes.json").write_text(json.dumps({"predictions": predictions, "references": references}))
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(n), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    main, other = (json.loads(worker.communicate(timeout=240)[0].splitlines()[-1]) for worker in workers)
    assert other == {"mean_iou": [None] * 2, "top_k": [None] * 2, "coco": [None] * 3}
    for found in main["mean_iou"]:
        assert_same(found, MeanIoU(7).compute(predictions=data["maps"], references=data["truth"]))
    accuracy = TopKAccuracy().compute(predictions=data["scores"], references=data["labels"])
    assert main["top_k"] == [accuracy, accuracy]
    expected = CocoAveragePrecision(NAMES, with_masks=True).compute(predictions=predictions, references=references)
    assert 0.1 < expected["box_ap"] < 0.9
    for found in main["coco"][:2]:
        assert_same(found, expected)
    shared = sorted(reference["image_id"] for reference in references[5:7])
    assert main["coco"][2] in {f"image {image_id} was added twice; each image counts once." for image_id in shared}
    assert not list(tmp_path.rglob("*.arrow"))
