"""The batch inference script: values, sources, processes, interruption, bad images."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import embed_images
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from families import P2T, PVT, PVT_V2
from paths import SUPPORT
from PIL import Image
from script_runs import ENVIRONMENT
from torch import Tensor

import hf_pvt
from hf_pvt.batch_inference.arguments import Arguments
from hf_pvt.batch_inference.mask_files import MaskFiles
from hf_pvt.batch_inference.output_kinds import Embedder, output_class, png
from hf_pvt.batch_inference.shards import write_shard
from hf_pvt.batch_inference.units import open_source
from hf_pvt.training.data.decoding import BadImageError

CROP = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of several sizes and formats in two folders, and a hidden file as desktops leave them."""
    root = tmp_path_factory.mktemp("photos")
    (root / ".thumbnails").write_bytes(b"")
    generator = np.random.default_rng(0)
    for index in range(11):
        pixels = generator.integers(0, 256, (40 + 9 * (index % 3), 70, 3), dtype=np.uint8)
        folder = root / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02}.{('png', 'jpg')[index % 2]}")
    return root


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    PVT_V2.classifier(PVT_V2.tiny_config()).save_pretrained(folder)
    hf_pvt.classification_image_processor(CROP).save_pretrained(folder)
    return folder


def embed(monkeypatch: pytest.MonkeyPatch, output_dir: Path, **flags: Any) -> pa.Table:
    """The script's main in this process, and its shards as one table."""
    values = {"output_dir": output_dir, "unit_size": 4, "batch_size": 3, "num_workers": 2} | flags
    words = [word for name, value in values.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    monkeypatch.setattr(sys, "argv", ["embed_images.py", *words])
    embed_images.main()
    return table_of(output_dir)


def table_of(output_dir: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(shard) for shard in sorted(output_dir.glob("*.parquet"))])


def pixels_of(processor: Any, path: Path) -> Tensor:
    with Image.open(path) as image:
        return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


def test_embeddings(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the files' order, what the classifier reads; shards as large as was asked for."""
    table = embed(monkeypatch, tmp_path, model_name_or_path=classifier, input_dir=photos)
    files = sorted(photos.glob("[ab]/*"))
    assert table["key"].to_pylist() == [str(file.relative_to(photos)) for file in files]
    shards = sorted(tmp_path.glob("*.parquet"))
    assert [shard.name for shard in shards] == [f"part-{unit:05}-of-00003.parquet" for unit in range(3)]
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [4, 4, 3]
    model = PVT_V2.classifier.from_pretrained(classifier).eval()
    processor = hf_pvt.classification_image_processor(CROP)
    for file, embedding in zip(files, table["embedding"].to_pylist(), strict=True):
        with torch.no_grad():
            expected = model.pvt_v2(pixels_of(processor, file)).last_hidden_state.mean((2, 3))[0]
        torch.testing.assert_close(torch.tensor(embedding), expected, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "_bad_images.json").read_text()) == {}


def test_predictions(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = embed(monkeypatch, tmp_path, model_name_or_path=classifier, input_dir=photos, output="predictions", top_k=2)
    model = PVT_V2.classifier.from_pretrained(classifier).eval()
    processor = hf_pvt.classification_image_processor(CROP)
    for row in table.to_pylist():
        with torch.no_grad():
            scores, labels = model(pixels_of(processor, photos / row["key"])).logits[0].softmax(-1).topk(2)
        assert row["labels"] == labels.tolist()
        assert row["names"] == [f"LABEL_{label}" for label in labels.tolist()]
        np.testing.assert_allclose(row["scores"], scores.numpy(), atol=1e-6)


def test_masks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each image's own size, though the images of a batch differ in theirs."""
    torch.manual_seed(0)
    segmenter = P2T.segmenter(P2T.tiny_config()).eval()
    segmenter.save_pretrained(tmp_path / "model")
    processor = hf_pvt.segmentation_image_processor(size={"shortest_edge": 64, "longest_edge": 256})
    processor.save_pretrained(tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "input_dir": photos, "output": "masks"}
    rows = embed(monkeypatch, tmp_path / "masks", **flags).to_pylist()
    assert len(rows) == 11
    for row in rows:
        with Image.open(io.BytesIO(row["mask"])) as mask, Image.open(photos / row["key"]) as image:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "L", image.size)
            labels, size = np.asarray(mask), image.size[::-1]
        with torch.no_grad():
            outputs = segmenter(pixels_of(processor, photos / row["key"]))
        expected = processor.post_process_semantic_segmentation(outputs, [size])[0].numpy()
        assert (labels == expected).mean() > 0.999  # a batch's products may round elsewhere
    assert len({label for row in rows for label in np.asarray(Image.open(io.BytesIO(row["mask"]))).flat}) > 1


