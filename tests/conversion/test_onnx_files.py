"""ONNX files: one file is true at any batch and size, and what is not true is not written."""

import json
import logging
from pathlib import Path

import exported_outputs
import numpy as np
import onnx
import onnx_files
import onnx_graph
import onnx_precision
import onnxruntime
import pytest
import torch
import verify_onnx
from families import (
    ATSS,
    GFL,
    MASK_RCNN,
    P2T,
    PVT,
    PVT_V2,
    PVT_V2_LINEAR,
    RETINANET,
    DetectorRow,
    Family,
    perturb,
    tiny_detector,
)
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_pvt

# Odd, not square, not divisible; none was traced.
SHAPES = [(1, 3, 224, 224), (3, 3, 97, 131), (3, 3, 256, 320), (1, 3, 512, 768), (5, 3, 33, 47)]
LIMITS = {onnx_files.PLAIN: 1e-5, onnx_files.HALF: 1e-2}


def build(family: Family, role: str) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = {"out_indices": [0, 1, 2, 3]} if role == "backbone" else {}
    model: PreTrainedModel = getattr(family, role)(family.shallow_config(**fields)).eval()
    perturb(model)
    return model


def processor_of(role: str) -> BaseImageProcessor:
    if role == "segmenter":
        return hf_pvt.segmentation_image_processor(size={"shortest_edge": 64, "longest_edge": 128})
    return hf_pvt.classification_image_processor(64)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """PVTv2's with its files; what is exported takes most of the time here."""
    folder = tmp_path_factory.mktemp("classifier")
    return exported(build(PVT_V2, "classifier"), processor_of("classifier"), folder)


def exported(model: PreTrainedModel, processor: BaseImageProcessor, folder: Path) -> tuple[PreTrainedModel, Path]:
    """The model and the folder that has its files, in all precisions and with no data beside them."""
    files = onnx_files.export(model, processor, folder, fp16=True, int8=True)
    assert [file.relative_to(folder).as_posix() for file in files] == [
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
    ]
    assert sorted(folder.rglob("*")) == sorted([folder / "onnx", *files])
    return model, folder


def check_files(model: PreTrainedModel, folder: Path, limits: dict[str, float]) -> None:
    """The outputs at other sizes, by the names that clients read; what 8 bits are of; what the files say."""
    sessions = {
        name: onnxruntime.InferenceSession(folder / "onnx" / name, providers=["CPUExecutionProvider"])
        for name in (*limits, onnx_files.QUANTIZED)
    }
    for shape in SHAPES:
        images = torch.randn(shape)
        expected = named_outputs(model, images)
        for file, limit in limits.items():
            assert [output.name for output in sessions[file].get_outputs()] == list(expected)
            outputs = sessions[file].run(list(expected), {"pixel_values": images.numpy()})
            for output, (name, value) in zip(outputs, expected.items(), strict=True):
                assert output.dtype == np.float32
                difference = np.abs(output - value.numpy()).max()
                assert output.shape == value.shape and difference <= limit * value.abs().max(), (file, shape, name)
    assert_weights_of_8_bits(folder / "onnx" / onnx_files.PLAIN, folder / "onnx" / onnx_files.QUANTIZED)
    for session in sessions.values():
        assert session.get_modelmeta().custom_metadata_map["architecture"] == type(model).__name__


