"""PyTorch's own programs: true at sizes that they were not traced at, or not written."""

from collections.abc import Callable
from pathlib import Path

import exported_programs
import pytest
import torch
from exported_programs import PROGRAM, write_programs
from families import P2T, PVT_V2, Family, perturb
from transformers import PreTrainedModel

# Larger than any that was traced or compared, and not divisible.
LARGER = (2, 3, 403, 517)


def shallow(family: Family) -> PreTrainedModel:
    torch.manual_seed(0)
    model = family.classifier(family.shallow_config()).eval()
    perturb(model)
    return model


@pytest.mark.parametrize("family", [P2T, PVT_V2], ids=str)
def test_program(family: Family, tmp_path: Path) -> None:
    """A `.pt2`; the sizes of P2T's pooled maps are rounded quotients of the image's."""
    model = shallow(family)
    (file,) = write_programs(model, tmp_path, pt2=True, aoti=False)
    assert file.name == f"programs/{PROGRAM}" and file.change < 1e-5
    assert file.bytes == (tmp_path / PROGRAM).stat().st_size
    assert_true(torch.export.load(tmp_path / PROGRAM).module(), model)


def assert_true(program: Callable[..., dict[str, torch.Tensor]], model: PreTrainedModel) -> None:
    images = torch.randn(LARGER)
    with torch.no_grad():
        torch.testing.assert_close(program(pixel_values=images)["logits"], model(images).logits)


@pytest.mark.parametrize(
    ("sizes", "limit", "message"),
    [
        ({"VERIFIED": [(1, 224, 224)]}, -1.0, "model.pt2 differs from the model by .* at 1 x 224 x 224"),
        ({"VERIFIED": [], "REFUSED_OR_TRUE": [(1, 96, 96)]}, -1.0, "model.pt2 differs from the model by .* at 1 x 96"),
        ({"VERIFIED": [(1, 32, 32)]}, 1e-4, "model.pt2 refuses a size that it has to take: .*; nothing was written"),
    ],
    ids=["verified", "answered", "refused"],
)
def test_untrue_programs_are_refused(
    sizes: dict[str, list[tuple[int, int, int]]],
    limit: float,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ({"LIMIT": limit} | sizes).items():
        monkeypatch.setattr(exported_programs, name, value)
    with pytest.raises(ValueError, match=message):
        write_programs(shallow(PVT_V2), tmp_path, pt2=True, aoti=False)
