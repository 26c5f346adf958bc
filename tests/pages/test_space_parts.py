"""The parts of the gradio page, without a browser: what may be sent and opened, and what becomes of failures."""

import io
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import numpy as np
import pytest
import torch
from chromium import chromium
from families import PVT
from PIL import Image
from space_runs import LINES, ROOT, empty_png, save_models

import hf_pvt
from hf_pvt.drawing.segmentations import PAINT_ALPHA, distinct_colour


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    save_models(folder)
    return folder


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Of the page, which are siblings of its script."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "space")
    return import_module


def test_photographs(modules: Callable[[str], Any], tmp_path: Path) -> None:
    """Upright and RGB, whatever the file's name and format."""
    half = Image.new("L", (60, 40), 100)
    half.paste(200, (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        turned = kind not in ("BMP", "GIF")
        half.save(tmp_path / "file.bin", kind, **({"exif": exif} if turned else {}))
        photo = modules("uploads").read_photograph(tmp_path / "file.bin")
        assert photo.mode == "RGB" and photo.size == ((40, 60) if turned else (60, 40)), kind
        first, last = photo.getpixel((5, 5)), photo.getpixel((35, 55) if turned else (55, 35))
        assert max(first) - min(first) <= 3 and abs(first[0] - 200) <= 3 and abs(last[0] - 100) <= 3, kind


def test_files_that_are_refused(modules: Callable[[str], Any], tmp_path: Path) -> None:
    """By their first bytes, their length, or their number of pixels; the name says nothing."""

    def picture(kind: str, *size: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size).save(file, kind)
        return file.getvalue()

    def answer(content: bytes) -> str:
        (tmp_path / "file.png").write_bytes(content)
        try:
            return str(modules("uploads").read_photograph(tmp_path / "file.png"))
        except ValueError as refusal:
            return str(refusal)

    array = io.BytesIO()
    np.save(array, 1)
    for content, message in (
        (empty_png(40_000, 40_000), "far more than 50 million pixels"),
        (empty_png(40_000, 2_000), "40000x2000 pixels, more than 50 million"),
        (picture("PNG", 10, 161), "10x161 pixels, more than 16 times as long"),
        (bytes(20 * 2**20 + 1), "larger than 20 MB"),
        (b"", "no image that can be read"),
        (array.getvalue(), "no image that can be read"),
        (picture("EPS", 9, 9), "no image that can be read"),
        (picture("PPM", 9, 9), "no image that can be read"),
    ):
        assert message in answer(content)


def test_models_that_are_refused(modules: Callable[[str], Any], folder: Path, tmp_path: Path) -> None:
    """Pickles, missing weights, other heads, code beside the weights, other channels: a sentence each."""
    open_model = modules("opened_models").open_model
    classifier = PVT.classifier(PVT.tiny_config())
    processor = hf_pvt.classification_image_processor(crop_size=56)

    def saved(name: str, model: Any, processor: Any = processor) -> Path:
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return tmp_path / name

    pickle = saved("pickle", classifier)
    (pickle / "model.safetensors").unlink()
    torch.save(classifier.state_dict(), pickle / "pytorch_model.bin")
    lacking = saved("lacking", PVT.model(PVT.tiny_config()))
    config = (lacking / "config.json").read_text()
    (lacking / "config.json").write_text(config.replace('"PvtModel"', '"PvtForImageClassification"'))
    foreign = saved("foreign", classifier)
    config = (foreign / "config.json").read_text()
    auto_map = '"auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},'
    (foreign / "config.json").write_text(config.replace('"pvt"', '"unheard_of"').replace("{", "{" + auto_map, 1))
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    grey = hf_pvt.classification_image_processor(56, num_channels=1)
    for model, message in {
        pickle: "pickle cannot be opened: .*no file named model.safetensors",
        lacking: r"lacking lacks 2 of its weights, such as classifier.bias",
        saved("bare", PVT.model(PVT.tiny_config())): "it is a PvtModel; this page shows classifiers",
        foreign: "foreign cannot be opened: ",
        saved("grey", PVT.classifier(PVT.tiny_config(num_channels=1)), grey): "takes images of 1 channels",
        tmp_path / "nowhere": "There is no folder .*nowhere",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            open_model(str(model))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_public_pages_offer_their_models_alone(modules: Callable[[str], Any], folder: Path) -> None:
    """Folders of the server are nobody's business."""
    public = modules("page").Page([str(folder / "classifier")], any_model=False)
    assert public.open(str(folder / "classifier")).kind == "ForImageClassification"
    with pytest.raises(ValueError, match="is not among the models of this page"):
        public.open(str(folder / "segmenter"))
    assert not public.model.allow_custom_value


def test_a_failure_is_no_stack_trace(modules: Callable[[str], Any], folder: Path, caplog: Any) -> None:
    """What nobody foresaw: the outputs are emptied, the message says so, the log has it all."""
    page = modules("page").Page([str(folder / "classifier")], any_model=True)
    update = page.safely(lambda: 1 / 0, [page.scores, page.block])()
    assert update == {page.scores: None, page.message: "This did not work; the log of the server says why."}
    assert "ZeroDivisionError" in caplog.text


def test_command_line(modules: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model, or with a wrong one, it says so and does not start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELS", raising=False)
    with pytest.raises(SystemExit, match="there is no model in out/demo; run `make demo`"):
        launched(modules, monkeypatch)
    with pytest.raises(SystemExit, match=r"There is no folder \./no"):
        launched(modules, monkeypatch, "--model", "./no")


def launched(modules: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, Any]:
    """What `app.py` makes its page of, and how it opens it."""
    app, page = modules("app"), MagicMock()
    monkeypatch.setattr(app, "Page", page)
    monkeypatch.setattr(sys, "argv", ["app.py", *words])
    app.main()
    return page.call_args, page().blocks.queue().launch.call_args.kwargs


def test_who_may_come(modules: Callable[[str], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine alone, unless asked; others cannot name models. Uploads are bounded before they are on the disk."""
    model = str(folder / "classifier")
    for words, variable, host, any_model in (
        ([], None, "127.0.0.1", True),
        (["--host", "0.0.0.0"], None, "0.0.0.0", False),
        ([], "0.0.0.0", "0.0.0.0", False),  # as in a Space
    ):
        monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
        if variable:
            monkeypatch.setenv("GRADIO_SERVER_NAME", variable)
        page, settings = launched(modules, monkeypatch, "--model", model, *words)
        assert page == call([model], any_model=any_model), (words, variable)
        assert settings["server_name"] == host and not settings["share"], (words, variable)
        assert settings["max_file_size"] == 20 * 2**20


def test_models_of_the_demo(
    modules: Callable[[str], Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--model`, the segmenter first; those of the environment come before."""
    for name in ("classifier", "digit-scenes-p2t"):
        shutil.copytree(folder / "classifier", tmp_path / "out" / "demo" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELS", raising=False)
    (models,), _ = launched(modules, monkeypatch)[0]
    assert models == ["out/demo/digit-scenes-p2t", "out/demo/classifier"]
    monkeypatch.setenv("MODELS", "./out/demo/classifier out/demo/digit-scenes-p2t")
    (models,), _ = launched(modules, monkeypatch)[0]
    assert models == ["./out/demo/classifier", "out/demo/digit-scenes-p2t"]


def test_least_score(modules: Callable[[str], Any], folder: Path) -> None:
    """The slider's, of the objects that are shown, best first."""
    page = modules("page").Page([str(folder / "detector")], any_model=True)

    def scores(threshold: float) -> list[float]:
        update = page.answer(str(folder / "detector"), str(folder / "photo.png"), threshold, 4)
        return [score for _, score in update[page.table].value["data"]]

    everything = scores(0.05)
    middle = everything[len(everything) // 2] + 1e-3
    assert everything == sorted(everything, reverse=True) and everything[0] > middle > everything[-1]
    assert scores(middle) == [score for score in everything if score > middle]


def test_legend(modules: Callable[[str], Any], folder: Path) -> None:
    """Labels have `draw_segmentation`'s colours, whole on their outlines and lightly inside."""
    labels = np.zeros((40, 60), dtype=int)
    labels[:, 20:] = 3
    names = {0: "background", 3: "tree"}
    segmentation = modules("answers").Segmentation(Image.new("RGB", (60, 40)), labels, names)
    assert list(segmentation.colours().values()) == ["#{:02x}{:02x}{:02x}".format(*distinct_colour(n)) for n in (3, 0)]
    (tree, line), (background, _) = segmentation.sections()
    assert line.startswith("tree") and not background.any()
    expected = np.where(np.arange(60) < 20, 0, np.where(np.arange(60) < 22, 1, np.float32(PAINT_ALPHA)))
    np.testing.assert_array_equal(tree, np.tile(expected, (40, 1)))


def test_independent_scores(modules: Callable[[str], Any], folder: Path) -> None:
    """Of a model of several labels per image, which need not add up to 1; of crowds of labels the legend is short."""
    opened = modules("opened_models").open_model(str(folder / "classifier"))
    photo = Image.open(folder / "photo.png")
    with torch.inference_mode():
        logits = opened.model(**opened.processor(photo, return_tensors="pt")).logits[0]
    opened.model.config.problem_type = "multi_label_classification"
    try:
        scores = modules("answers").scores_of(opened, photo)
    finally:
        opened.model.config.problem_type = None
    assert list(scores.values()) == pytest.approx(logits.sigmoid().tolist()) and list(scores) == list(LINES.values())
    labels = np.sqrt(np.arange(60 * 60)).astype(int).reshape(60, 60)  # 60 labels, the last the largest
    names = {label: f"label {label}" for label in range(60)}
    lines = modules("answers").Segmentation(photo.resize((60, 60)), labels, names).lines()
    assert [labels for _, labels in lines[:2]] == [[59], [58]] and len(lines) == 25
    assert lines[-1] == (f"36 others  {100 * 36**2 / 3600:.1f} %", list(range(35, -1, -1)))


def test_a_machine_without_chromium(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of pages say how to install it, and fail: they do not skip the page."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="is missing; install it with `apt-get install"), chromium():
        pass
