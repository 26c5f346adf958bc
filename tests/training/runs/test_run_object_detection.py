"""The detection script: what a run leaves, its evaluation, where it may start, and what it is told."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import run_object_detection as script
import torch
from detection_runs import NAMES, annotate, annotated_scenes, by_hand, detector, flags, launch, run
from families import MASK_RCNN, RETINANET, DetectorRow
from hub_server import TOKEN, HubServer
from PIL import Image
from safetensors.torch import load_file
from script_runs import weights
from torch import Tensor, nn
from transformers import AutoModelForObjectDetection, DetrForObjectDetection

from hf_pvt.detection.coco_masks import draw_mask, encode_mask
from hf_pvt.training import loop
from hf_pvt.training.detectors import open_detector
from hf_pvt.training.launch import TrainingError

KINDS = (RETINANET, MASK_RCNN)
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen scenes to train on and six to validate; one of those has a crowd region, another no object."""
    root = annotated_scenes(tmp_path_factory.mktemp("data"), 16, 6)

    def with_oddities(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1
        last = content["images"][-1]["id"]
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != last]

    annotate(root / "validation", with_oddities)
    return root


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("starts")
    return {kind.name: detector(folder / kind.name, kind, sure=True) for kind in KINDS}


@pytest.mark.parametrize("kind", [pytest.param(RETINANET, marks=pytest.mark.slow), MASK_RCNN], ids=str)
def test_what_a_run_leaves(kind: DetectorRow, data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """Scores that pycocotools finds for the model folder, pictures of each evaluation, and a card."""
    out = tmp_path / "out"
    metrics = run(flags(data, out, model_name_or_path=starts[kind.name], eval_steps=2, overlays=2))["metrics"]
    assert metrics["examples"] == 6
    expected = by_hand(out / "model", data / "validation")
    assert set(expected) == {n for n in metrics if n in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")}
    assert expected["box_ap"] > 0
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6)
    pictures = sorted(str(path.relative_to(out / "overlays")) for path in (out / "overlays").rglob("*.png"))
    assert pictures == [f"step-{step}/{number}.png" for step in (2, 4) for number in (0, 1)]
    model = AutoModelForObjectDetection.from_pretrained(out / "model")
    assert list(model.config.id2label.values()) == NAMES
    moved = [not weight.equal(weights(out)[name]) for name, weight in load_file(starts[kind.name] / FILE).items()]
    assert len(moved) == len(weights(out)) and all(moved)
    card = (out / "model" / "README.md").read_text()
    assert "box_ap" in card and ("mask_ap" in card) == (kind is MASK_RCNN)
    assert f"pipeline_tag: {'image-segmentation' if kind is MASK_RCNN else 'object-detection'}" in card


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_resumed_run_ends_the_same(kind: DetectorRow, data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """Bit for bit, with augmentation, accumulation and a moving average, in the middle of an epoch."""
    values = {"model_name_or_path": starts[kind.name], "checkpointing_steps": 2, "ema_decay": 0.5, "random_crop": 0.5}
    values |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "drop_path_rate": 0.2}
    for name in ("whole", "resumed"):
        whole = run(flags(data, tmp_path / name, **values))
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    shutil.rmtree(tmp_path / "resumed" / "model")
    resumed = run([*flags(data, tmp_path / "resumed", **values), "--resume"])
    assert resumed["metrics"] == whole["metrics"]
    found = [weights(tmp_path / name) for name in ("whole", "resumed")]
    assert found[0].keys() == found[1].keys()
    assert all(found[1][name].equal(weight) for name, weight in found[0].items())


@pytest.mark.slow
def test_a_moving_average_is_saved(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """Of the weights after each step, from the first one on; and it is what was evaluated."""
    values = {"model_name_or_path": starts["retinanet"], "max_steps": 3, "checkpointing_steps": 1}
    metrics = run(flags(data, tmp_path / "average", ema_decay=0.7, **values))["metrics"]
    run(flags(data, tmp_path / "plain", **values))
    steps = [load_file(tmp_path / "plain" / f"checkpoint-{step}" / FILE) for step in (1, 2, 3)]
    for name, weight in weights(tmp_path / "average").items():
        expected = steps[0][name]
        for step in steps[1:]:
            expected = 0.7 * expected + 0.3 * step[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert not weights(tmp_path / "plain")[name].equal(weights(tmp_path / "average")[name])
    assert metrics["box_ap"] == pytest.approx(
        by_hand(tmp_path / "average" / "model", data / "validation")["box_ap"], abs=1e-6
    )


@pytest.mark.parametrize("kind", [RETINANET, pytest.param(MASK_RCNN, marks=pytest.mark.slow)], ids=str)
def test_mixed_precision(kind: DetectorRow, data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """Products in bf16: nearly the weights of float32, which they stay."""
    values = {"model_name_or_path": starts[kind.name], "max_steps": 2, "validation_dir": None, "train_val_split": 0}
    for precision in ("no", "bf16"):
        run(flags(data, tmp_path / precision, mixed_precision=precision, **values))
    exact, mixed, before = weights(tmp_path / "no"), weights(tmp_path / "bf16"), load_file(starts[kind.name] / FILE)
    assert {weight.dtype for weight in mixed.values()} == {torch.float32}
    moved, apart = (sum((exact[name] - other[name]).abs().sum().item() for name in exact) for other in (before, mixed))
    assert 0 < apart < 0.5 * moved


def stretched(folder: Path) -> None:
    """Every second image gets a black margin at its right, the others below."""

    def stretch(content: dict[str, Any]) -> None:
        for number, image in enumerate(content["images"]):
            size = (90, 64) if number % 2 else (64, 90)
            with Image.open(folder / image["file_name"]) as picture:
                picture.crop((0, 0, *size)).save(folder / image["file_name"])
            image["width"], image["height"] = size
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for entry in content["annotations"]:
            mask = np.zeros(sizes[entry["image_id"]], dtype=bool)
            mask[:64, :64] = draw_mask(entry["segmentation"], (64, 64))
            entry["segmentation"] = encode_mask(mask)

    annotate(folder, stretch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "recipe", "expected"),
    [
        (RETINANET, "coco-1x", {"learning_rate": 2.5e-5, "weight_decay": 1e-4, "random_crop": 0.0}),
        (MASK_RCNN, "coco-1x", {"learning_rate": 5e-5, "weight_decay": 1e-4, "random_crop": 0.0}),
        (MASK_RCNN, "coco-3x", {"learning_rate": 2.5e-5, "weight_decay": 0.05, "random_crop": 0.5}),
    ],
    ids=["retinanet 1x", "mask_rcnn 1x", "mask_rcnn 3x"],
)
def test_published_recipes(
    kind: DetectorRow,
    recipe: str,
    expected: dict[str, float],
    starts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a batch of four; a step takes upright images or wide ones, and none without objects."""
    data, seen, loss_of = annotated_scenes(tmp_path / "data", 18, 4), [], script.Detection.loss

    def without_two(content: dict[str, Any]) -> None:
        empty = {content["images"][number]["id"] for number in (4, 7)}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in empty]

    def recorded(task: script.Detection, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        seen.append([(int(mask.any(0).sum()) > int(mask.any(1).sum())) for mask in batch["pixel_mask"]])
        return loss_of(task, model, batch)

    annotate(data / "train", without_two)
    for share in ("train", "validation"):
        stretched(data / share)
    monkeypatch.setattr(script.Detection, "loss", recorded)
    published = {"recipe": recipe, "learning_rate": None, "warmup_steps": None, "layer_decay": None}
    values = {"longer_side": 90, "max_steps": None, "num_train_epochs": 1, "checkpointing_steps": 3}
    decays: list[list[float]] = []
    grouped = loop.parameter_groups
    monkeypatch.setattr(
        loop,
        "parameter_groups",
        lambda *given: decays.append([group["weight_decay"] for group in grouped(*given)]) or grouped(*given),
    )
    record = run(flags(data, tmp_path / "out", model_name_or_path=starts[kind.name], **published, **values))
    assert record["steps"] == 4 and record["peak_learning_rate"] == pytest.approx(expected.pop("learning_rate"))
    assert {name: record["arguments"][name] for name in expected} == expected
    if recipe == "coco-1x":  # a part of a wide image may be upright
        assert sorted(seen) == [[False] * 4] * 2 + [[True] * 4] * 2
    for name, value in by_hand(tmp_path / "out" / "model", data / "validation").items():
        assert record["metrics"][name] == pytest.approx(value, abs=1e-6)
    # In the short schedule everything decays, in the long one all but norms.
    assert {*decays[0]} == ({1e-4} if recipe == "coco-1x" else {0.05, 0})
    whole = weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    flags_again = flags(data, tmp_path / "out", model_name_or_path=starts[kind.name], **published, **values)
    (tmp_path / "out" / "model").rename(tmp_path / "model")
    run([*flags_again, "--resume"])
    assert all(weight.equal(whole[name]) for name, weight in weights(tmp_path / "out").items())


@pytest.mark.slow
def test_the_published_detr_is_one_command(data: Path, tmp_path: Path) -> None:
    """On a published file; three steps at the rate of four images and one at its tenth, in the backbone at a tenth."""
    pyramid = tmp_path / "pvt_small.pth"
    torch.save(reference.checkpoint("pvt-small"), pyramid)
    values = {"recipe": "coco-50e", "architecture": "detr", "from_backbone": pyramid, "num_train_epochs": 1}
    values |= dict.fromkeys(("max_steps", "learning_rate", "warmup_steps", "layer_decay"))
    record = run(flags(data, tmp_path / "out", overlays=1, **values))
    rate, arguments = 1e-4 * 4 / 16, record["arguments"]
    assert record["steps"] == 4 and record["peak_learning_rate"] == pytest.approx(rate)
    published = {"weight_decay": 1e-4, "max_grad_norm": 0.1, "scale_lowest": 0.8, "random_crop": 0.0}
    assert {name: arguments[name] for name in published} == published
    assert record["metrics"]["examples"] == 6 and list((tmp_path / "out" / "overlays").rglob("*.png"))
    model, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "out" / "model", output_loading_info=True)
    assert type(model) is DetrForObjectDetection and not any(report.values())
    assert model.config.backbone_config.drop_path_rate == 0.1
    before = open_detector(None, "detr", str(pyramid), NAMES, seed=arguments["seed"]).state_dict()
    moved = {True: 0.0, False: 0.0}
    for name, weight in model.state_dict().items():
        in_backbone = name.startswith("model.backbone.")
        moved[in_backbone] = max(moved[in_backbone], (weight - before[name]).abs().max().item())
    # A step of Adam is at first the rate, and later hardly more.
    assert rate < moved[False] < 3.2 * rate and rate < 10 * moved[True] < 3.2 * rate


def test_the_run_stops_at_nan(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    values = {"model_name_or_path": starts["mask_rcnn"], "learning_rate": 1e30, "logging_steps": 1}
    with pytest.raises(TrainingError, match=r"^the loss is (nan|inf) in step \d, .*; there is no checkpoint\. Lower "):
        run(flags(data, tmp_path / "out", **values))
    assert not (tmp_path / "out" / "model").exists()


def test_a_share_is_held_out(data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """A quarter of sixteen: twelve images are three steps of four."""
    values = {"validation_dir": None, "train_val_split": 0.25, "max_steps": None, "num_train_epochs": 1}
    record = run(flags(data, tmp_path / "out", model_name_or_path=starts["retinanet"], **values))
    assert (record["metrics"]["examples"], record["steps"]) == (4, 3)


@pytest.mark.processes
def test_the_model_is_pushed(hub: HubServer, data: Path, starts: dict[str, Path], tmp_path: Path) -> None:
    """The model folder and nothing else, in one commit."""
    values = {"model_name_or_path": starts["retinanet"], "max_steps": 1, "hub_model_id": "me/digits"}
    argv = flags(data, tmp_path / "out", push_to_hub=True, **values)
    process = launch(argv, HF_TOKEN=TOKEN, **hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"})
    assert process.returncode == 0, process.stderr
    pushed, folder = hub.repos["me/digits"].files(), tmp_path / "out" / "model"
    assert pushed.keys() - {".gitattributes"} == {path.name for path in folder.iterdir()}
    assert pushed[FILE] == (folder / FILE).read_bytes()
    assert b"# me/digits" in pushed["README.md"] and hub.count("POST", "*/commit/*") == 1
