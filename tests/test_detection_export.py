"""Compiled and exported detectors at sizes they were not traced at."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from families import DENSE, GFL, RETINANET, SPARSE_RCNN, WITH_MASKS, DetectorRow, tiny_detector
from torch import Tensor

TRACED = (2, 3, 128, 192)
OTHER_SIZES = [(1, 3, 160, 96), (3, 3, 97, 131), (1, 3, 256, 320)]


def assert_close(output: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("detector", [RETINANET, GFL], ids=str)
def test_onnx(detector: DetectorRow, tmp_path: Path) -> None:
    """Raw outputs from one file, whatever the batch, height and width; `test_export` has all backbones."""
    model, file = tiny_detector(detector, num_head_convs=1), tmp_path / "model.onnx"
    sizes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    images = {"pixel_values": torch.randn(TRACED)}
    torch.onnx.export(model, (), file, kwargs=images, dynamic_shapes=sizes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert len(session.get_outputs()) == 2
    with torch.no_grad():
        for shape in (TRACED, *OTHER_SIZES):
            images = torch.randn(shape)
            logits, boxes = session.run(None, {"pixel_values": images.numpy()})
            expected = model(images)
            assert_close(torch.from_numpy(logits), expected.logits, 1e-4)
            raw = expected.box_deltas if detector is RETINANET else expected.box_distributions
            assert_close(torch.from_numpy(boxes), raw, 1e-4)


@pytest.mark.parametrize("detector", [*WITH_MASKS, SPARSE_RCNN], ids=str)
def test_several_stages_are_not_exported(detector: DetectorRow) -> None:
    """Said, instead of a file without outputs."""
    with pytest.raises(NotImplementedError, match=f"^{detector.model.__name__} cannot be exported: a later stage"):
        torch.export.export(tiny_detector(detector), (), {"pixel_values": torch.randn(TRACED)})


@pytest.mark.parametrize("detector", [*DENSE, *WITH_MASKS], ids=str)
def test_compile(detector: DetectorRow) -> None:
    """Backbone, neck and heads are one graph."""
    torch.compiler.reset()
    model, images = tiny_detector(detector), torch.randn(TRACED)
    # Not inductor: its code generation takes most of a minute, and what can go wrong here goes wrong in the tracing.
    encode = torch.compile(model.encode, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        levels, predictions, _ = encode(images)
        expected_levels, expected, _ = model.encode(images)
    for ours, theirs in zip([*levels, *predictions.values()], [*expected_levels, *expected.values()], strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("detector", [*DENSE, *WITH_MASKS, SPARSE_RCNN], ids=str)
def test_compiled_whole(detector: DetectorRow) -> None:
    """Detections, and losses with their gradients, of a compiled model."""
    torch.compiler.reset()
    model = tiny_detector(detector)
    compiled, images = torch.compile(model, backend="eager"), torch.randn(TRACED)
    labels = [{"class_labels": [1], "boxes": [[0.5, 0.5, 0.5, 0.5]], "masks": torch.ones(1, *TRACED[2:])}] * 2
    torch.manual_seed(0)
    expected = model(images, labels=labels)
    torch.manual_seed(0)
    output = compiled(images, labels=labels)
    for name in ("loss", "pred_scores", "pred_labels", "pred_boxes"):
        torch.testing.assert_close(output[name], expected[name])
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
