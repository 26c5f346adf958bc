"""Both scripts on images of other channels and depths: what is told by the fourth channel alone is learnt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_image_classification
import run_semantic_segmentation
import tifffile
import torch
from classification_runs import flags, run, too_small
from families import PVT_V2
from PIL import Image
from script_runs import reset, results
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation, pipeline

import hf_pvt
from hf_pvt.batch_inference.arguments import Arguments
from hf_pvt.batch_inference.output_kinds import Embedder
from hf_pvt.images.image_processing_pvt import channel_statistics
from hf_pvt.training.arguments import DataArguments, leave_colours, statistics
from hf_pvt.training.data.decoding import BadImageError
from hf_pvt.training.data.label_values import LabelValues
from hf_pvt.training.data.masks import Decoder, Example

GENERATOR = np.random.default_rng(0)
LEVELS = (6_000, 40_000)  # of 65,535: in 8 bits 23 and 156, clipped to 8 bits white and white
STEPS = {"max_steps": 50, "warmup_steps": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 8}

LABELS = LabelValues(["background", "object"], [0, 1], frozenset({255}))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {} if pixels.shape[2] == 1 else {"planarconfig": "contig"}
    tifffile.imwrite(path, pixels, photometric="minisblack", **settings)
    return path


def scene(fourth: np.ndarray) -> np.ndarray:
    """Three channels of noise and the one that counts: (H, W, 4), 16 bits."""
    noise = GENERATOR.integers(0, 65536, (*fourth.shape, 3))
    return np.dstack((noise, fourth + GENERATOR.integers(0, 2000, fourth.shape))).astype(np.uint16)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three channels, saved as everybody saves one."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = hf_pvt.PvtV2Config.from_pretrained(too_small(folder, num_labels=5, drop_path_rate=0.0))
    PVT_V2.classifier(config).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_classification(start: Path, tmp_path: Path) -> None:
    for split, count in (("train", 24), ("validation", 6)):
        for name, level in zip(("dark", "light"), LEVELS, strict=True):
            for index in range(count):
                write(tmp_path / split / name / f"{index}.tif", scene(np.full((40, 48), level)))
    numbers = {"image_mean": ["0.5"] * 4, "image_std": ["0.25"] * 4}
    words = flags(tmp_path, tmp_path / "out", model_name_or_path=start, num_channels=4, **STEPS)
    run([*words, *(word for name, values in numbers.items() for word in (f"--{name}", *values))])
    record = results(tmp_path / "out")
    assert record["metrics"]["top1_accuracy"] == 1.0
    assert record["arguments"]["color_jitter"] == record["arguments"]["rand_augment"] == 0.0
    folder = str(tmp_path / "out" / "model")
    processor = AutoImageProcessor.from_pretrained(folder)
    assert list(processor.image_mean) == [0.5] * 4 and list(processor.image_std) == [0.25] * 4
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.num_channels == 4
    classify = pipeline("image-classification", model=model, image_processor=processor)
    for name in ("dark", "light"):
        assert classify(str(tmp_path / "validation" / name / "0.tif"))[0]["label"] == name
    embedder = Embedder(Arguments(model_name_or_path=folder), torch.device("cpu"))
    assert embedder.channels == 4
    # The same folder goes on without the flag, and refuses what has other channels.
    reset()
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "dark" / "colours.png")
    with pytest.raises(BadImageError, match=r"colours\.png cannot be used: .*has not the 4 channels"):
        run(flags(tmp_path, tmp_path / "again", model_name_or_path=folder, **STEPS | {"max_steps": 8}))


@pytest.mark.slow
def test_segmentation(start: Path, tmp_path: Path) -> None:
    for split, count in (("training", 24), ("validation", 4)):
        for index in range(count):
            labels = np.zeros((64, 64), dtype=np.uint8)
            labels[:, : 16 * GENERATOR.integers(1, 4)] = 1
            write(tmp_path / "images" / split / f"{index}.tif", scene(np.array(LEVELS)[labels]))
            mask = tmp_path / "annotations" / split / f"{index}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(mask)
    (tmp_path / "labels.json").write_text(json.dumps(["dark", "light"]))
    values = {"train_dir": tmp_path, "output_dir": tmp_path / "out", "model_name_or_path": start, "num_channels": 4}
    values |= {"shorter_side": 64, "longer_side": 64, "crop_size": 64, "dataloader_num_workers": 0, "layer_decay": 1}
    values |= {"scale_lowest": 1, "scale_highest": 1, "published_resampling": True, **STEPS}
    reset()
    run_semantic_segmentation.main([word for name, value in values.items() for word in (f"--{name}", str(value))])
    reset()
    assert results(tmp_path / "out")["metrics"]["mean_iou"] > 0.8
    folder = tmp_path / "out" / "model"
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.published_resampling and len(processor.image_mean) == 4
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    answers = pipeline("image-segmentation", model=model, image_processor=processor)(
        str(tmp_path / "images" / "validation" / "0.tif")
    )
    masks = {answer["label"]: np.asarray(answer["mask"]) > 0 for answer in answers}
    truth = np.asarray(Image.open(tmp_path / "annotations" / "validation" / "0.png")) == 1
    assert (masks["light"] == truth).mean() > 0.9
    assert list((tmp_path / "out" / "overlays").rglob("*.png"))  # of the first three channels


def classification_view(num_channels: int) -> Any:
    fields = run_image_classification.ClassificationArguments.__dataclass_fields__
    recipe = {k: v for k, v in run_image_classification.RECIPES["pvt-imagenet"].items() if k in fields}
    task = run_image_classification.ClassificationArguments(**recipe | {"image_size": 32})  # type: ignore[arg-type]
    leave_colours(task, run_image_classification.COLOURS, [], num_channels)
    processor = hf_pvt.classification_image_processor(32, num_channels)
    return run_image_classification.TrainingView(task, processor)


def segmentation_view(num_channels: int, mask: Path) -> Any:
    fields = run_semantic_segmentation.SegmentationArguments.__dataclass_fields__
    recipe = {k: v for k, v in run_semantic_segmentation.RECIPES["ade20k"].items() if k in fields}
    task = run_semantic_segmentation.SegmentationArguments(**recipe | {"crop_size": 32})  # type: ignore[arg-type]
    leave_colours(task, run_semantic_segmentation.COLOURS, [], num_channels)
    processor = hf_pvt.segmentation_image_processor(num_channels, published_resampling=True)
    view = run_semantic_segmentation.TrainingView(task, Decoder(LABELS, num_channels), processor)
    return lambda path: view(Example(path, "image", mask, "mask"))


@pytest.mark.parametrize("depth", ["16 bits.png", "floats.tif"])
def test_depth_in_training(depth: str, tmp_path: Path) -> None:
    """The same as the picture of 8 bits, in every augmentation."""
    grey = GENERATOR.integers(0, 256, (48, 56), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "8 bits.png")
    Image.fromarray(grey // 128).save(tmp_path / "mask.png")
    deep = Image.fromarray(grey.astype(np.float32) / 255 if "floats" in depth else grey.astype(np.uint16) * 256 + 99)
    deep.save(tmp_path / depth)
    views = [classification_view(3), segmentation_view(3, tmp_path / "mask.png")]
    for view in (lambda path: views[0]((path, "image", 0)), views[1]):
        samples = []
        for file in ("8 bits.png", depth):
            torch.manual_seed(5)
            samples.append(view(tmp_path / file)["pixel_values"])
        assert samples[0].std() > 0.1
        torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=0)


@pytest.mark.parametrize("num_channels", [1, 5])
def test_views_of_other_channels(num_channels: int, tmp_path: Path) -> None:
    """With the published recipes, but for colours: all channels, cropped, turned and normalised together."""
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 60, dtype=np.float32), (60, 60))
    write(tmp_path / "image.tif", np.stack([ramp * (1 - channel / 10) for channel in range(num_channels)], axis=2))
    Image.fromarray((np.indices((60, 60)).sum(0) % 2).astype(np.uint8)).save(tmp_path / "mask.png")
    mean, std = (torch.tensor(values) for values in channel_statistics(num_channels).values())
    views = [classification_view(num_channels), segmentation_view(num_channels, tmp_path / "mask.png")]
    views[0].transform.transforms.pop()  # random erasing, by noise
    for view in (lambda path: views[0]((path, "image", 0)), views[1]):
        torch.manual_seed(2)
        sample = view(tmp_path / "image.tif")["pixel_values"]
        assert type(sample) is torch.Tensor and sample.shape == (num_channels, 32, 32) and sample.std() > 0.01
        levels = sample * std[:, None, None] + mean[:, None, None]
        for channel in range(num_channels):
            torch.testing.assert_close(levels[channel], levels[0] * (1 - channel / 10), rtol=0, atol=1e-5)


def test_flags_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="--image_mean has 3 numbers, expected one for each of 4 channels"):
        statistics(DataArguments(image_mean=[0.1, 0.2, 0.3]), 4)
    task = run_image_classification.ClassificationArguments(color_jitter=0.4)
    with pytest.raises(ValueError, match="--color_jitter moves colours, which images of 4 channels have not"):
        leave_colours(task, run_image_classification.COLOURS, ["color_jitter"], 4)
    leave_colours(task, run_image_classification.COLOURS, ["color_jitter"], 3)
    assert task.color_jitter == 0.4
