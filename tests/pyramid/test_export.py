"""Compiled and exported models at sizes they were not traced at: the same numbers, not silently other ones.

ONNX files are in `test_onnx_files`.
"""

import pytest
import torch
from families import FAMILIES, PVT_V2, PVT_V2_LINEAR, Family, perturb
from torch import Tensor
from torch.export import Dim
from transformers import PreTrainedModel

TRACED = (2, 3, 96, 160)
OTHER_SIZES = [TRACED, (3, 3, 224, 96), (1, 3, 97, 131), (1, 3, 300, 500)]
SMALL = (5, 3, 33, 47)
ALL = (*FAMILIES, PVT_V2_LINEAR)


def build(family: Family, role: str = "classifier") -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(family, role)(family.shallow_config()).eval()
    perturb(model)
    return model


def assert_close(output: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("family", ALL, ids=str)
def test_export(family: Family) -> None:
    """`torch.export` with dynamic batch, height and width.

    PyTorch exports for sizes above one: images so small that a map shrinks to one row are refused, never wrong.
    """
    model = build(family)
    sizes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    with torch.no_grad():
        program = torch.export.export(model, (), {"pixel_values": torch.randn(TRACED)}, dynamic_shapes=sizes)
        for shape in OTHER_SIZES:
            images = torch.randn(shape)
            assert_close(program.module()(pixel_values=images).logits, model(images).logits)
        images = torch.randn(SMALL)
        try:
            output = program.module()(pixel_values=images)
        except (AssertionError, RuntimeError) as refusal:
            assert "pixel_values" in str(refusal)
        else:
            assert_close(output.logits, model(images).logits)


@pytest.mark.parametrize(
    ("family", "role"), [*((family, "classifier") for family in ALL), (PVT_V2, "segmenter")], ids=str
)
def test_compile(family: Family, role: str) -> None:
    """One graph, without breaks, compiled once for all sizes."""
    torch.compiler.reset()
    model = build(family, role)
    # Not inductor: its code generation takes most of a minute, and what can go wrong here goes wrong in the tracing.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for shape in OTHER_SIZES[:2]:
            images = torch.randn(shape)
            assert_close(compiled(images).logits, model(images).logits)
        with torch.compiler.set_stance("fail_on_recompile"):
            images = torch.randn(2, 3, 160, 192)
            assert_close(compiled(images).logits, model(images).logits)
