"""Compiled models at sizes they were not compiled for, and models of 8 bits; exported ones are in `conversion`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb
from paths import ROOT, SUPPORT

pytestmark = pytest.mark.slow

DOCUMENT = ROOT / "docs" / "ecosystem.md"
PROGRAM = SUPPORT / "quantize_with_torchao.py"


@pytest.mark.parametrize(
    ("family", "role"),
    [(PVT, "classifier"), (PVT_V2, "segmenter"), (PVT_V2_LINEAR, "classifier"), (P2T, "classifier")],
    ids=str,
)
def test_compile(family: Family, role: str) -> None:
    """One graph, without breaks, compiled once for all sizes."""
    torch.compiler.reset()
    model = getattr(family, role)(family.shallow_config()).eval()
    perturb(model)
    # Neither inductor nor AOT: what can go wrong here goes wrong in the tracing, and those take most of a minute.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")

    def check(*shape: int) -> None:
        images = torch.randn(shape)
        expected = model(images).logits
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(compiled(images).logits, expected, rtol=0, atol=tolerance)

    with torch.no_grad():
        check(2, 3, 96, 160)
        check(3, 3, 224, 96)
        with torch.compiler.set_stance("fail_on_recompile"):
            check(2, 3, 160, 192)


@pytest.mark.processes
def test_weights_of_8_bits(tmp_path: Path) -> None:
    """docs/ecosystem.md's: all linears; what they change is their rounding, and a model of the rounded values agrees.

    torchao is installed into a folder of this test: beside the other packages, every import of Transformers would warn.
    """
    program, document = (
        [line.strip() for line in file.read_text().splitlines() if "torchao.q" in line or "quantize_(model" in line]
        for file in (PROGRAM, DOCUMENT)
    )
    assert len(program) == 2 and program == document
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, "torchao"]
    subprocess.run(pip, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(SUPPORT)])}
    process = subprocess.run(
        [sys.executable, PROGRAM], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    changes = json.loads(process.stdout.splitlines()[-1])
    assert set(changes) == {"PVT", "PVTv2", "PVTv2-Li", "P2T"}
    for family, change in changes.items():
        assert change["quantized"] == change["linears"] > 0, family
        assert 1e-5 < change["of_rounding"] < 0.1, family
        assert change["of_values"] < 5e-6, family
