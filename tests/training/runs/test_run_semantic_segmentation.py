"""The segmentation script: what it learns, its recipe's parts, the layouts it reads, its evaluation, bad masks."""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import demo_segmentation
import digit_scenes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_semantic_segmentation as script
import torch
from families import P2T
from PIL import Image
from refusals import refusal
from safetensors.torch import load_file
from segmentation_runs import configuration, flags, run, write_png
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import hf_pvt
from hf_pvt.drawing.segmentations import side_by_side
from hf_pvt.heads.synchronized_batch_norm import SynchronizedBatchNorm2d
from hf_pvt.metrics import MeanIoU
from hf_pvt.training.arguments import DataArguments, OptimizationArguments, RunArguments
from hf_pvt.training.augmentation import segmentation as scene_augmentation
from hf_pvt.training.augmentation.segmentation import PhotometricDistortion, RandomCrop, RandomScale
from hf_pvt.training.data.decoding import BadImageError
from hf_pvt.training.data.label_values import LabelValues
from hf_pvt.training.data.masks import Decoder, Example, csv_pairs, folder_pairs, open_label_maps
from hf_pvt.training.evaluators import segmentation as segmentation_evaluation

NAMES = ["sky", "wall", "tree"]
LABELS = LabelValues(NAMES, [0, 1, 2], frozenset({255}))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ADE20K's layout: twelve images to train on and five to validate, of several sizes, with three labels and 255."""
    root = tmp_path_factory.mktemp("rooms")
    generator = np.random.default_rng(0)
    for split, count in (("training", 12), ("validation", 5)):
        for index in range(count):
            height, width = 40 + 8 * (index % 3), 56 + 5 * (index % 4)
            labels = np.kron(generator.integers(0, 3, (4, 4)), np.ones((20, 20))).astype(np.uint8)[:height, :width]
            labels[: index % 5] = 255
            pixels = (labels[..., None] % 3 * 80 + generator.integers(0, 60, (*labels.shape, 3))).astype(np.uint8)
            write_png(root / "images" / split / f"{index}.png", pixels)
            write_png(root / "annotations" / split / f"{index}.png", labels)
    (root / "labels.json").write_text(json.dumps(NAMES))
    return root


@pytest.mark.slow
def test_learns_digit_scenes(tmp_path: Path) -> None:
    """Digits somebody wrote, on photographs, each in a quarter of 64 pixels: the model folder scores what was said."""
    for split, count in (("training", 1000), ("validation", 60)):
        scenes = digit_scenes.scenes(count, held_out=split == "validation", seed=0, layout=digit_scenes.SMALL)
        for index, scene in enumerate(scenes):
            write_png(tmp_path / "images" / split / f"{index:04}.png", scene.image)
            write_png(tmp_path / "annotations" / split / f"{index:04}.png", scene.label_map)
    (tmp_path / "labels.json").write_text(json.dumps(list(demo_segmentation.NAMES.values())))
    shape = {"hidden_sizes": (32, 64, 96, 128), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 4, 4)}
    start = configuration(tmp_path, **shape, fpn_hidden_size=48, decoder_hidden_size=48)
    gentle = {"horizontal_flip": 0, "photometric_distortion": 0, "scale_lowest": 0.9, "scale_highest": 1.1}
    steps = {"max_steps": 700, "warmup_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 2e-3}
    results = run(
        flags(tmp_path, tmp_path / "out", from_scratch=start, layer_decay=1, max_grad_norm=1, **gentle, **steps)
    )
    assert results["metrics"]["examples"] == 60
    assert results["metrics"]["mean_iou"] >= 0.6
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out" / "model").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out" / "model")
    assert model.config.id2label == demo_segmentation.NAMES
    assert by_hand(model, processor, tmp_path)["mean_iou"] == pytest.approx(results["metrics"]["mean_iou"], abs=1e-4)


def by_hand(model: nn.Module, processor: Any, root: Path, window: int | None = None) -> dict[str, Any]:
    """The scores of a model on the validation folder, image by image."""
    metric = MeanIoU(model.config.num_labels)
    for path in sorted((root / "images" / "validation").iterdir()):
        labels = np.asarray(Image.open(root / "annotations" / "validation" / path.name))
        with torch.no_grad(), Image.open(path) as image:
            batch = processor(image, do_resize=window is None, return_tensors="pt")
            if window is None:
                predicted = processor.post_process_semantic_segmentation(model(**batch), [labels.shape])[0]
            else:
                predicted = hf_pvt.segment_sliding(model, batch["pixel_values"], window)[0]
        metric.add(prediction=predicted, reference=labels)
    return metric.compute()