def test_masks_as_files(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that would stand in the shards, under the images' names; of shards by their number."""
    torch.manual_seed(0)
    P2T.segmenter(P2T.tiny_config()).save_pretrained(tmp_path / "model")
    flags = {"model_name_or_path": tmp_path / "model", "output": "masks"}
    expected = embed(monkeypatch, tmp_path / "bytes", input_dir=photos, **flags).to_pylist()
    flags["masks_as_files"] = True
    embed(monkeypatch, tmp_path / "files", input_dir=photos, **flags)
    rows = pq.read_table(tmp_path / "files").to_pylist()  # which passes over the masks
    assert [row["mask_file"] for row in rows] == [f"_masks/{row['key'][:-4]}.png" for row in rows]
    for row, one in zip(rows, expected, strict=True):
        assert row.keys() == {"key", "mask_file"} and row["key"] == one["key"]
        assert (tmp_path / "files" / row["mask_file"]).read_bytes() == one["mask"]
    tar(tmp_path / "0.tar", sorted(photos.rglob("*.png"))[:1])
    row = embed(monkeypatch, tmp_path / "tar", input_files=tmp_path / "0.tar", **flags).to_pylist()[0]
    assert row["mask_file"] == f"_masks/00000/{row['key']}.png"
    assert (tmp_path / "tar" / row["mask_file"]).read_bytes() == expected[0]["mask"]


def test_masks_that_cannot_be_files(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the same name, one out of the folder, and what is no mask: told before anything is computed."""
    (photos / "a" / "00.gif").write_bytes(b"")
    flags = {"model_name_or_path": "nowhere", "output": "masks", "masks_as_files": True}
    with pytest.raises(ValueError, match=r"the masks of a/00\.gif and a/00\.png would both be a/00\.png; rename one"):
        embed(monkeypatch, tmp_path, input_dir=photos, **flags)
    (photos / "a" / "00.gif").unlink()
    masks = MaskFiles(tmp_path, Path("_masks"))
    assert masks.name("/data/a.jpg") == Path("_masks/data/a.png")
    with pytest.raises(ValueError, match=r"the key '\.\./a\.png' cannot be a mask's file"):
        masks.write(["../a.png"], [b""])
    masks.write(["one"], [b""])
    with pytest.raises(ValueError, match=r"the masks of one and one would both be _masks/one\.png"):
        masks.write(["one"], [b""])
    with pytest.raises(ValueError, match="--masks_as_files needs --output masks, not embeddings"):
        output_class(Arguments(masks_as_files=True))


def test_mask_of_many_labels() -> None:
    labels = torch.tensor([[0, 299], [7, 1]])
    assert np.asarray(Image.open(io.BytesIO(png(labels)))).tolist() == labels.tolist()


def tar(path: Path, files: list[Path]) -> None:
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, file.name)


def test_shards_in_shards_out(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDataset shards, parquet files and a data set of two: two shards, with the same embeddings as the folder's."""
    files = sorted(photos.rglob("*.png"))
    model = {"model_name_or_path": classifier}
    folder = embed(monkeypatch, tmp_path / "folder", input_dir=photos, **model).to_pylist()
    expected = {Path(row["key"]).stem: row["embedding"] for row in folder if row["key"].endswith("png")}
    for number, part in enumerate((files[:4], files[4:])):
        tar(tmp_path / f"{number}.tar", part)
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in part]
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.table({"photo": images, "label": [0] * len(part)}), tmp_path / "set" / f"{number}.parquet")
    inputs = {
        "tar": {"input_files": tmp_path / "*.tar"},
        "parquet": {"input_files": tmp_path / "set" / "*.parquet", "image_column": "photo"},
        "set": {"dataset_name": tmp_path / "set", "image_column": "photo"},
    }
    for name, flags in inputs.items():
        out = tmp_path / "out" / name
        table = embed(monkeypatch, out, **flags, **model)
        assert [len(pq.read_table(shard)) for shard in sorted(out.glob("*.parquet"))] == [4, 2]
        found = {Path(row["key"]).stem: row["embedding"] for row in table.to_pylist()}
        assert found.keys() == expected.keys()
        for key, embedding in found.items():
            np.testing.assert_allclose(embedding, expected[key], rtol=1e-5, atol=1e-5)


