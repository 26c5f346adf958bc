"""PyTorch's own programs: true at sizes that they were not traced at, or not written."""

from pathlib import Path

import pytest
import torch
from exported_outputs import Outputs
from exported_programs import PROGRAM, REFUSED_OR_TRUE, VERIFIED, compared, write_programs
from families import P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb
from onnx_graph import raw_outputs
from torch import Tensor
from transformers import PreTrainedModel

# Larger than any that was traced or compared and not divisible; another batch, and smaller than the traced one.
OTHERS = [(2, 3, 403, 517), (3, 3, 97, 131)]


def shallow(family: Family) -> PreTrainedModel:
    model = family.classifier(family.shallow_config()).eval()
    perturb(model)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", [PVT, PVT_V2_LINEAR, P2T], ids=str)
def test_program(family: Family, tmp_path: Path) -> None:
    """A `.pt2`, free in batch, height and width; PVTv2's is in `test_export_onnx`.

    The sizes of P2T's pooled maps are rounded quotients of the image's, and PyTorch exports for lengths above one:
    its program refuses the smaller images.
    """
    model = shallow(family)
    (file,) = write_programs(model, tmp_path, pt2=True, aoti=False)
    assert file.name == f"programs/{PROGRAM}" and file.change < 1e-5
    assert file.bytes == (tmp_path / PROGRAM).stat().st_size
    program = torch.export.load(tmp_path / PROGRAM).module()
    for shape in OTHERS if family is not P2T else OTHERS[:1]:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program(pixel_values=images)["logits"], model(images).logits)


def test_untrue_programs_are_refused(tmp_path: Path) -> None:
    """Other numbers at any size, and a refusal of one that is promised; smaller images may be refused."""
    model, file = shallow(PVT_V2), tmp_path / PROGRAM
    file.write_bytes(bytes(7))
    wrong: list[tuple[int, int, int]] = []
    refused: list[tuple[int, int, int]] = []

    def program(pixel_values: Tensor) -> Outputs:
        batch, _, height, width = pixel_values.shape
        if (batch, height, width) in refused:
            raise RuntimeError("Guard failed: pixel_values")
        share = 1e-3 if (batch, height, width) in wrong else 1e-6
        return {name: one + share * one.abs().max() for name, one in raw_outputs(model, pixel_values).items()}

    refused[:] = REFUSED_OR_TRUE
    exported = compared(model, file, program)
    assert (exported.name, exported.bytes) == (f"programs/{PROGRAM}", 7)
    assert exported.change == pytest.approx(1e-6, rel=0.2)
    refused.clear()
    assert compared(model, file, program).change == pytest.approx(1e-6, rel=0.2)

    def answer() -> str:
        try:
            return str(compared(model, file, program))
        except ValueError as refusal:
            return str(refusal)

    for batch, height, width in (*VERIFIED, *REFUSED_OR_TRUE):
        wrong[:] = [(batch, height, width)]
        assert f"at {batch} x {height} x {width}, the limit is 1e-04; nothing was written." in answer()
    wrong.clear()
    for size in VERIFIED:
        refused[:] = [size]
        assert "model.pt2 refuses a size that it has to take: Guard failed" in answer(), size