# The recipe's parts


def test_crop_rule() -> None:
    """Mixed: several labels, none over three quarters of the labelled pixels."""
    crop = RandomCrop(4, 0.75)

    def is_mixed(*counts: int, ignored: int = 0) -> bool:
        labels = [label for label, count in enumerate(counts) for _ in range(count)] + [255] * ignored
        return bool(crop.is_mixed(np.array(labels).reshape(4, 4)))

    assert is_mixed(11, 5)
    assert not is_mixed(12, 4)
    assert not is_mixed(16)
    assert not is_mixed(6, 2, ignored=8)  # of the labelled ones
    assert is_mixed(5, 3, ignored=8)
    assert not is_mixed(ignored=16)


def test_crop_is_drawn_anew() -> None:
    """Where a tenth of the places is mixed, ten tries find one in two thirds of the crops; images follow the labels."""
    labels = np.zeros((32, 200), dtype=np.int64)
    labels[:, 100:] = 1
    image = Image.fromarray((labels * 255).astype(np.uint8)).convert("RGB")
    found = {}
    for most in (0.75, 1.1):  # the rule, and none but that of several labels
        crop, mixed = RandomCrop(32, most), 0
        for seed in range(300):
            torch.manual_seed(seed)
            picture, part = crop(image, labels)
            assert (np.asarray(picture)[..., 0] == part * 255).all()
            assert part.shape == (32, 32)
            mixed += 0.25 < part.mean() < 0.75
        found[most] = mixed / 300
    places = 15 / 169  # 93 - 107 - 1 of the left edges
    assert found[0.75] == pytest.approx(1 - (1 - places) ** 10, abs=0.08)
    assert found[1.1] < found[0.75] - 0.1
    small = RandomCrop(64, 0.75)(image, labels)
    assert (small[0].size, small[1].shape) == ((64, 32), (32, 64))


def test_scale() -> None:
    """(2048, 512) and its multiples: one side is reached, the ratio kept, labels stay labels."""
    image, labels = Image.new("RGB", (600, 300)), np.tile(np.arange(2), (300, 300))
    assert RandomScale(512, 2048, 1, 1)(image, labels)[0].size == (1024, 512)
    assert RandomScale(512, 2048, 2, 2)(image, labels)[1].shape == (1024, 2048)
    assert RandomScale(512, 800, 1, 1)(image, labels)[0].size == (800, 400)
    torch.manual_seed(0)
    heights = [RandomScale(64, 256, 0.5, 2.0)(image, labels)[0].height for _ in range(200)]
    assert (min(heights), max(heights)) == (pytest.approx(32, abs=2), pytest.approx(128, abs=2))
    assert set(np.unique(RandomScale(77, 400, 1, 1)(image, labels)[1])) == {0, 1}


def test_distortion_of_colours() -> None:
    red = Image.new("RGB", (2, 2), (200, 40, 40))
    assert scene_augmentation.in_hsv(red, turns=1 / 3).getpixel((0, 0)) == pytest.approx((40, 200, 40), abs=4)
    assert scene_augmentation.in_hsv(red, saturation=0.0).getpixel((0, 0)) == (200, 200, 200)
    assert scene_augmentation.linear(red, 1.5, 0).getpixel((0, 0)) == (255, 60, 60)
    assert scene_augmentation.linear(red, 1.0, -50).getpixel((0, 0)) == (150, 0, 0)


