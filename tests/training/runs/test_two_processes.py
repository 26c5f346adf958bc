"""Two processes are one with the joint batch: weights, scores, errors; all runs in the same two, started once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import classification_runs
import detection_runs
import numpy as np
import pyarrow.parquet as pq
import pytest
import segmentation_runs
import torch
from detection_runs import annotate, annotated_scenes, detector
from evaluation_runs import evaluate
from evaluation_runs import flags as evaluation_flags
from families import ATSS, CASCADE_MASK_RCNN, GFL, MASK_RCNN, RETINANET, SPARSE_RCNN, WITH_MASKS
from script_runs import launch_all, reports, results, weights

pytestmark = [pytest.mark.slow, pytest.mark.processes]

DETECTORS = {str(kind): kind for kind in (RETINANET, MASK_RCNN, ATSS, GFL, CASCADE_MASK_RCNN, SPARSE_RCNN)}
# What mixes a batch, or drops a part of it by chance, is drawn by each process for itself.
CLASSIFICATION = {"max_steps": 5, "learning_rate": 1e-3, "recipe": "pvt-imagenet", "on_bad_image": "skip", "mixup": 0}
CLASSIFICATION |= {"cutmix": 0, "drop_path_rate": 0, "max_grad_norm": 1.0, "checkpointing_steps": 3}
# Of a gradient that cancels out but for noise, Adam makes steps that at 1e-3 are seen.
DETECTION = {"drop_path_rate": 0, "scale_lowest": 1, "max_grad_norm": 1, "max_steps": 5, "learning_rate": 3e-4}
# Both terms of the loss are shared otherwise: by labelled pixels and by images.
SEGMENTATION = {"max_grad_norm": 1, "loss": "dice+cross_entropy"}


class Pair(NamedTuple):
    """The folder of the runs: data, what each starts from, and its output `two-<name>`."""

    folder: Path

    def output(self, name: str) -> Path:
        """Of a run that went well in both processes."""
        assert [report["error"] for report in reports(self.folder / "reports", name)] == [None, None]
        return self.folder / f"two-{name}"

    def errors(self, name: str) -> list[str]:
        return [report["error"] for report in reports(self.folder / "reports", name)]

    def printed(self, name: str) -> list[str]:
        return [report["printed"] for report in reports(self.folder / "reports", name)]


def digits(root: Path) -> Path:
    """40 digits to train on, 201 to validate, of which no process has a half, and two bad files."""
    data = classification_runs.digits(root, 40, 201)
    for name in ("bad.png", "worse.png"):
        (min((data / "validation").iterdir()) / name).touch()
    return data


def scenes(root: Path) -> Path:
    """Images with four objects or one, in turn; eleven to validate."""
    data = annotated_scenes(root, 24, 11)

    def uneven(content: dict[str, Any]) -> None:
        poor = {image["id"] for image in content["images"][::2]}
        first = {entry["image_id"]: entry for entry in reversed(content["annotations"])}
        content["annotations"] = [
            e for e in content["annotations"] if e["image_id"] not in poor or first[e["image_id"]] is e
        ]

    annotate(data / "train", uneven)
    return data


def rooms(root: Path, stranger: bool = False) -> Path:
    """Images of several sizes that differ in how much is ignored; a mask of the training may hold a strange value."""
    generator = np.random.default_rng(0)
    for split, count in (("training", 12), ("validation", 5)):
        for index in range(count):
            height, width = 40 + 8 * (index % 3), 56 + 5 * (index % 4)
            labels = np.kron(generator.integers(0, 3, (4, 4)), np.ones((20, 20))).astype(np.uint8)[:height, :width]
            labels[: 5 * (index % 5)] = 255
            labels[-1, -1] = 9 if stranger and split == "training" and index == 1 else 0
            pixels = (labels[..., None] % 3 * 80 + generator.integers(0, 60, (*labels.shape, 3))).astype(np.uint8)
            segmentation_runs.write_png(root / "images" / split / f"{index}.png", pixels)
            segmentation_runs.write_png(root / "annotations" / split / f"{index}.png", labels)
    (root / "labels.json").write_text(json.dumps(["sky", "wall", "tree"]))
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    out = {name: root / f"two-{name}" for name in ("digits", "rooms", "refused", "evaluated", "embedded")}
    tiny = classification_runs.too_small(root)
    classification = CLASSIFICATION | {"from_scratch": tiny, "per_device_train_batch_size": 6}
    jobs: list[tuple[str, str, list[Any]]] = [
        (
            "digits",
            "run_image_classification",
            classification_runs.flags(digits(root / "digits"), out["digits"], **classification),
        )
    ]
    data = scenes(root / "scenes")
    for name, kind in DETECTORS.items():
        # Anchors and proposals that are drawn by chance would be others: all are taken.
        fields = {"rpn_samples": 4096, "box_samples": 1000} if kind in WITH_MASKS else {}
        start = detector(root / f"start-{name}", kind, sure=True, **fields)
        values = DETECTION | {"model_name_or_path": start, "per_device_train_batch_size": 2}
        jobs.append((name, "run_object_detection", detection_runs.flags(data, root / f"two-{name}", **values)))
    segmentation = SEGMENTATION | {"from_scratch": segmentation_runs.configuration(root)}
    segmentation["per_device_train_batch_size"] = 2
    for name, stranger in (("rooms", False), ("refused", True)):
        argv = segmentation_runs.flags(rooms(root / name, stranger), out[name], **segmentation)
        jobs.append((name, "run_semantic_segmentation", argv))
    model, few = out["rooms"] / "model", {"validation_dir": root / "rooms", "unit_size": 5}
    jobs.append(("evaluated", "evaluate_model", evaluation_flags(model, out["evaluated"], **few)))
    words = ["--model_name_or_path", out["digits"] / "model", "--input_dir", root / "scenes" / "train"]
    words += ["--unit_size", 6, "--batch_size", 3, "--output_dir", out["embedded"]]
    jobs.append(("embedded", "embed_images", words))
    launch_all(jobs, root / "reports")
    yield Pair(root)


def test_classification(pair: Pair, tmp_path: Path) -> None:
    """Five steps over an epoch's end, with augmentation; and 201 samples are 201, of which two are bad."""
    data, output = pair.folder / "digits", pair.output("digits")
    two, expected = results(output), weights(output)
    values = CLASSIFICATION | {"from_scratch": pair.folder / "pvt_v2", "per_device_train_batch_size": 12}
    one = classification_runs.run(classification_runs.flags(data, tmp_path / "one", **values))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    torch.testing.assert_close(expected, weights(tmp_path / "one"), rtol=0, atol=1e-5)
    assert two["bad_images"] == one["bad_images"] and len(two["bad_images"]) == 2
    alone = evaluate(
        output / "model", tmp_path / "scores", validation_dir=data / "validation", on_bad_image="skip", unit_size=300
    )
    assert two["metrics"] == alone["metrics"] and two["metrics"]["examples"] == one["metrics"]["examples"] == 201

    # One process continues what two began: the order is the batch's, not the processes'.
    for name in ("checkpoint-5", "model"):
        (output / name).rename(tmp_path / name)
    again = classification_runs.run([*classification_runs.flags(data, output, **values), "--resume"])
    assert again["steps"] == 5 and again["num_processes"] == 1
    torch.testing.assert_close(weights(output), expected, rtol=0, atol=1e-5)
    (output / "model").rename(tmp_path / "again")
    (tmp_path / "model").rename(output / "model")


