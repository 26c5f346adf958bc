"""Data sets with a column of objects, streams of them, and images of other channels."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tifffile
from detection_runs import NAMES, annotated_scenes, by_hand, detector, flags, run
from families import MASK_RCNN, RETINANET
from script_runs import weights
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hf_pvt.detection.coco_masks import encode_mask

NUMBER = datasets.Value("float32")
ENCODING = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
CATEGORY = datasets.ClassLabel(names=NAMES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # seconds at the end of each epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return annotated_scenes(tmp_path_factory.mktemp("data"), 16, 7)


def objects_of(content: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
    return [entry for entry in content["annotations"] if entry["image_id"] == image_id]


def as_lists(data: Path, share: str, path: Path) -> Path:
    """Objects as a dictionary of lists, as older data sets have it; categories with names."""
    content = json.loads((data / share / "annotations.json").read_text())
    rows: dict[str, list[Any]] = {"image": [], "objects": []}
    for image in content["images"]:
        objects = objects_of(content, image["id"])
        labels = [(entry["category_id"] - 3) // 2 for entry in objects]
        rows["image"].append(str(data / share / image["file_name"]))
        rows["objects"].append({"bbox": [entry["bbox"] for entry in objects], "category": labels})
    objects_type = {"bbox": datasets.List(datasets.List(NUMBER)), "category": datasets.List(CATEGORY)}
    features = datasets.Features({"image": datasets.Image(), "objects": objects_type})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def as_dictionaries(data: Path, share: str, path: Path) -> Path:
    """Objects as a list of dictionaries, with masks, areas and sizes, under other names."""
    content = json.loads((data / share / "annotations.json").read_text())
    rows: dict[str, list[Any]] = {"photo": [], "height": [], "width": [], "found": []}
    for image in content["images"]:
        objects = [
            {
                "bbox": entry["bbox"],
                "label": (entry["category_id"] - 3) // 2,
                "area": entry["area"],
                "is_crowd": False,
                "segmentation": entry["segmentation"],
            }
            for entry in objects_of(content, image["id"])
        ]
        for name, value in (("height", 64), ("width", 64), ("found", objects)):
            rows[name].append(value)
        rows["photo"].append(str(data / share / image["file_name"]))
    entry_type = {"bbox": datasets.List(NUMBER), "label": CATEGORY, "area": NUMBER, "is_crowd": datasets.Value("bool")}
    side = datasets.Value("int32")
    features = {"photo": datasets.Image(), "height": side, "width": side}
    features |= {"found": datasets.List(entry_type | {"segmentation": ENCODING})}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)
    return path


TABLES = {"lists": (as_lists, RETINANET, {}), "dictionaries": (as_dictionaries, MASK_RCNN, {"objects_column": "found"})}


@pytest.mark.parametrize("layout", ["lists", pytest.param("dictionaries", marks=pytest.mark.slow)])
def test_a_column_of_objects(layout: str, data: Path, tmp_path: Path) -> None:
    """The weights and scores of the same images and objects as COCO's JSON has them."""
    write, kind, values = TABLES[layout]
    start = detector(tmp_path / "start", kind, sure=True)
    files = {f"{s}_files": write(data, s, tmp_path / f"{s}.parquet") for s in ("train", "validation")}
    rows = {"train_dir": None, "validation_dir": None} | files | values
    columns = run(flags(data, tmp_path / "columns", model_name_or_path=start, **rows))
    folders = run(flags(data, tmp_path / "folders", model_name_or_path=start))
    assert columns["metrics"]["examples"] == 7 and columns["metrics"]["box_ap"] > 0
    assert columns["metrics"] == folders["metrics"]
    found = [weights(tmp_path / name) for name in ("columns", "folders")]
    assert all(found[1][name].equal(weight) for name, weight in found[0].items())
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "columns" / "model")
    assert list(model.config.id2label.values()) == NAMES