def test_each_process_its_own(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes makes the odd shards only; the one that completes them writes the list."""
    flags = {"model_name_or_path": classifier, "input_dir": photos, "unit_size": 3}
    expected = embed(monkeypatch, tmp_path / "one", **flags)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    embed(monkeypatch, tmp_path / "two", **flags)
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"_job.json", "part-00001-of-00004.parquet", "part-00003-of-00004.parquet"}
    monkeypatch.setenv("RANK", "0")
    assert embed(monkeypatch, tmp_path / "two", **flags).equals(expected)
    assert (tmp_path / "two" / "_bad_images.json").is_file()


@pytest.mark.processes
def test_killed_and_started_again(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third of four shards: the first two are kept as they are; the result is that of a run nobody killed."""
    flags = {"model_name_or_path": classifier, "input_dir": photos, "unit_size": 3, "batch_size": 2}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    # Of each shard's two batches; the sixth is the third shard's second.
    dying = [SUPPORT / "die_at.py", "hf_pvt.batch_inference.output_kinds", "Embedder.__call__", "5", "embed_images"]
    command = [sys.executable, *dying, *words, "--output_dir", tmp_path / "killed"]
    killed = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.parquet")}
    assert len(whole) == 2 and len(list((tmp_path / "killed").glob("*.incomplete"))) == 1
    assert not (tmp_path / "killed" / "_bad_images.json").exists()
    resumed = embed(monkeypatch, tmp_path / "killed", **flags)
    assert resumed.equals(embed(monkeypatch, tmp_path / "whole", **flags))
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not list((tmp_path / "killed").glob("*.incomplete"))


def test_two_runs_at_once(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes to a file of its own: the one that is killed, or is slower, spoils nothing and leaves nothing."""
    flags = {"model_name_or_path": classifier, "input_dir": photos}
    expected = embed(monkeypatch, tmp_path / "one", **flags)
    slow = Arguments(model_name_or_path=str(classifier), input_dir=str(photos), unit_size=4, batch_size=2)
    source, compute = open_source(slow), Embedder(slow, torch.device("cpu"))
    shard = tmp_path / "two" / "part-00000-of-00003.parquet"
    shard.parent.mkdir()
    batches = write_shard(shard, source.rows(0), compute, slow)
    next(batches)
    (unfinished,) = shard.parent.glob("*.incomplete")
    assert str(os.getpid()) in unfinished.name
    monkeypatch.setattr(os, "getpid", lambda: 1)  # another run
    assert embed(monkeypatch, tmp_path / "two", **flags).equals(expected)
    written = shard.read_bytes()
    assert not list(shard.parent.glob("*.incomplete"))
    list(batches)
    assert shard.read_bytes() == written and len(list(shard.parent.glob("*.incomplete"))) == 0


@pytest.fixture
def spoiled(photos: Path, tmp_path: Path) -> Path:
    """Two sound images and three that are none, one in another unit."""
    root = tmp_path / "spoiled"
    root.mkdir()
    for name in ("a", "f"):
        (root / f"{name}.png").write_bytes((photos / "a" / "00.png").read_bytes())
    (root / "b.png").write_bytes((photos / "a" / "00.png").read_bytes()[:900])
    (root / "c.png").write_bytes(b"")
    (root / "g.txt").write_text("notes")
    return root


def test_bad_images_stop(classifier: Path, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImageError, match=r"spoiled/b\.png is damaged or cut off"):
        embed(monkeypatch, tmp_path / "out", model_name_or_path=classifier, input_dir=spoiled)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_job.json"}


def test_bad_images_are_skipped_and_listed(
    classifier: Path, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (spoiled / "annotations.json").write_text("{}")  # lies beside images, and is none
    flags = {"model_name_or_path": classifier, "input_dir": spoiled, "on_bad_image": "skip"}
    table = embed(monkeypatch, tmp_path / "out", **flags)
    assert table["key"].to_pylist() == ["a.png", "f.png"]
    bad = json.loads((tmp_path / "out" / "_bad_images.json").read_text())
    assert {Path(name).name: reason for name, reason in bad.items()} == {
        "b.png": bad[str(spoiled / "b.png")], "c.png": "is empty", "g.txt": "is not an image"
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "2 images are done, 3 bad ones were skipped" in printed
    assert f"{spoiled / 'c.png'} is empty" in printed


def test_another_jobs_folder(classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of other settings, or of other files, are not mixed."""
    flags = {"model_name_or_path": classifier, "input_dir": photos}
    embed(monkeypatch, tmp_path, **flags)
    with pytest.raises(ValueError, match="output was embeddings and is predictions.*choose another folder"):
        embed(monkeypatch, tmp_path, output="predictions", **flags)
    with pytest.raises(ValueError, match="source was .* and is "):
        embed(monkeypatch, tmp_path, **(flags | {"input_dir": photos / "a", "unit_size": 2}))


def test_what_cannot_be_computed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that would be random, no input, an empty folder."""
    PVT.model(PVT.tiny_config()).save_pretrained(tmp_path / "model")
    model = {"model_name_or_path": tmp_path / "model"}
    with pytest.raises(ValueError, match=r"has no weights for classifier\.bias"):
        embed(monkeypatch, tmp_path / "out", input_dir=photos, output="predictions", **model)
    with pytest.raises(ValueError, match=r"has no weights for decode_head"):
        embed(monkeypatch, tmp_path / "out", input_dir=photos, output="masks", **model)
    with pytest.raises(ValueError, match="got no input; give one of input_dir"):
        embed(monkeypatch, tmp_path / "out", **model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no file in"):
        embed(monkeypatch, tmp_path / "out", input_dir=tmp_path / "empty", **model)
    assert embed(monkeypatch, tmp_path / "out", input_dir=photos, **model).num_rows == 11