def test_distortion_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn: each part in half of the cases, over its whole range; contrast before the colours or after."""
    calls: list[tuple[str, float]] = []

    def linear(image: str, factor: float, offset: float) -> str:
        calls.append(("contrast", factor) if offset == 0 else ("brightness", offset))
        return image

    def in_hsv(image: str, saturation: float = 1.0, turns: float = 0.0) -> str:
        calls.append(("hue", turns) if saturation == 1.0 else ("saturation", saturation))
        return image

    monkeypatch.setattr(scene_augmentation, "linear", linear)
    monkeypatch.setattr(scene_augmentation, "in_hsv", in_hsv)
    torch.manual_seed(0)
    orders = set()
    drawn: dict[str, list[float]] = {"brightness": [], "contrast": [], "saturation": [], "hue": []}
    for _ in range(2000):
        calls.clear()
        PhotometricDistortion()("an image")  # type: ignore[arg-type]
        orders.add(tuple(name for name, _ in calls))
        for name, value in calls:
            drawn[name].append(value)
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        assert len(drawn[name]) / 2000 == pytest.approx(0.5, abs=0.05)
        assert low <= min(drawn[name]) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(drawn[name]) <= high
    assert {("brightness", "contrast", "saturation", "hue"), ("brightness", "saturation", "hue", "contrast")} <= orders


def view(rooms: Path, **fields: Any) -> script.TrainingView:
    task = script.SegmentationArguments(shorter_side=48, longer_side=192, crop_size=64, **fields)
    groups = (DataArguments(), OptimizationArguments(), RunArguments(), task)
    script.complete(groups)
    return script.TrainingView(task, Decoder(LABELS), hf_pvt.segmentation_image_processor())


def test_image_and_labels_stay_together(rooms: Path) -> None:
    """Scaled, cropped, mirrored, padded: a pixel's colour tells its label still; what was filled up is ignored."""
    example = folder_pairs(rooms, "training")[3]
    load = view(rooms, photometric_distortion=0, recipe="ade20k")
    mean, std = (torch.tensor(values)[:, None, None] for values in (load_mean(load), load_std(load)))
    agreeing, filled = [], 0
    for seed in range(30):
        torch.manual_seed(seed)
        sample = load(example)
        pixels, labels = 255 * (sample["pixel_values"] * std + mean), sample["labels"]
        assert (pixels.shape, labels.shape, labels.dtype) == ((3, 64, 64), (64, 64), torch.int64)
        padding = (sample["pixel_values"] == 0).all(0)
        assert (labels[padding] == 255).all()
        filled += int(padding.sum())
        of_colour = ((pixels.mean(0) - 30) / 80).round()[labels != 255]
        agreeing.append((of_colour == labels[labels != 255]).float().mean().item())
    assert filled > 0
    assert np.mean(agreeing) > 0.9  # the scaling mixes colours at the borders


def load_mean(load: script.TrainingView) -> Any:
    return load.normalise.transforms[-1].mean


def load_std(load: script.TrainingView) -> Any:
    return load.normalise.transforms[-1].std


def test_recipe_and_schedule() -> None:
    """Published: 80k steps, 1e-4 at a batch of 16, twice that at 32, to zero by the power 0.9; epochs if asked for."""
    task, optimization = script.SegmentationArguments(recipe="ade20k"), OptimizationArguments()
    script.complete((DataArguments(), optimization, RunArguments(), task))
    assert (task.scale_lowest, task.scale_highest, task.largest_share, optimization.weight_decay) == (
        0.5,
        2,
        0.75,
        1e-4,
    )
    schedule = script.schedule_of(task, optimization, steps_per_epoch=1000, global_batch=16)
    assert [schedule(step) for step in (0, 40_000, 80_000)] == [1e-4, pytest.approx(1e-4 * 0.5**0.9), 0]
    assert script.schedule_of(task, optimization, 1000, global_batch=32)(0) == 2e-4
    optimization = OptimizationArguments(num_train_epochs=3)
    script.complete((DataArguments(), optimization, RunArguments(), task))
    assert script.schedule_of(task, optimization, 1000, 16).total_steps == 3000


