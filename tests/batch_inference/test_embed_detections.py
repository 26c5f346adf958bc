"""The batch inference script's detections: values, masks, shapes, interruption, what is refused."""

import sys
from pathlib import Path
from typing import Any

import embed_images
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
import torch
from detector_checkpoints import layout_of, tiny
from families import MASK_RCNN, P2T, PVT_V2, RETINANET, DetectorRow, tiny_detector
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

import hf_pvt
from hf_pvt.batch_inference.arguments import Arguments
from hf_pvt.batch_inference.output_kinds import Detector, output_class
from hf_pvt.original.pyramid_layouts import to_original

SMALL = {"shortest_edge": 64, "longest_edge": 160}
COLUMNS = ["key", "boxes", "scores", "labels", "names"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of three sizes, resized to 64x112, 64x91 and 64x77: two of them are padded to the same."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(11):
        pixels = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 40 + 9 * (index % 3))).save(root / f"{index:02}.png")
    return root


def saved(detector: DetectorRow, folder: Path, **overrides: Any) -> tuple[Any, Any]:
    """A model and its processor, also in a folder."""
    model, processor = tiny_detector(detector, **overrides), hf_pvt.detection_image_processor(size=SMALL)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def embed(monkeypatch: pytest.MonkeyPatch, output_dir: Path, **flags: Any) -> pa.Table:
    """The script's main in this process, and its shards as one table."""
    values = {"output": "detections", "output_dir": output_dir, "unit_size": 4, "batch_size": 4} | flags
    words = [str(word) for name, value in values.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["embed_images.py", *words])
    embed_images.main()
    return pa.concat_tables([pq.read_table(shard) for shard in sorted(output_dir.glob("*.parquet"))])


def by_hand(model: Any, processor: Any, path: Path, **settings: Any) -> dict[str, Any]:
    """What the processor makes of the model's output for one image alone."""
    with Image.open(path) as image, torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
        settings = {"threshold": 0.05, "target_sizes": torch.tensor([image.size[::-1]])} | settings
    if getattr(model, "has_masks", False):
        return processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **settings)[0]
    return processor.post_process_object_detection(outputs, **settings)[0]


def assert_same(row: dict[str, Any], expected: dict[str, Any], names: dict[int, str]) -> None:
    np.testing.assert_allclose(row["scores"], expected["scores"].numpy(), atol=1e-5)
    assert row["labels"] == expected["labels"].tolist()
    assert row["names"] == [names[label] for label in row["labels"]]
    np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), expected["boxes"].numpy(), atol=1e-3)  # pixels


