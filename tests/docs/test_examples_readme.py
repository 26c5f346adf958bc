"""The guide of the examples is true: its commands run, or, where they need GPUs, are commands that the scripts know."""

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import embed_images
import evaluate_model
import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import run_image_classification
import run_object_detection
import run_semantic_segmentation
import torch
from families import MASK_RCNN, tiny_detector
from faster_coco_eval.core.mask import decode
from paths import ROOT
from PIL import Image
from script_runs import reset
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import threshold_otsu
from sklearn.metrics import f1_score

import hf_pvt
from hf_pvt.evaluation.arguments import EvaluationArguments, named_model
from hf_pvt.training.arguments import DataArguments, OptimizationArguments, RunArguments, parse
from hf_pvt.training.data.annotated_images import AnnotationArguments

README = (ROOT / "examples" / "README.md").read_text()
BASH = re.compile(r"^```bash\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
BLOCKS = BASH.findall(README)
GPU = "# needs GPUs\n"
SHARED = (DataArguments, OptimizationArguments, RunArguments)
FLAGS = {
    "run_image_classification": (*SHARED, run_image_classification.ClassificationArguments),
    "run_semantic_segmentation": (*SHARED, run_semantic_segmentation.SegmentationArguments),
    "run_object_detection": (*SHARED, AnnotationArguments, run_object_detection.DetectionArguments),
    "embed_images": (embed_images.Arguments,),
    "evaluate_model": (EvaluationArguments,),
}
# What makes a command of the guide a matter of seconds.
SMALL = {
    "run_image_classification": "--image_size 32 --max_steps 2 --per_device_train_batch_size 4",
    "run_semantic_segmentation": "--shorter_side 64 --longer_side 256 --crop_size 64 --max_steps 2 "
    "--per_device_train_batch_size 2",
    "run_object_detection": "--shorter_side 64 --longer_side 96 --max_steps 2 --per_device_train_batch_size 2",
    "embed_images": "",
}
# And one of the medical guide.
FEW_TILES = {
    "run_semantic_segmentation": "--shorter_side 64 --longer_side 128 --max_steps 12 --per_device_train_batch_size 4 "
    "--learning_rate 1e-3 --warmup_steps 0 --layer_decay 1 --dataloader_num_workers 0 --overlays 1",
    "evaluate_model": "--dataloader_num_workers 0 --unit_size 2",
    "embed_images": "--num_workers 1",
}
TILE = 64
HELD_OUT = 5


def split(block: str) -> tuple[list[str], str, list[str]]:
    """The launcher's words, the name of the script, its flags."""
    words = shlex.split(block.removeprefix(GPU).replace("\\\n", " "))
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return words[:place], Path(words[place]).stem, words[place + 1 :]


MEDICAL = README[README.index("### Medical images") : README.index("## Evaluate")]
COMMANDS = [block for block in BLOCKS if ".py" in block]
# The front page has the same in short.
FRONT_PAGE = re.findall(
    r"^(?:accelerate launch|python) examples/run_(?:.*\\\n)*.*\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE
)
MEASURE = re.findall(
    r"^python examples/evaluate_model(?:.*\\\n)*.*\n", (ROOT / "README.md").read_text(), flags=re.MULTILINE
)
# So have the model cards, all from one template.
CARDS = [
    block
    for name in ("pvt-tiny", "pvt-tiny-ade20k")
    for block in BASH.findall((ROOT / "model_cards" / f"{name}.md").read_text())
]


@pytest.mark.parametrize("script", FLAGS)
def test_flags_and_files(script: str) -> None:
    """All commands, GPUs or not: the scripts know the flags, the launcher's files are there."""
    commands = [words for block in (*COMMANDS, *FRONT_PAGE, *MEASURE, *CARDS) if (words := split(block))[1] == script]
    assert commands
    for launcher, _, flags in commands:
        parse(*FLAGS[script], description="", argv=named_model(flags))  # ends with the flag that it does not know
        assert launcher[0] in ("python", "accelerate", "torchrun", "sbatch"), launcher
        assert all((ROOT / word).is_file() for word in launcher if word.startswith("examples/")), launcher


def test_every_command_has_a_script() -> None:
    """And the medical guide's are the ones that are run below."""
    assert {split(block)[1] for block in (*COMMANDS, *FRONT_PAGE, *MEASURE, *CARDS)} == {*FLAGS}
    assert [split(block)[1] for block in COMMANDS if block in MEDICAL] == list(FEW_TILES)


def test_commands_that_measure() -> None:
    """One for each benchmark, and each goes on to its data: there is none here."""
    assert len(MEASURE) == 3
    for block in MEASURE:
        with pytest.raises(FileNotFoundError, match="there is no file or folder .*pth to start from"):
            evaluate_model.main(split(block)[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the guide's commands find: the repository's examples, photos, rooms, a published checkpoint."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    generator = np.random.default_rng(0)
    for index in range(10):
        pixels = Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        labels = Image.fromarray(generator.integers(0, 2, (48, 48), dtype=np.uint8))
        paths = (
            f"photos/{'cat' if index % 2 else 'dog'}/{index}.jpg",
            f"rooms/images/{index}.jpg",
            f"rooms/masks/{index}.png",
        )
        for path, image in zip(paths, (pixels, pixels, labels), strict=True):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / path)
    (tmp_path / "rooms" / "labels.json").write_text('["floor", "wall"]')
    cells(tmp_path / "cells", 10)
    torch.save(reference.checkpoint("pvt-v2-b0"), tmp_path / "pvt_v2_b0.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(folder: Path, count: int) -> None:
    """Images with a bright square each, and COCO's JSON of them."""
    folder.mkdir()
    images, annotations = [], []
    for index in range(count):
        pixels = np.zeros((48, 48, 3), dtype=np.uint8)
        pixels[8:30, 10 + index : 34 + index] = 200
        Image.fromarray(pixels).save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 48, "height": 48})
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": [10 + index, 8, 24, 22]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


@pytest.mark.processes
def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need no GPU, in their order; the first as a process of its own, with the configuration for a CPU."""
    run = [split(block) for block in COMMANDS if not block.startswith(GPU) and block not in MEDICAL]
    assert [script for _, script, _ in run] == list(SMALL)
    assert [split(block)[2][:4] for block in FRONT_PAGE] == [flags[:4] for _, _, flags in run[:3]]
    for number, (_, script, flags) in enumerate(run):
        words = [*flags, *SMALL[script].split()]
        if script != "embed_images":
            words += ["--dataloader_num_workers", "0"]
        if number == 0:
            command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
            command += ["--config_file", "examples/configs/cpu.yaml", f"examples/{script}.py", *words]
            subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
            continue
        run_here(script, words, monkeypatch)
    for name in ("photos", "rooms", "cells"):
        results = json.loads((folder / "out" / name / "results.json").read_text())
        assert (results["steps"], results["metrics"]["examples"]) == (2, 2)
        assert (folder / "out" / name / "model" / "model.safetensors").is_file()
    assert pq.read_table(folder / "out" / "vectors")["embedding"].combine_chunks().type.list_size == 256
    assert len(pq.read_table(folder / "out" / "vectors")) == 10
    outputs_are_read(folder, monkeypatch)


def run_here(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of examples/ in this process."""
    reset()
    monkeypatch.setattr(sys, "argv", [script, *words])
    importlib.import_module(script).main()


def outputs_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the guide, and the columns of its table."""
    tiny_detector(MASK_RCNN).save_pretrained(folder / "out/detector/model")
    hf_pvt.detection_image_processor(size={"height": 64, "width": 64}).save_pretrained(folder / "out/detector/model")
    others = {"names": "photos --output predictions", "masks": "rooms --output masks"}
    others["found"] = "detector --output detections"
    others["files"] = f"{others['masks']} --masks_as_files"
    for output, words in others.items():
        model, *more = words.split()
        flags = ["--input_dir", "photos", "--model_name_or_path", f"out/{model}/model", "--output_dir", f"out/{output}"]
        monkeypatch.setattr(sys, "argv", ["embed_images", *flags, *more])
        embed_images.main()
    (lines,) = (block for block in re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE))
    read: dict[str, Any] = {"np": np, "pq": pq, "io": io, "Image": Image, "decode": decode}
    exec(lines, read)
    assert read["vectors"].shape == (10, 256)
    assert len(read["likeliest"]) == 10 and {*read["likeliest"]} <= {"cat", "dog"}
    assert [labels.shape for labels in read["labels"]] == [(48, 48)] * 10 and np.max(read["labels"]) <= 1
    assert [len(masks) for masks in read["pixels"]] == [len(image["boxes"]) for image in read["found"]]
    assert {mask.shape for masks in read["pixels"] for mask in masks} == {(48, 48)} and np.any(read["pixels"][0])
    columns = {"vectors", *others}
    found = {name for output in columns for name in pq.read_table(folder / "out" / output).column_names}
    table = README[README.index("| `--output`") : README.index("```python")]
    described = " ".join(row.split("|")[2] for row in table.splitlines() if row)
    assert found == {*re.findall(r"`([a-z_]+)`", described)}


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiles of a slide, the last of which are held out, and are the new images too."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    pixels = immunohistochemistry()[:256, :384]
    stain = rgb2hed(pixels)[..., 2]  # of the brown nuclei
    nuclei = stain > threshold_otsu(stain)
    corners = [(top, left) for top in range(0, 256, TILE) for left in range(0, 384, TILE)]
    for number, (top, left) in enumerate(corners):
        place = (slice(top, top + TILE), slice(left, left + TILE - 8 * (number % 2)))  # of two sizes
        data = "held-out-cells" if number >= len(corners) - HELD_OUT else "cells"
        for part, tile in (("images", pixels[place]), ("masks", (255 * nuclei[place]).astype(np.uint8))):
            path = tmp_path / data / part / f"tile-{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(path)
    (tmp_path / "new-cells").symlink_to(tmp_path / "held-out-cells" / "images")
    torch.save(reference.checkpoint("pvt-v2-b0"), tmp_path / "pvt_v2_b0.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.processes
def test_medical_guide(slide: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its four commands run as they stand; the Dice that is printed is that of the PNG files that are drawn."""
    labels, *scripts = BASH.findall(MEDICAL)
    subprocess.run(["bash", "-c", labels], check=True)
    for block in scripts:
        launcher, script, flags = split(block)
        assert launcher == ["python"]
        run_here(script, [*flags, *FEW_TILES[script].split()], monkeypatch)
    printed = capsys.readouterr().out

    masks = sorted((slide / "held-out-cells" / "masks").iterdir())
    drawn = slide / "out" / "cells-masks" / "_masks"
    assert [path.name for path in sorted(drawn.iterdir())] == [mask.name for mask in masks]
    pairs = [(np.array(Image.open(mask)), np.array(Image.open(drawn / mask.name))) for mask in masks]
    assert {truth.shape for truth, _ in pairs} == {(TILE, TILE), (TILE, TILE - 8)}
    assert all(truth.shape == found.shape and {*np.unique(found)} <= {0, 1} for truth, found in pairs)
    truth = np.concatenate([truth.ravel() == 255 for truth, _ in pairs])
    found = np.concatenate([found.ravel() == 1 for _, found in pairs])
    dice = [f1_score(truth, found, pos_label=label) for label in (0, 1)]
    metrics = json.loads((slide / "out" / "cells-measured" / "results.json").read_text())["metrics"]
    assert metrics["examples"] == HELD_OUT
    assert metrics["per_category_dice"] == pytest.approx(dice, abs=1e-12)
    assert metrics["mean_dice"] == pytest.approx(np.mean(dice), abs=1e-12)
    assert f"mean_dice {np.mean(dice):.4f}" in printed
    assert f"per_category_dice: background {dice[0]:.4f}, nucleus {dice[1]:.4f}" in printed
    assert dice[1] > 0.5  # it has learnt something