@pytest.mark.parametrize("name", DETECTORS)
def test_detection(name: str, pair: Pair, tmp_path: Path) -> None:
    """Though images have four objects or one; and eleven images are eleven."""
    data, output = pair.folder / "scenes", pair.output(name)
    values = DETECTION | {"model_name_or_path": pair.folder / f"start-{name}", "per_device_train_batch_size": 4}
    one = detection_runs.run(detection_runs.flags(data, tmp_path / "one", **values))
    two = results(output)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    torch.testing.assert_close(weights(output), weights(tmp_path / "one"), rtol=0, atol=1e-5)
    assert one["metrics"]["examples"] == two["metrics"]["examples"] == 11
    # Scores of the same weights: those of one's own may lie on the other side of a threshold.
    alone = evaluate(output / "model", tmp_path / "scores", validation_dir=data / "validation")["metrics"]
    for score in ("box_ap", "box_ap50", "box_ar100"):
        assert two["metrics"][score] == pytest.approx(alone[score], abs=1e-6)
    assert alone["box_ar100"] > 0 or name in ("atss", "gfl", "sparse_rcnn")  # which find nothing yet


def test_segmentation(pair: Pair, tmp_path: Path) -> None:
    """Though images differ in how much is ignored; batch norm is of the joint batch."""
    data, output = pair.folder / "rooms", pair.output("rooms")
    start = pair.folder / "configuration-pvt_v2"
    one = segmentation_runs.run(segmentation_runs.flags(data, tmp_path / "one", from_scratch=start, **SEGMENTATION))
    two = results(output)
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    torch.testing.assert_close(weights(output), weights(tmp_path / "one"), rtol=1e-5, atol=1e-5)
    # Five images are one unit: one process has nothing to do.
    assert results(pair.output("evaluated"))["metrics"] == two["metrics"] and two["metrics"]["examples"] == 5
    alone = evaluate(output / "model", tmp_path / "scores", validation_dir=data, unit_size=2)
    assert alone["metrics"] == two["metrics"]


def test_processes_fail_together(pair: Pair) -> None:
    """Though one of them alone has looked at the mask that is refused."""
    for error in pair.errors("refused"):
        assert error.startswith("ValueError: the training masks hold the pixel values 0, 1, 2, 9 and 255, ")
        assert "and 9 has no name" in error
        assert f"(first in {pair.folder}/refused/annotations/training/1.png)" in error
    assert not (pair.folder / "two-refused" / "model").exists()


def test_embeddings(pair: Pair, tmp_path: Path) -> None:
    """Each process makes its own shards and shows its own progress: the first two, and so the other."""
    output = pair.output("embedded")
    shards = sorted(output.glob("*.parquet"))
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [6, 6, 6, 6]
    first, second = pair.printed("embedded")
    assert "2/2" in first and "4/4" not in first
    assert "24 images are done" in first + second and "warning" not in first + second
