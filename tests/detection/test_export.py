"""Compiled detectors, and those that cannot be exported; ONNX files are in `conversion/test_onnx_files`."""

import pytest
import torch
from families import DENSE, DETECTORS, FASTER_RCNN, MASK_RCNN, SPARSE_RCNN, WITH_MASKS, DetectorRow, tiny_detector

TRACED = (2, 3, 128, 192)


@pytest.mark.slow
@pytest.mark.parametrize("detector", [*WITH_MASKS, SPARSE_RCNN], ids=str)
def test_several_stages_are_not_exported(detector: DetectorRow) -> None:
    """Said, instead of a file without outputs."""
    with pytest.raises(NotImplementedError, match=f"^{detector.model.__name__} cannot be exported: a later stage"):
        torch.export.export(tiny_detector(detector), (), {"pixel_values": torch.randn(TRACED)})


@pytest.mark.slow
@pytest.mark.parametrize("detector", [*DENSE, MASK_RCNN], ids=str)
def test_compile(detector: DetectorRow) -> None:
    """Backbone, neck and heads are one graph; Cascade Mask R-CNN's are Mask R-CNN's."""
    torch.compiler.reset()
    model, images = tiny_detector(detector), torch.randn(TRACED)
    # Not inductor: its code generation takes most of a minute, and what can go wrong here goes wrong in the tracing.
    encode = torch.compile(model.encode, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        levels, predictions, _ = encode(images)
        expected_levels, expected, _ = model.encode(images)
    for ours, theirs in zip([*levels, *predictions.values()], [*expected_levels, *expected.values()], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("detector", [one for one in DETECTORS if one is not FASTER_RCNN], ids=str)
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