@pytest.mark.parametrize("layout", ["dictionaries", pytest.param("lists", marks=pytest.mark.slow)])
def test_streams(layout: str, data: Path, tmp_path: Path) -> None:
    """Training and validation as they come; the scores are those of the same images in a folder."""
    write, kind, values = TABLES[layout]
    start = detector(tmp_path / "start", kind, sure=True)
    files = {f"{s}_files": write(data, s, tmp_path / f"{s}.parquet") for s in ("train", "validation")}
    rows = {"train_dir": None, "validation_dir": None, "streaming": True, "max_steps": 6} | files | values
    metrics = run(flags(data, tmp_path / "out", model_name_or_path=start, **rows))["metrics"]
    assert metrics["examples"] == 7
    for name, value in by_hand(tmp_path / "out" / "model", data / "validation").items():
        assert metrics[name] == pytest.approx(value, abs=1e-6)
    assert metrics["box_ap"] > 0


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_bad_rows_are_skipped_and_listed(streaming: bool, data: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_parquet(str(as_lists(data, "validation", tmp_path / "sound.parquet")))
    spoiled = [
        row | {"objects": {"bbox": [[70, 1, 5, 5]], "category": [2]}} if n == 3 else row for n, row in enumerate(rows)
    ]
    datasets.Dataset.from_list(spoiled, features=rows.features).to_parquet(tmp_path / "bad.parquet")
    files = {"train_files": as_lists(data, "train", tmp_path / "train.parquet"), "train_dir": None}
    files |= {"validation_files": tmp_path / "bad.parquet", "validation_dir": None, "streaming": streaming}
    start = detector(tmp_path / "start", RETINANET)
    values = {"model_name_or_path": start, "max_steps": 1}
    with pytest.raises(ValueError, match=r"row 3\) has broken objects: .*outside its image of 64x64"):
        run(flags(data, tmp_path / "error", **values, **files))
    record = run(flags(data, tmp_path / "skip", on_bad_image="skip", **values, **files))
    assert record["metrics"]["examples"] == 6
    ((file, reason),) = record["bad_images"].items()
    assert "row 3" in file and "outside its image of 64x64" in reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objects_column": "things"}, "there is no column 'things' of objects, only: image, objects; choose with "),
        ({"train_files": "gone*.parquet"}, "no file matches gone*.parquet."),
        ({"streaming": True, "max_steps": None}, "a stream has no length; say with --max_steps how long to train."),
    ],
    ids=["column", "files", "length"],
)
def test_what_cannot_be_read(values: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    rows = {"train_files": as_lists(data, "train", tmp_path / "train.parquet"), "train_dir": None}
    start = detector(tmp_path / "start", RETINANET)
    with pytest.raises((ValueError, OSError)) as caught:
        run(flags(data, tmp_path / "out", model_name_or_path=start, **rows | values))
    assert str(caught.value).startswith(message)


def four_channels(root: Path, training: int, validation: int) -> Path:
    """Three channels of noise, and one with a bright rectangle of 24 to 40 pixels; TIFF files of 16 bits."""
    generator = np.random.default_rng(0)
    for share, count in (("train", training), ("validation", validation)):
        folder = root / share
        folder.mkdir(parents=True)
        images, objects = [], []
        for number in range(1, count + 1):
            pixels = generator.integers(0, 65536, (64, 64, 4)).astype(np.uint16)
            width, height = (int(side) for side in generator.integers(24, 41, 2))
            x, y = (int(generator.integers(0, 65 - side)) for side in (width, height))
            mask = np.zeros((64, 64), dtype=bool)
            mask[y : y + height, x : x + width] = True
            pixels[..., 3] = np.where(mask, 40_000, 6_000) + generator.integers(0, 2000, mask.shape)
            tifffile.imwrite(folder / f"{number}.tif", pixels, photometric="minisblack", planarconfig="contig")
            images.append({"id": number, "file_name": f"{number}.tif", "width": 64, "height": 64})
            entry = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, width, height]}
            objects.append(entry | {"area": width * height, "segmentation": encode_mask(mask)})
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "field"}]}
        (folder / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_four_channels(tmp_path: Path) -> None:
    """What the fourth alone tells is learnt, from a detector for three; statistics and pictures follow."""
    data = four_channels(tmp_path / "data", 48, 8)
    start = detector(tmp_path / "start", RETINANET, (16, 32, 48, 64), anchor_scales=(2,), anchor_ratios=(1,))
    values = {"model_name_or_path": start, "num_channels": 4, "overlays": 1, "max_steps": 70}
    values |= {"per_device_train_batch_size": 8, "learning_rate": 3e-3, "scale_lowest": 1, "max_grad_norm": 1}
    record = run(flags(data, tmp_path / "out", **values))
    assert record["metrics"]["box_ap50"] > 0.5
    assert record["arguments"]["photometric_distortion"] == 0.0
    folder = tmp_path / "out" / "model"
    model = AutoModelForObjectDetection.from_pretrained(folder)
    assert model.config.num_channels == 4 and len(AutoImageProcessor.from_pretrained(folder).image_mean) == 4
    assert list((tmp_path / "out" / "overlays").rglob("*.png"))
    with pytest.raises(ValueError, match="--photometric_distortion moves colours, which images of 4 channels have not"):
        run(flags(data, tmp_path / "colours", photometric_distortion=0.5, **values))
