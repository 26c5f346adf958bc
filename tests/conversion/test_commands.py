"""convert.py and export_original.py: every source to a repository and back, and nothing half-written, ever."""

import glob
import hashlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import export_original
import pytest
import reference
import timm
import torch
import verify_conversions
from checkpoints import assert_same_weights
from conversion_runs import SCRIPTS, checkpoint, command, failure, layout_of, run, tiny
from families import FAMILIES, P2T, PVT, PVT_V2, Family, perturb
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from transformers.models.pvt import modeling_pvt as stock_pvt
from transformers.models.pvt_v2 import modeling_pvt_v2 as stock_pvt_v2

import hf_pvt
from hf_pvt.original.load_original import LAYOUTS
from hf_pvt.original.pyramid_layouts import Layout, to_original


def layout_named(source: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.source == source)


# The published checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "task"),
    [
        ("pvt-tiny", "classification"),
        ("pvt-v2-b0", "segmentation"),
        ("p2t-tiny", "classification"),
        ("p2t-tiny", "segmentation"),
    ],
)
def test_published(variant: str, task: str, tmp_path: Path) -> None:
    """As `make verify` does it for all, detectors too: the commands, the recorded outputs, and back to the bit."""

    def run(script: str, *arguments: object) -> None:
        command(importlib.import_module(script.removesuffix(".py")).main, *arguments)

    result = verify_conversions.verify(variant, task, tmp_path, run)
    assert result.bit_equal
    assert result.error < reference.tolerance(variant)
    assert result.keys == len(verify_conversions.published_file(variant, task)[1])


def test_all_were_verified() -> None:
    """The committed table has a row for each, and every row passed."""
    rows = verify_conversions.TABLE.read_text().splitlines()
    rows = [row for row in rows if row.startswith("| `")]
    expected = [
        (variant, task) for task in verify_conversions.TASKS for variant in verify_conversions.variants_of(task)
    ]
    assert [row.split("|")[1:3] for row in rows] == [[f" `{variant}` ", f" {task} "] for variant, task in expected]
    assert all("| equal to the bit | passed |" in row for row in rows)


# Every source