@pytest.mark.slow
def test_the_published_clip_is_p2t_large_s(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """35, of P2T-Large alone; a clip that is asked for stays."""
    clipped = [name for name in hf_pvt.VARIANTS if script.is_clipped(hf_pvt.variant_config(name))]
    assert clipped == ["p2t-large"]
    monkeypatch.setattr(script, "is_clipped", lambda config: config.model_type == "p2t")
    values = {"from_scratch": configuration(tmp_path, P2T), "recipe": "ade20k", "max_steps": 1}
    used = run(flags(rooms, tmp_path / "out", **values))["arguments"]
    assert used["max_grad_norm"] == 35 and used["without_decay"] == ["none"]
    assert run(flags(rooms, tmp_path / "own", max_grad_norm=1, **values))["arguments"]["max_grad_norm"] == 1


# Layouts


@pytest.fixture
def plain(rooms: Path, tmp_path: Path) -> Path:
    """images/ and masks/ with the same stems, photographs as JPEG."""
    for path in (rooms / "images" / "training").iterdir():
        target = tmp_path / "plain" / "images" / "day" / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
        mask = tmp_path / "plain" / "masks" / "day" / path.name
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes((rooms / "annotations" / "training" / path.name).read_bytes())
    return tmp_path / "plain"


def stems(pairs: Any) -> list[tuple[str, str]]:
    return [(Path(str(e.image)).stem, Path(str(e.mask)).stem) for e in pairs]


def test_layouts(rooms: Path, plain: Path, tmp_path: Path) -> None:
    """ADE20K's, whose validation is found with it; images/ and masks/; a CSV file with splits."""
    training, validation = open_label_maps(DataArguments(train_dir=str(rooms)), None, 0)
    assert (len(training), len(validation)) == (12, 5)
    assert all(image == mask for image, mask in stems(training))
    assert all("annotations/validation" in example.mask_name for example in validation)
    training, validation = open_label_maps(DataArguments(train_dir=str(plain), train_val_split=0.25), None, 0)
    assert (len(training), len(validation)) == (9, 3)
    assert all(image == mask for image, mask in stems(training))
    assert not set(stems(training)) & set(stems(validation))
    rows = [["image", "mask", "split"]]
    for split, name in (("training", "train"), ("validation", "val"), ("validation", "test")):
        for path in sorted((rooms / "images" / split).iterdir()):
            rows.append([str(path), str(rooms / "annotations" / split / path.name), name])
    with open(tmp_path / "scenes.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    training, validation = open_label_maps(DataArguments(train_files=[str(tmp_path / "scenes.csv")]), None, 0)
    assert (len(training), len(validation)) == (12, 5)
    assert all(image == mask for image, mask in stems([*training, *validation]))


def parquet(rooms: Path, split: str, path: Path) -> Path:
    """The images and masks of a split as columns."""
    columns: dict[str, list[Any]] = {"image": [], "annotation": []}
    for image in sorted((rooms / "images" / split).iterdir()):
        columns["image"].append({"bytes": image.read_bytes(), "path": image.name})
        mask = rooms / "annotations" / split / image.name
        columns["annotation"].append({"bytes": mask.read_bytes(), "path": None})
    pq.write_table(pa.table(columns), path)
    return path


def test_columns(rooms: Path, tmp_path: Path) -> None:
    """A data set with images and masks, read at once and streamed: the same pixels and labels as from the folder."""
    parquet(rooms, "training", tmp_path / "rooms.parquet")
    decode = Decoder(LABELS)
    expected = [decode(example) for example in folder_pairs(rooms, "training")]
    for streaming in (False, True):
        data = DataArguments(train_files=[str(tmp_path / "*.parquet")], streaming=streaming)
        training, validation = open_label_maps(data, None, 0)
        assert validation is None
        rows = [training.example(row, number) for number, row in enumerate(training.rows)]
        for example, (image, labels) in zip(rows, expected, strict=True):
            found_image, found_labels = decode(example)
            assert (np.asarray(found_image) == np.asarray(image)).all()
            assert (found_labels == labels).all()
    with pytest.raises(ValueError, match="no column depth in image, annotation; choose with --mask_column"):
        open_label_maps(data, "depth", 0)


def test_layout_errors(plain: Path, tmp_path: Path) -> None:
    """No such folders, no image, two masks, a mask missing, a CSV file of something else."""
    with pytest.raises(FileNotFoundError, match="annotations/training or .*images and .*masks"):
        folder_pairs(tmp_path / "nothing", "training")
    (plain / "masks" / "day" / "3.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"day/3\.png and .*day/3\.tif are masks of the same image; remove one"):
        folder_pairs(plain, "training")
    (plain / "masks" / "day" / "3.tif").unlink()
    (plain / "masks" / "day" / "3.png").unlink()
    with pytest.raises(BadImageError, match=rf"day/3\.jpg has no mask in {plain}/masks\."):
        open_label_maps(DataArguments(train_dir=str(plain)), None, 0)
    training, _ = open_label_maps(DataArguments(train_dir=str(plain), on_bad_image="skip"), None, 0)
    with pytest.raises(BadImageError, match=r"day/3\.jpg has no mask"):
        Decoder(LABELS)(next(example for example in training if example.name.endswith("3.jpg")))
    table = tmp_path / "scenes.csv"
    table.write_text("photo,mask\na,b\n")
    with pytest.raises(ValueError, match=r"columns photo, mask, expected image,mask with or without split"):
        csv_pairs([table], "training")
    table.write_text("image,mask,split\na,b,train\na,b,holdout\n")
    with pytest.raises(ValueError, match=r"scenes\.csv, line 3: the split 'holdout' is none of"):
        csv_pairs([table], "training")
    table.write_text("image,mask\na,b\n")  # as --validation_files, without a split column: all rows
    assert [pair.image for pair in csv_pairs([table], "validation", default="validation")] == [tmp_path / "a"]
    assert not csv_pairs([table], "validation")


# Bad masks


def as_png(labels: Any, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def test_bad_masks() -> None:
    cases: dict[str, tuple[bytes | None, str]] = {
        "label": (as_png(np.full((4, 6), 3)), "mask.png holds the value 3, expected 0 to 2, or 255 for none"),
        "size": (as_png(np.zeros((6, 4))), "mask.png is 4x6 pixels and its image photo.png 6x4"),
        "height": (as_png(np.zeros((5, 6))), "mask.png is 6x5 pixels and its image photo.png 6x4"),
        "colours": (as_png(np.eye(4, 6)[..., None] * [9, 8, 7]), r"mask.png is no mask: .*\(4, 6, 3\)"),
        "cut off": (as_png(np.zeros((4, 6)))[:45], "mask.png is damaged or cut off"),
        "empty": (b"", "mask.png is empty"),
        "missing": (None, "photo.png has no mask in mask.png"),
    }
    image = as_png(np.zeros((4, 6, 3)))
    for case, (mask, message) in cases.items():
        said = refusal(case, Decoder(LABELS), Example(image, "photo.png", mask, "mask.png"))
        assert re.match(message, said), case


# Runs


def test_evaluation_is_at_the_original_size(rooms: Path, tmp_path: Path) -> None:
    """Scores of a run are those of its model folder, image by image; pictures are written at each evaluation."""
    start = configuration(tmp_path, P2T)
    out = tmp_path / "out"
    metrics = run(flags(rooms, out, from_scratch=start, eval_steps=2, overlays=2))["metrics"]
    assert metrics["examples"] == 5
    model = AutoModelForSemanticSegmentation.from_pretrained(out / "model").eval()
    processor = AutoImageProcessor.from_pretrained(out / "model")
    assert processor.size["shortest_edge"] == 64
    expected = by_hand(model, processor, rooms)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-12)
    pictures = sorted(str(path.relative_to(out / "overlays")) for path in (out / "overlays").rglob("*.png"))
    assert pictures == [f"step-{step}/{number}.png" for step in (2, 4) for number in (0, 1)]
    card = (out / "model" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "mean_iou" in card


@pytest.mark.slow
def test_evaluation_through_a_window(rooms: Path, tmp_path: Path) -> None:
    start = configuration(tmp_path)
    out = tmp_path / "out"
    metrics = run(flags(rooms, out, from_scratch=start, sliding_window=40))["metrics"]
    model = AutoModelForSemanticSegmentation.from_pretrained(out / "model").eval()
    processor = AutoImageProcessor.from_pretrained(out / "model")
    assert metrics["mean_iou"] == by_hand(model, processor, rooms, window=40)["mean_iou"]
    assert metrics["mean_iou"] != by_hand(model, processor, rooms)["mean_iou"]


def test_overlay_shows_what_was_seen(rooms: Path, tmp_path: Path) -> None:
    """Under their headings the image with its labels, and with the prediction."""
    out = tmp_path / "out"
    run(flags(rooms, out, from_scratch=configuration(tmp_path), overlays=1))
    processor = AutoImageProcessor.from_pretrained(out / "model")
    image = Image.open(rooms / "images" / "validation" / "0.png")
    pixels = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]  # (3, h, w) in [0, 1]
    labels = np.asarray(Image.open(rooms / "annotations" / "validation" / "0.png"))
    seen = (255 * pixels).round().byte().permute(1, 2, 0).numpy()
    expected = hf_pvt.draw_segmentation(
        seen, scene_augmentation.nearest(labels, seen.shape[:2]), dict(enumerate(NAMES))
    )
    drawn = np.asarray(Image.open(out / "overlays" / "step-4" / "0.png"), dtype=np.int64)
    left = np.asarray(side_by_side({"labelled": expected}))
    assert drawn.shape[1] > left.shape[1] + seen.shape[1], "the prediction stands beside it"
    assert np.abs(drawn[: left.shape[0], : left.shape[1]] - left).max() <= 1


def test_streams(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation as they come; the scores are those of the same images in folders."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # five seconds at the end of each epoch
    files = {split: parquet(rooms, split, tmp_path / f"{split}.parquet") for split in ("training", "validation")}
    start, out = configuration(tmp_path), tmp_path / "out"
    names = {"train_files": files["training"], "validation_files": files["validation"]}
    streamed = {"labels": rooms / "labels.json", "train_dir": None, "streaming": True}
    metrics = run(flags(rooms, out, from_scratch=start, **names, **streamed))["metrics"]
    assert metrics["examples"] == 5
    model = AutoModelForSemanticSegmentation.from_pretrained(out / "model").eval()
    processor = AutoImageProcessor.from_pretrained(out / "model")
    assert metrics["mean_iou"] == pytest.approx(by_hand(model, processor, rooms)["mean_iou"], abs=1e-12)


@pytest.mark.slow
def test_resumed_run_ends_the_same(rooms: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, with the batch norm's statistics and a moving average: bit for bit."""
    values = {"from_scratch": configuration(tmp_path), "checkpointing_steps": 2, "ema_decay": 0.5}
    values |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    for name in ("whole", "resumed"):
        whole = run(flags(rooms, tmp_path / name, **values))
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    shutil.rmtree(tmp_path / "resumed" / "model")
    resumed = run([*flags(rooms, tmp_path / "resumed", **values), "--resume"])
    assert resumed["metrics"] == whole["metrics"]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed")]
    assert all(weights[1][name].equal(weight) for name, weight in weights[0].items())
    assert weights[0].keys() == weights[1].keys()


@pytest.mark.slow
def test_the_averages_logits_are_float32(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, too: what is interpolated to the image's size has the precision of the trained model's logits."""
    seen = []
    interpolated = segmentation_evaluation.most_likely_labels

    def most_likely_labels(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        seen.append((logits.dtype, logits.bfloat16().float().equal(logits)))
        return interpolated(logits, size)

    monkeypatch.setattr(segmentation_evaluation, "most_likely_labels", most_likely_labels)
    start = configuration(tmp_path)
    for name, decay in (("model", None), ("average", 0.5)):
        values = {"mixed_precision": "bf16", "max_steps": 1, "per_device_train_batch_size": 2, "ema_decay": decay}
        run(flags(rooms, tmp_path / name, from_scratch=start, **values))
    assert seen == [(torch.float32, True)] * 10  # computed in bf16


def test_bad_masks_stop_or_are_listed(rooms: Path, tmp_path: Path) -> None:
    """Named before the first step; or skipped, counted and listed, in training and in evaluation."""
    root = tmp_path / "rooms"
    for folder in ("images/training", "images/validation", "annotations/training", "annotations/validation"):
        (root / folder).mkdir(parents=True)
        for path in (rooms / folder).iterdir():
            os.link(path, root / folder / path.name)
    (root / "labels.json").write_text(json.dumps(NAMES))
    (root / "annotations/training/7.png").unlink()
    write_png(root / "annotations/training/7.png", np.full((48, 71), 9, dtype=np.uint8))
    (root / "annotations/validation/2.png").unlink()
    arguments = flags(root, tmp_path / "out", from_scratch=configuration(tmp_path), num_train_epochs=1, max_steps=None)
    with pytest.raises(BadImageError) as caught:
        run(arguments)
    assert str(caught.value) == f"{root}/images/validation/2.png has no mask in {root}/annotations/validation."
    results = run([*arguments, "--on_bad_image", "skip"])
    assert results["metrics"]["examples"] == 4
    assert {Path(name).relative_to(root).as_posix(): reason for name, reason in results["bad_images"].items()} == {
        "annotations/training/7.png": "holds the value 9, expected 0 to 2, or 255 for none",
        "images/validation/2.png": f"has no mask in {root}/annotations/validation",
    }


def test_accumulation_is_the_mean_over_labelled_pixels(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all of a step's images, though they differ in how much is ignored; batch norm is held still, as it is not."""
    monkeypatch.setattr(SynchronizedBatchNorm2d, "forward", lambda self, x: x * self.weight[:, None, None])
    start = {"from_scratch": configuration(tmp_path), "max_grad_norm": 1, "max_steps": 2}
    weights = []
    for accumulation in (1, 2, 4):
        out = tmp_path / str(accumulation)
        parts = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
        run(flags(rooms, out, **start, **parts))
        weights.append(load_file(out / "model" / "model.safetensors"))
    for accumulated in weights[1:]:
        torch.testing.assert_close(accumulated, weights[0], rtol=1e-5, atol=1e-5)
