"""export_onnx.py and convert.py --onnx: folders as clients read them, PyTorch's programs, nothing half-written."""

import re
import sys
from pathlib import Path
from typing import Any

import convert
import export_onnx
import exported_programs
import numpy as np
import onnx
import onnx_files
import onnx_graph
import onnxruntime
import pytest
import torch
from card_checker import check_card
from conversion_runs import checkpoint, command, tiny
from exported_file import ExportedFile
from families import MASK_RCNN, PVT_V2, tiny_detector
from photographs import CAT
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image

import hf_pvt

SHALLOW = (1, 1, 1, 1)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    hf_pvt.classification_image_processor(64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def traced() -> dict[str, bytes]:
    """The ONNX file of each kind of the tiny model, which takes most of the time here."""
    return {}


@pytest.fixture
def traced_once(traced: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: PreTrainedModel, processor: BaseImageProcessor, path: Path) -> None:
        kind = type(model).__name__
        if kind not in traced:
            onnx_graph.write_graph(model, processor, path)
            traced[kind] = path.read_bytes()
        path.write_bytes(traced[kind])

    monkeypatch.setattr(onnx_files, "write_graph", write)


@pytest.fixture
def not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one linear layer instead of the model's, which nobody compares with it."""
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("GlobalMaxPool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["channels"]),
        helper.make_node("MatMul", ["channels", "weight"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [None, 3, None, None])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 3])
    graph = helper.make_graph(nodes, "linear", [images], [logits], [weight])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    monkeypatch.setattr(onnx_files, "write_graph", lambda model, processor, path: onnx.save(file, path))
    monkeypatch.setattr(onnx_files, "check_sizes", lambda *_: 0.0)
    monkeypatch.setattr(onnx_files, "change_on_photographs", lambda *_: 0.1)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def failure(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        command(export_onnx.main, *arguments)
    message = str(ended.value.code)
    assert message.startswith("error: ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.slow
def test_a_new_folder(tmp_path: Path, traced_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a published checkpoint: what clients need and no weights beside; every file is named with its difference.

    PyTorch's programs, by `torch.export` and by AOTInductor, are true at sizes larger and smaller than any traced one.
    """
    model, output = tiny(PVT_V2, depths=SHALLOW), tmp_path / "exported"
    source = checkpoint(model, tmp_path / "source.pth")
    command(export_onnx.main, source, output, "--fp16", "--int8", "--pt2", "--aoti")
    exported = [f"onnx/{name}" for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")]
    exported += ["programs/model.pt2", "programs/model_aoti.pt2"]
    assert files_of(output) == sorted(["config.json", "preprocessor_config.json", *exported])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in printed] == [f"{output}/{name}" for name in exported]
    assert all(re.search(r": \d+\.\d MB, differs by (\d\.\de-\d\d|0\.0e\+00) of ", line) for line in printed)

    config = AutoConfig.from_pretrained(output)
    assert config.id2label == model.config.id2label and config.architectures == ["PvtV2ForImageClassification"]
    processor = AutoImageProcessor.from_pretrained(output)
    photograph = processor(CAT.open(), return_tensors="pt")["pixel_values"]
    session = onnxruntime.InferenceSession(output / "onnx" / "model.onnx")
    (logits,) = session.run(["logits"], {"pixel_values": photograph.numpy()})
    program = torch.export.load(output / "programs" / "model.pt2").module()
    compiled = torch._inductor.aoti_load_package(str(output / "programs" / "model_aoti.pt2"))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(photograph).logits, rtol=0, atol=1e-5)
        for images in (photograph, torch.randn(2, 3, 403, 517), torch.randn(3, 3, 97, 131)):
            expected = model(images).logits
            for run in (program, compiled):
                torch.testing.assert_close(run(pixel_values=images)["logits"], expected)


def test_the_models_own_folder(tmp_path: Path, not_traced: None) -> None:
    """Beside the weights, which stay; a second run has to be told to replace."""
    folder = saved(tiny(PVT_V2), tmp_path / "model")
    before = {name: (folder / name).read_bytes() for name in files_of(folder)}
    command(export_onnx.main, folder, folder)
    assert files_of(folder) == sorted([*before, "onnx/model.onnx"])
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert "onnx exists; choose another folder, or replace it with --overwrite" in failure(folder, folder)
    command(export_onnx.main, folder, folder, "--fp16", "--overwrite")
    assert files_of(folder) == sorted([*before, *onnx_files.names(fp16=True, int8=False)])
    assert onnx_files.names(fp16=True, int8=False) == ["onnx/model.onnx", "onnx/model_fp16.onnx"]
    assert onnx_files.names(fp16=False, int8=True) == ["onnx/model.onnx", "onnx/model_quantized.onnx"]


def test_the_processor_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes along to a new folder; ImageNet's is for checkpoints that have none, however many labels there are."""
    monkeypatch.setattr(onnx_files, "write_files", lambda *_: [])
    folder = saved(tiny(PVT_V2, num_labels=1000), tmp_path / "model")
    command(export_onnx.main, folder, tmp_path / "new")
    written, expected = (AutoImageProcessor.from_pretrained(place) for place in (tmp_path / "new", folder))
    assert written.to_dict() == expected.to_dict() and written.crop_size.height == 64


def test_all_or_nothing(tmp_path: Path, not_traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits are refused after everything else was written; a folder of something else is not touched."""

    def write_programs(model: PreTrainedModel, folder: Path, *wanted: bool) -> list[ExportedFile]:
        (folder / "model.pt2").touch()
        return []

    monkeypatch.setattr(exported_programs, "write_programs", write_programs)
    folder, refused = saved(tiny(PVT_V2), tmp_path / "model"), ["--pt2", "--int8", "--int8-limit", "1e-6"]
    before = files_of(folder)
    for output in (folder, tmp_path / "new"):
        assert "8 bits change the outputs" in failure(folder, output, *refused)
    assert files_of(folder) == before
    (tmp_path / "other").mkdir()
    assert "other exists" in failure(folder, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    command(export_onnx.main, folder, folder, "--pt2")
    assert files_of(folder) == sorted([*before, "onnx/model.onnx", "programs/model.pt2"])


def test_refusals(tmp_path: Path) -> None:
    """What no file can hold, and no model."""
    tiny_detector(MASK_RCNN).save_pretrained(tmp_path / "detector")
    assert "a later stage depends on the boxes" in failure(tmp_path / "detector", tmp_path / "out")
    assert "no model" in failure(tmp_path / "no model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_convert(tmp_path: Path, traced_once: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder, and a card whose snippet gives what the model does."""
    model = tiny(PVT_V2, depths=SHALLOW)
    photograph, logits = snippet_of_the_card(model, tmp_path, capsys)
    with torch.no_grad():
        expected = model(photograph).logits
        scale = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_card(kind: str, tmp_path: Path, not_traced: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Its snippet finds the photograph of the task, the processor and the file."""
    photograph, logits = snippet_of_the_card(tiny(PVT_V2, kind, depths=SHALLOW), tmp_path, capsys)
    assert torch.equal(logits, photograph.amax(dim=(2, 3)))
    assert ("```js" in (tmp_path / "out" / "model" / "README.md").read_text()) == (kind == "classifier")


def snippet_of_the_card(
    model: PreTrainedModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The photograph of a converted model's card as the model sees it, and what the card's snippet says of it."""
    output = folder / "out" / "model"
    command(convert.main, checkpoint(model, folder / "source.pth"), output, "--onnx", "--fp16")
    card, printed = (output / "README.md").read_text(), capsys.readouterr().out
    assert not check_card(output / "README.md")
    for name in ("onnx/model.onnx", "onnx/model_fp16.onnx"):
        megabytes = f"{(output / name).stat().st_size / 1e6:.1f}"
        assert f"| `{name}` | {megabytes} | differs by " in card
        assert f" {name}: {megabytes} MB, differs by " in printed

    snippet = re.search(r"## Without PyTorch.*?```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, name: str(output / name))
        exec(snippet[1].replace('"org/model"', repr(str(output))), names)
    images = AutoImageProcessor.from_pretrained(output)(load_image(names["photo"]), return_tensors="pt")
    return images["pixel_values"], torch.from_numpy(names["outputs"][0])


def test_smaller_files_are_asked_for_with_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path), str(tmp_path / "out"), "--fp16"])
    with pytest.raises(SystemExit) as ended:
        convert.main()
    assert ended.value.code == 2
    assert not list(tmp_path.iterdir())