@pytest.mark.parametrize(
    ("family", "kind"),
    [(PVT, "classifier"), (PVT_V2, "segmenter"), (PVT_V2, "model"), (P2T, "classifier"), (P2T, "segmenter")],
    ids=str,
)
def test_authors_layouts(family: Family, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written opens with the Auto classes and computes the same; the card and the prints say what it is."""
    model = tiny(family, kind)
    source, output = checkpoint(model, tmp_path / "source.pth"), tmp_path / "out" / "converted"
    run(source, output)
    auto_class: Any = {
        "classifier": AutoModelForImageClassification,
        "segmenter": AutoModelForSemanticSegmentation,
        "model": AutoModel,
    }[kind]
    loaded, problems = auto_class.from_pretrained(output, output_loading_info=True)
    assert not any(problems.values()), problems
    assert_same_weights(loaded, model)
    facts = json.loads((output / "conversion.json").read_text())
    printed = capsys.readouterr().out
    assert layout_of(model).source in printed and "no published variant" in printed
    assert facts["layout"] == layout_of(model).source and facts["difference"] == 0
    for name, file in (("source_sha256", source), ("result_sha256", output / "model.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert facts[name] == digest and digest in printed
    assert {path.name for path in tmp_path.iterdir()} == {"source.pth", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["converted"]
    assert (output / "modeling_pyramid.py").exists() == (family is P2T or kind == "segmenter")


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_timm(as_folder: bool, tmp_path: Path) -> None:
    """timm's weights as a file, or as the folder of a timm repository on the Hub; and back again."""
    torch.manual_seed(0)
    model = timm.create_model("pvt_v2_b0", num_classes=7, depths=(1, 2, 1, 1), embed_dims=(8, 16, 20, 16)).eval()
    path = tmp_path / "timm" / "model.safetensors"
    path.parent.mkdir()
    save_file(model.state_dict(), path)
    (path.parent / "config.json").write_text('{"architecture": "pvt_v2_b0", "num_classes": 7}')
    run(path.parent if as_folder else path, tmp_path / "converted")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "converted").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).logits, model(images), rtol=0, atol=1e-5)
    command(export_original.main, tmp_path / "converted", tmp_path / "again.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "again.safetensors"), load_file(path), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stock_class", "family"),
    [(stock_pvt.PvtModel, PVT), (stock_pvt_v2.PvtV2ForImageClassification, PVT_V2)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_stock_folders(stock_class: Any, family: Family, tmp_path: Path) -> None:
    """A folder that Transformers' own class has saved; its output stays the same, and so do its labels."""
    torch.manual_seed(0)
    names = dict(enumerate(("cat", "dog", "bird", "fish", "fly")))
    config = family.tiny_config(
        reduction_layer_norm_eps=1e-6, id2label=names, label2id={v: k for k, v in names.items()}
    )
    stock = stock_class(stock_class.config_class(**config.to_dict())).eval()
    perturb(stock)
    stock.save_pretrained(tmp_path / "stock")
    AutoImageProcessor.from_pretrained(saved_processor(tmp_path)).save_pretrained(tmp_path / "stock")
    run(tmp_path / "stock", tmp_path / "converted")
    loaded = (AutoModelForImageClassification if hasattr(stock, "classifier") else AutoModel).from_pretrained(
        tmp_path / "converted"
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(images)[0], stock(images)[0], rtol=0, atol=1e-4)
    assert loaded.config.id2label == names
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    assert dict(processor.size) == {"height": 40, "width": 48}  # the one that came with the weights


def saved_processor(tmp_path: Path) -> Path:
    from transformers import PvtImageProcessor

    PvtImageProcessor(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "processor")
    return tmp_path / "processor"


@pytest.mark.parametrize(("family", "kind"), [(PVT, "segmenter"), (PVT_V2, "classifier"), (P2T, "segmenter")], ids=str)
def test_own_folders(family: Family, kind: str, tmp_path: Path) -> None:
    """What this package has saved goes to the authors' layout, and from there to the same again."""
    model = tiny(family, kind)
    model.save_pretrained(tmp_path / "saved")
    command(export_original.main, tmp_path / "saved", tmp_path / "exported.pth")
    assert_same_weights(hf_pvt.load_original(tmp_path / "exported.pth"), model)


def test_weights_that_no_model_reads_come_back(tmp_path: Path) -> None:
    """Auxiliary heads and P2T's leftover classifier, and the labels with their colours."""
    model = tiny(P2T, "segmenter")
    meta = {"CLASSES": tuple("abcde"), "PALETTE": [[label, 0, 255] for label in range(5)]}
    source = checkpoint(model, tmp_path / "source.pth", meta)
    content = torch.load(source, weights_only=True)
    content["state_dict"]["backbone.head.weight"] = torch.randn(3, 16)
    content["state_dict"]["auxiliary_head.conv_seg.bias"] = torch.randn(5)
    torch.save(content, source)
    run(source, tmp_path / "converted")
    command(export_original.main, tmp_path / "converted", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    torch.testing.assert_close(again["state_dict"], content["state_dict"], rtol=0, atol=0)
    assert again["meta"] == meta


def test_a_pvt_of_images_that_are_not_square(tmp_path: Path) -> None:
    model = tiny(PVT, image_size=(64, 96))
    source = checkpoint(model, tmp_path / "source.pth")
    assert "image_size=(height, width)" in failure(source, tmp_path / "converted")
    run(source, tmp_path / "converted", "--image-size", 64, 96)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "converted")
    assert tuple(loaded.config.image_size) == (64, 96)
    assert AutoImageProcessor.from_pretrained(tmp_path / "converted").crop_size["height"] == 64
    assert_same_weights(loaded, model)


# Labels and processors


@pytest.mark.parametrize(("kind", "count"), [("classifier", 1000), ("segmenter", 150)])
def test_benchmark_labels(kind: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The count names the benchmark: its labels, its colours and its evaluation."""
    model = tiny(PVT_V2, kind, num_labels=count)
    run(checkpoint(model, tmp_path / "source.pth"), tmp_path / "converted")
    config = hf_pvt.PvtV2Config.from_pretrained(tmp_path / "converted")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "converted")
    card = (tmp_path / "converted" / "README.md").read_text()
    if kind == "classifier":
        assert config.id2label == hf_pvt.imagenet_1k_id2label()
        assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)
        assert "1,000 labels (ImageNet-1k)" in capsys.readouterr().out and "ILSVRC/imagenet-1k" in card
    else:
        assert config.id2label == hf_pvt.ade20k_id2label()
        assert config.palette == [list(colour) for colour in hf_pvt.ade20k_palette()]
        assert processor.do_reduce_labels and processor.size["shortest_edge"] == 512
        assert processor.published_resampling
        assert "150 labels (ADE20K)" in capsys.readouterr().out
    assert "reported" not in card.partition("## Use it")[0]  # no figure of the paper for another architecture


@pytest.mark.parametrize("form", ["list", "object"])
def test_given_labels(form: str, tmp_path: Path) -> None:
    names = ["ant", "bee", "cow", "dog", "elk"]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(names if form == "list" else {str(4 - i): names[4 - i] for i in range(5)}))
    run(checkpoint(tiny(PVT_V2), tmp_path / "source.pth"), tmp_path / "converted", "--labels", labels)
    config = hf_pvt.PvtV2Config.from_pretrained(tmp_path / "converted")
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: label for label, name in enumerate(names)}


def test_labels_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(checkpoint(tiny(PVT_V2), tmp_path / "source.pth"), tmp_path / "converted")
    assert "the labels have no names; give them with --labels" in capsys.readouterr().out
    assert hf_pvt.PvtV2Config.from_pretrained(tmp_path / "converted").id2label[4] == "LABEL_4"


LABELS_THAT_DO_NOT_FIT = {
    '["a", "b"]': "names 2 labels, the checkpoint has 5",
    '{"0": "a", "1": "b", "2": "c", "3": "d", "7": "e"}': "must name the labels 0 to 4, each once",
    '["a", "b", "c", "d", "a"]': "gives a name to several labels: a",
    '["a", "b", "c", "d", 5]': "must hold a list of names",
    '["a", "b", "c", "d", " "]': "must hold a list of names",
    '"abcde"': "must hold a list of names",
    "no json": "cannot be read as JSON",
    None: "cannot be read as JSON",  # there is no file
}


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    source, labels = checkpoint(tiny(PVT_V2), tmp_path / "source.pth"), tmp_path / "labels.json"
    for content, expected in LABELS_THAT_DO_NOT_FIT.items():
        labels.unlink(missing_ok=True)
        if content is not None:
            labels.write_text(content)
        message = failure(source, tmp_path / "converted", "--labels", labels)
        assert expected in message, (content, message)
        assert not (tmp_path / "converted").exists(), content


# The widgets' outputs


def test_widget_outputs(tmp_path: Path) -> None:
    """What the card shows is what the repository's model says of the pictures in it."""
    from huggingface_hub import ModelCard
    from transformers import pipeline

    run(checkpoint(tiny(PVT_V2), tmp_path / "source.pth"), tmp_path / "converted")
    widget = ModelCard.load(tmp_path / "converted" / "README.md").data.to_dict()["widget"]
    assert [example["src"] for example in widget] == ["images/cat.jpg", "images/coffee.jpg"]
    classifier = pipeline("image-classification", model=str(tmp_path / "converted"))
    for example in widget:
        answers = classifier(str(tmp_path / "converted" / example["src"]), top_k=5)
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in example["output"]]
        for answer, shown in zip(answers, example["output"], strict=True):
            assert abs(answer["score"] - shown["score"]) < 1e-4


def test_widget_overlays(tmp_path: Path) -> None:
    run(checkpoint(tiny(PVT_V2, "segmenter"), tmp_path / "source.pth"), tmp_path / "converted")
    for name in ("china", "rocket"):
        with (
            Image.open(tmp_path / "converted" / f"images/{name}.jpg") as photograph,
            Image.open(tmp_path / "converted" / f"images/{name}-labels.jpg") as overlay,
        ):
            assert overlay.width >= photograph.width and overlay.height > photograph.height  # a legend below


# Nothing half-written


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "converted"
    run(checkpoint(tiny(PVT_V2), tmp_path / "first.pth"), output)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    second = checkpoint(tiny(P2T), tmp_path / "second.pth")
    assert "exists; choose another folder, or replace it with --overwrite" in failure(second, output)
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before
    run(second, output, "--overwrite")
    assert_same_weights(AutoModel.from_pretrained(output), tiny(P2T).base_model)
    assert {path.name for path in tmp_path.iterdir()} == {"first.pth", "second.pth", "converted"}


def test_a_wrong_result_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command checks itself: weights that changed on the way to the disk are an error, and nothing stays."""
    original = hf_pvt.PvtV2ForImageClassification.save_pretrained

    def save_other_weights(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        other = tiny(PVT_V2)
        with torch.no_grad():
            next(other.parameters()).mul_(1.001)
        original(other, *args, **kwargs)

    monkeypatch.setattr(hf_pvt.PvtV2ForImageClassification, "save_pretrained", save_other_weights)
    source = checkpoint(tiny(PVT_V2), tmp_path / "source.pth")
    assert "differs from the source by" in failure(source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


FULL_DISK = """
import resource, signal, sys
limit, scripts, *arguments = sys.argv[1:]
sys.path.insert(0, scripts)
sys.argv[1:] = arguments
import {script}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
{script}.main()
"""


@pytest.mark.processes
@pytest.mark.parametrize("limit", [1_000, 40_000], ids=["configuration", "weights"])
def test_a_full_disk(limit: int, tmp_path: Path) -> None:
    """Files that cannot grow stand in for a disk that is full; afterwards the same command completes."""
    source = checkpoint(tiny(PVT_V2), tmp_path / "source.pth")
    assert source.stat().st_size > 100_000
    arguments = [str(SCRIPTS), str(source), str(tmp_path / "converted")]
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(script="convert"), str(limit), *arguments],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]
    run(source, tmp_path / "converted")
    assert_same_weights(AutoModelForImageClassification.from_pretrained(tmp_path / "converted"), tiny(PVT_V2))


@pytest.mark.processes
def test_a_full_disk_while_exporting(tmp_path: Path) -> None:
    tiny(PVT_V2).save_pretrained(tmp_path / "saved")
    limited = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(script="export_original"), "40000"]
        + [str(SCRIPTS), str(tmp_path / "saved"), str(tmp_path / "out.pth")],
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1 and "error: " in limited.stderr and "Traceback" not in limited.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_exported_file_is_kept(tmp_path: Path) -> None:
    model = tiny(PVT_V2)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "out.pth").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="exists; choose another name"):
        command(export_original.main, tmp_path / "saved", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"mine"
    command(export_original.main, tmp_path / "saved", tmp_path / "out.pth", "--overwrite")
    assert_same_weights(hf_pvt.load_original(tmp_path / "out.pth"), model)


# Hostile and broken input


def hostile(kind: str, tmp_path: Path) -> Path:
    weights = to_original(tiny(PVT_V2), layout_named("published PVTv2"))
    path = tmp_path / "hostile.pth"
    if kind == "code":

        class Call:
            def __reduce__(self) -> tuple[Any, ...]:
                return open, (str(tmp_path / "executed"), "w")

        torch.save({"model": weights, "args": Call()}, path)
    elif kind == "a huge declared tensor":
        torch.save(weights | {"head.weight": torch.zeros(1).expand(2**40, 16)}, path)
    elif kind == "a zip that unpacks to anything":
        import zipfile

        torch.save(weights, tmp_path / "stored.pth")
        with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(path, "w") as packed:
            for entry in stored.infolist():
                packed.writestr(entry.filename, stored.read(entry.filename))
            packed.writestr("archive/data/999", bytes(50_000_000), zipfile.ZIP_DEFLATED)
        (tmp_path / "stored.pth").unlink()
    elif kind in ("nan", "inf"):
        weights["block3.0.mlp.fc1.weight"][1, 2] = float(kind)
        torch.save(weights, path)
    elif kind == "a key with a path":
        torch.save(weights | {"../../outside.weight": torch.ones(3)}, path)
    elif kind == "a huge declared safetensors":
        header = json.dumps({"head.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        path = path.with_suffix(".safetensors")
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", f"a pickle that would run code ({open.__module__}.open)"),  # _io from Python 3.13 on
        ("a huge declared tensor", "head.weight declares the shape (1099511627776, 16)"),
        ("a huge declared safetensors", "is not a whole safetensors file"),
        ("a zip that unpacks to anything", "unpacks to more than it holds"),
        ("nan", "NaN or infinite values in pvt_v2.encoder.layers.2.blocks.0.mlp.dense1.weight; use another one"),
        ("inf", "NaN or infinite values in pvt_v2.encoder.layers.2.blocks.0.mlp.dense1.weight; use another one"),
        ("a key with a path", "unknown keys: ../../outside.weight"),
    ],
)
def test_hostile_checkpoints(kind: str, message: str, tmp_path: Path) -> None:
    """Refused in one sentence, nothing executed, nothing written."""
    path = hostile(kind, tmp_path)
    assert message in failure(path, tmp_path / "converted")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_missing_source(tmp_path: Path) -> None:
    assert "there is no checkpoint file" in failure(tmp_path / "none.pth", tmp_path / "converted")


@pytest.mark.parametrize("problem", ["another model", "missing weights", "damaged weights", "another class"])
def test_folders_that_are_refused(problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    tiny(PVT_V2).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if problem == "another model":
        config |= {"model_type": "vit", "architectures": ["ViTModel"]}
    elif problem == "another class":
        config["architectures"] = ["PvtV2ForDreams"]
    elif problem == "missing weights":
        save_file({key: value for key, value in load_file(weights).items() if "classifier" not in key}, weights)
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "config.json").write_text(json.dumps(config))
    message = failure(folder, tmp_path / "converted")
    expected = {
        "another model": "holds a model of class ViTModel, expected one of: AtssForObjectDetection",
        "another class": "holds a model of class PvtV2ForDreams, expected one of: AtssForObjectDetection",
        "missing weights": "missing keys: classifier.bias, classifier.weight",
        "damaged weights": "a safetensors file is damaged",
    }
    assert expected[problem] in message
    assert not (tmp_path / "converted").exists()


# A folder of checkpoints


def test_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each becomes a folder of its name; a broken one is told in the table and in the exit status."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for family in FAMILIES:
        checkpoint(tiny(family), checkpoints / f"{family}_tiny.pth")
    (checkpoints / "broken.pth").write_bytes(b"broken")
    (checkpoints / "notes.txt").write_text("not a checkpoint")
    (checkpoints / "out").mkdir()
    tiny(PVT_V2).save_pretrained(checkpoints / "saved")
    with pytest.raises(SystemExit) as ended:
        run("--all", checkpoints, tmp_path / "out")
    assert ended.value.code == 1
    for family in FAMILIES:
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / f"{family}-tiny".replace("_", "-"))
        assert_same_weights(loaded, tiny(family))
    printed = capsys.readouterr()
    table = printed.out.splitlines()[-6:]
    assert [line.split()[:2] for line in table[:5]] == [
        ["broken.pth", "FAILED"],
        *([f"{name}_tiny.pth", "converted"] for name in ("p2t", "pvt", "pvt_v2")),
        ["saved", "converted"],
    ]
    assert "is not a PyTorch checkpoint" in table[0] and table[5] == "4 of 5 converted."
    assert "converting" in printed.err
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_all_of_nothing(tmp_path: Path) -> None:
    assert "holds no checkpoint" in failure("--all", tmp_path, tmp_path / "out")


# The documents


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "conversion/README.md"])
def test_documented_commands(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conversion command of the documents runs, on small checkpoints of those names; pushing is a dry run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for name in ("pvt_v2_b0.pth", "pvt_v2_b2.pth", "checkpoints/pvt_v2_b1.pth"):
        checkpoint(tiny(PVT_V2), tmp_path / name)
    (tmp_path / "model_cards").symlink_to(SCRIPTS.parent / "model_cards")
    text = (SCRIPTS.parent / document).read_text()
    lines = re.findall(r"^python conversion/(\w+)\.py ([^#\n]+)", text, flags=re.MULTILINE)
    assert len(lines) >= 2
    for script, arguments in lines:
        words = [word for part in arguments.split() for word in (sorted(glob.glob(part)) if "*" in part else [part])]
        if script == "export_original":
            words.append("--overwrite")
        if "--push-to-hub" in words:
            words.append("--dry-run")
        try:
            command(importlib.import_module(script).main, *words)
        except SystemExit as ended:
            assert not ended.code, (arguments, ended.code)
    again = next(tmp_path.glob("*_again.pth"), tmp_path / "pvt_v2_b2.pth")
    assert_same_weights(hf_pvt.load_original(again), tiny(PVT_V2))