def named_outputs(model: PreTrainedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The names that clients read, written out."""
    with torch.no_grad():
        output = model(images)
    if hasattr(output, "pred_boxes"):
        boxes = ("box_deltas", "box_distributions", "centerness")
        return {"logits": output.logits} | {name: output[name] for name in boxes if name in output}
    if hasattr(output, "feature_maps"):
        return {f"feature_maps.{stage}": output.feature_maps[stage] for stage in range(4)}
    if hasattr(output, "logits"):
        return {"logits": output.logits}
    return {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}


def assert_weights_of_8_bits(plain: Path, quantized: Path) -> None:
    """All linear layers, with a scale for each channel."""
    before, after = onnx.load(plain), onnx.load(quantized)
    weights = {weight.name for weight in before.graph.initializer}
    linears = [node for node in before.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    products = [node for node in after.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == len(linears) > 0
    tensors = {tensor.name: tensor for tensor in after.graph.initializer}
    for product in products:
        weight, zero_point = tensors[product.input[1]], tensors[product.input[3]]
        assert weight.data_type == onnx.TensorProto.UINT8
        assert list(zero_point.dims) == [weight.dims[1]]


# Each family and each head once; elsewhere adaptive pooling is baked at the traced size.


@pytest.mark.slow
def test_classifier(classifier: tuple[PreTrainedModel, Path]) -> None:
    model, folder = classifier
    check_files(model, folder, LIMITS)
    facts = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx").get_modelmeta().custom_metadata_map
    assert facts == onnx_graph.metadata(model, processor_of("classifier"))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "role"), [(PVT, "segmenter"), (PVT_V2_LINEAR, "backbone"), (P2T, "model")], ids=str)
def test_any_size(family: Family, role: str, tmp_path: Path) -> None:
    check_files(*exported(build(family, role), processor_of(role), tmp_path), LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "family"), [(RETINANET, PVT), (ATSS, PVT_V2), (GFL, PVT_V2_LINEAR)], ids=str)
def test_dense_detector(detector: DetectorRow, family: Family, tmp_path: Path) -> None:
    """The raw outputs; what follows them depends on values."""
    model = tiny_detector(detector, family.shallow_config(), num_head_convs=1)
    processor = hf_pvt.detection_image_processor(size={"shortest_edge": 64, "longest_edge": 128})
    limits = {name: max(limit, 1e-4) for name, limit in LIMITS.items()}
    check_files(*exported(model, processor, tmp_path), limits)


def test_metadata() -> None:
    """What a file was made of, and what its outputs mean; the licence is that of the pyramid's weights."""
    model = build(PVT_V2, "classifier")
    facts = onnx_graph.metadata(model, processor_of("classifier"))
    assert json.loads(facts["preprocessing"])["crop_size"] == {"height": 64, "width": 64}
    assert facts["architecture"] == type(model).__name__ and facts["license"] == "apache-2.0"
    assert json.loads(facts["labels"]) == {str(label): name for label, name in model.config.id2label.items()}
    facts = onnx_graph.metadata(build(PVT_V2, "backbone"), processor_of("backbone"))
    assert facts["task"] == "features" and "labels" not in facts
    facts = onnx_graph.metadata(tiny_detector(RETINANET, "p2t"), hf_pvt.detection_image_processor())
    assert facts["license"] == "cc-by-nc-sa-4.0" and facts["task"] == "detection"


def test_table_of_all_variants() -> None:
    """conversion/onnx.md is whole, as `tests/verify_onnx.py` renders it, and each difference is within its limit."""
    rows = verify_onnx.written_rows()
    assert set(rows) == {(variant, task) for variant in hf_pvt.VARIANTS for task in verify_onnx.TASKS}
    assert verify_onnx.TABLE.read_text() == verify_onnx.document(rows)
    for row in rows.values():
        plain, half, _ = map(float, row.split("|")[-4:-1])
        assert plain <= onnx_files.LIMIT and half <= onnx_files.HALF_LIMIT


# What is refused, with nothing written


@pytest.mark.slow
def test_untrue_files_are_refused(
    classifier: tuple[PreTrainedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of other weights, 16 bits that overflow, 8 bits that change too much; what was there stays."""
    content = (classifier[1] / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_files, "write_graph", lambda model, processor, path: path.write_bytes(content))
    model, processor = build(PVT_V2, "classifier"), processor_of("classifier")
    (before,) = onnx_files.export(model, processor, tmp_path)

    with pytest.raises(FileExistsError, match="--overwrite"):
        onnx_files.write_files(model, processor, tmp_path)
    with pytest.raises(ValueError, match=r"8 bits change .* the limit is 1e-05; leave --int8"):
        onnx_files.write_files(model, processor, tmp_path, int8=True, int8_limit=1e-5, overwrite=True)
    monkeypatch.setattr(onnx_files, "HALF_LIMIT", 1e-6)
    with pytest.raises(ValueError, match=r"model_fp16.onnx differs from the model by .*, the limit is 1e-06"):
        onnx_files.export(model, processor, tmp_path, fp16=True)
    with torch.no_grad():
        model.classifier.bias[0] += 0.01
    with pytest.raises(ValueError, match=r"model.onnx differs from the model by .* 1 x 224 x 224, the limit is 1e-04"):
        onnx_files.export(model, processor, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "model.onnx"]
    assert before.read_bytes() == content


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    """One sentence each, before the exporter starts."""
    processor = processor_of("classifier")
    with pytest.raises(NotImplementedError, match="MaskRcnnForInstanceSegmentation cannot be exported: a later stage"):
        onnx_files.export(tiny_detector(MASK_RCNN), processor, tmp_path)
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\)"):
        onnx_files.export(build(PVT_V2, "classifier").train(), processor, tmp_path)
    with pytest.raises(ValueError, match=r"torch.bfloat16, expected torch.float32"):
        onnx_files.export(build(PVT_V2, "classifier").bfloat16(), processor, tmp_path)
    with pytest.raises(ValueError, match="4 channels; leave --int8"):
        model = PVT_V2.classifier(PVT_V2.tiny_config(num_channels=4)).eval()
        exported_outputs.change_on_photographs(model, processor, lambda images: {})
    assert not list(tmp_path.iterdir())


def test_what_one_file_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf's limit itself is too much."""
    model = build(PVT_V2, "classifier")
    size = 4 * sum(weight.numel() for weight in model.state_dict().values())
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", size + 1)
    onnx_graph.check_weights(model)
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", size)
    with pytest.raises(ValueError, match=f"the weights take {size:,} bytes, .* holds less than {size:,}"):
        onnx_graph.check_weights(model)


def changed(model: PreTrainedModel, *shares: float) -> exported_outputs.Run:
    """The model with these offsets, of one call after another, as shares of the outputs' deviation."""
    offsets = iter(shares)

    def run(images: torch.Tensor) -> exported_outputs.Outputs:
        return {name: one + next(offsets) * one.std() for name, one in onnx_graph.raw_outputs(model, images).items()}

    return run


def test_the_worst_photograph_counts() -> None:
    """Wherever it stands, and one that became NaN most of all."""
    model, processor = build(PVT_V2, "classifier"), processor_of("classifier")
    for shares in ((0.1, 0.5), (0.5, 0.1), (0.1, np.nan), (np.nan, 0.1)):
        change = exported_outputs.change_on_photographs(model, processor, changed(model, *shares))
        assert change == pytest.approx(np.max(shares), rel=1e-3, nan_ok=True), shares


def test_the_worst_size_counts() -> None:
    """Of three sizes the second; NaN is above every limit."""
    model = build(PVT_V2, "classifier")
    none = exported_outputs.check_sizes(model, changed(model, 0, 0, 0), 1.0, "a.onnx")
    first = exported_outputs.check_sizes(model, changed(model, 0.1, 0, 0), 1.0, "a.onnx")
    largest = exported_outputs.check_sizes(model, changed(model, 0, 0.5, 0), 1.0, "a.onnx")
    assert none == 0 < first < largest
    assert exported_outputs.check_sizes(model, changed(model, 0.1, 0.5, 0.1), 1.0, "a.onnx") == largest
    with pytest.raises(ValueError, match="a.onnx differs from the model by nan of the outputs' scale at 3 x 97 x 131"):
        exported_outputs.check_sizes(model, changed(model, 0.1, np.nan, 0.1), 1.0, "a.onnx")


def test_no_number_on_photographs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "opened", lambda path: None)
    monkeypatch.setattr(onnx_files, "change_on_photographs", lambda *_: np.nan)
    with pytest.raises(ValueError, match="8 bits change the outputs on the photographs by nan"):
        onnx_files.compared_on_photographs(build(PVT_V2, "classifier"), processor_of("classifier"), tmp_path, 0.2)


def test_other_loggers_are_quiet_for_a_while() -> None:
    """Only while ONNX Runtime quantises: warnings are heard again, even after an error."""
    logger = logging.getLogger("onnx_precision")
    with pytest.raises(ValueError, match="broken"), onnx_precision.quiet():
        assert not logger.isEnabledFor(logging.WARNING)
        raise ValueError("broken")
    assert logger.isEnabledFor(logging.WARNING)


def test_change_is_of_the_deviation() -> None:
    """A common offset hides nothing, and NaN is the largest of all."""
    expected = {"logits": torch.tensor([1001.0, 1003.0]), "box_deltas": torch.tensor([0.0, 1.0])}
    changed = {"logits": torch.tensor([1001.0, 1004.0]), "box_deltas": torch.tensor([0.0, 1.0])}
    assert exported_outputs.relative_change(changed, expected) == pytest.approx(0.5)  # sqrt(1/2) of sqrt(2)
    broken = {name: value * torch.nan for name, value in expected.items()}
    assert np.isnan(exported_outputs.relative_change(broken, expected))
    assert np.isnan(exported_outputs.largest_difference(broken, expected))
    assert exported_outputs.largest_difference({"logits": expected["logits"]}, expected) == np.inf