@pytest.mark.parametrize("detector", [RETINANET, MASK_RCNN], ids=str)
def test_detections(detector: DetectorRow, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each image alone, whatever its batch; the masks' pixels are the processor's."""
    model, processor = saved(detector, tmp_path / "model")
    table = embed(monkeypatch, tmp_path / "out", model_name_or_path=tmp_path / "model", input_dir=photos)
    assert table.column_names == [*COLUMNS, "masks"] if detector is MASK_RCNN else COLUMNS
    assert len(table) == 11 and min(map(len, table["scores"].to_pylist())) > 0
    for row in table.to_pylist():
        expected = by_hand(model, processor, photos / row["key"])
        assert_same(row, expected, model.config.id2label)
        if detector is MASK_RCNN:
            masks = np.moveaxis(coco_mask.decode(row["masks"]), 2, 0).astype(bool)  # (n, H, W)
            assert (masks == expected["segmentation"].numpy()).mean() > 0.9999 and masks.any()  # rounding of a batch


@pytest.mark.slow
def test_columns(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their types, which images without detections have as well."""
    saved(MASK_RCNN, tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "input_dir": photos}
    table = embed(monkeypatch, tmp_path / "none", threshold=0.99, **flags)
    assert table["boxes"].to_pylist() == table["masks"].to_pylist() == [[]] * 11
    assert table["boxes"].type == pa.list_(pa.list_(pa.float32(), 4))
    assert table["masks"].type == pa.list_(pa.struct({"size": pa.list_(pa.int32(), 2), "counts": pa.string()}))
    assert [str(table[name].type) for name in COLUMNS] == [
        "string",
        str(table["boxes"].type),
        "list<element: float>",
        "list<element: int32>",
        "list<element: string>",
    ]
    assert table.schema.equals(embed(monkeypatch, tmp_path / "some", **flags).schema)


def test_threshold(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also below the model's own, under which it gives nothing by itself; what is no score is refused."""
    model, processor = saved(RETINANET, tmp_path / "model", score_threshold=0.3)
    flags = {"model_name_or_path": tmp_path / "model", "input_dir": photos}
    counts = {}
    for threshold in (0.25, 0.3, 0.32):
        rows = embed(monkeypatch, tmp_path / str(threshold), threshold=threshold, **flags).to_pylist()
        model.config.score_threshold = min(threshold, 0.3)
        for row in rows[:3]:
            expected = by_hand(model, processor, photos / row["key"], threshold=threshold)
            assert_same(row, expected, model.config.id2label)
        lowest = min(score for row in rows for score in row["scores"])
        assert threshold < lowest < threshold + 0.02
        counts[threshold] = sum(len(row["scores"]) for row in rows)
    assert 0 < counts[0.32] < counts[0.3] < counts[0.25] / 2
    with pytest.raises(ValueError, match=r"--threshold is 50\.0, expected a score from 0 to below 1"):
        output_class(Arguments(output="detections", threshold=50.0))
    with pytest.raises(ValueError, match=r"threshold was 0\.25 and is 0\.4.*choose another folder"):
        embed(monkeypatch, tmp_path / "0.25", threshold=0.4, **flags)


@pytest.mark.slow
def test_interrupted_and_resumed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second of three shards: the first stays, and all are those of a run that nothing interrupted."""
    saved(MASK_RCNN, tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "input_dir": photos, "batch_size": 2}
    whole = embed(monkeypatch, tmp_path / "whole", **flags)
    computed = Detector.columns
    batches = []

    def interrupted(self: Detector, batch: Any, sizes: Any) -> Any:
        batches.append(sizes)
        if sum(map(len, batches)) > 6:
            raise KeyboardInterrupt
        return computed(self, batch, sizes)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Detector, "columns", interrupted)
        embed(patch, tmp_path / "out", **flags)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_job.json", "part-00000-of-00003.parquet"}
    written = (tmp_path / "out" / "part-00000-of-00003.parquet").stat().st_mtime_ns
    assert embed(monkeypatch, tmp_path / "out", **flags).equals(whole)
    assert (tmp_path / "out" / "part-00000-of-00003.parquet").stat().st_mtime_ns == written


@pytest.mark.slow
def test_published_checkpoint(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published processor and the checkpoint's names."""
    model: Any = tiny(P2T)
    model.bbox_head.retina_cls.bias.data.add_(3)
    names = ("person", "bicycle", "car", "motorcycle", "airplane")
    content = {"state_dict": to_original(model, layout_of(model)), "meta": {"CLASSES": names}}
    torch.save(content, tmp_path / "retinanet.pth")
    (tmp_path / "one").mkdir()
    Image.open(photos / "00.png").save(tmp_path / "one" / "00.png")
    flags = {"model_name_or_path": tmp_path / "retinanet.pth", "input_dir": tmp_path / "one"}
    (row,) = embed(monkeypatch, tmp_path / "out", **flags).to_pylist()
    assert row["scores"]
    expected = by_hand(model, hf_pvt.detection_image_processor(), photos / "00.png")
    assert_same(row, expected, dict(enumerate(names)))


def test_detectors_of_transformers(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DETR on one of our pyramids, with its own processor."""
    torch.manual_seed(0)
    backbone = PVT_V2.tiny_config(out_features=["stage4"])
    layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "num_queries": 5}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **layers, **heads)).eval()
    processor = DetrImageProcessor(size=SMALL)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "input_dir": photos}
    rows = embed(monkeypatch, tmp_path / "out", **flags).to_pylist()
    assert any(row["scores"] for row in rows)
    for row in rows:
        assert_same(row, by_hand(model, processor, photos / row["key"]), model.config.id2label)


def test_models_of_another_kind(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier has no detections, published or not, and a detector nothing else."""
    PVT_V2.classifier(PVT_V2.tiny_config()).save_pretrained(tmp_path / "classifier")
    saved(RETINANET, tmp_path / "detector")

    def message(folder: Path | str, output: str) -> str:
        with pytest.raises(ValueError) as error:
            embed(monkeypatch, tmp_path / "out", model_name_or_path=folder, input_dir=photos, output=output)
        assert not (tmp_path / "out").exists()
        return str(error.value).removeprefix(str(tmp_path))

    rest = "choose another model or --output."
    expected = f"/classifier is a pvt_v2, which gives no detections; {rest}"
    assert message(tmp_path / "classifier", "detections") == expected
    for output in ("embeddings", "predictions", "masks"):
        expected = f"/detector is a retinanet, which gives no {output}; {rest}"
        assert message(tmp_path / "detector", output) == expected
    torch.save(reference.checkpoint("pvt-v2-b0"), tmp_path / "classifier.pth")
    expected = "/classifier.pth has no weights for neck; choose another model."
    assert message(tmp_path / "classifier.pth", "detections") == expected


def test_without_the_library_of_masks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is computed or written."""
    saved(MASK_RCNN, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    with pytest.raises(ImportError, match="COCO's masks need faster-coco-eval, which is not there"):
        embed(monkeypatch, tmp_path / "out", model_name_or_path=tmp_path / "model", input_dir=photos)
    assert not (tmp_path / "out").exists()
