"""PyTorch's own formats: an exported program for `torch.export.load`, and one compiled by AOTInductor for this machine.

Both take `pixel_values` and give a dictionary of the raw outputs; neither needs this package, or Transformers, to run.
"""

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exported_file import ExportedFile
from exported_outputs import Outputs, check_sizes
from onnx_graph import raw_outputs
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

FOLDER, PROGRAM, COMPILED = "programs", "model.pt2", "model_aoti.pt2"
LIMIT = 1e-4
# PyTorch exports for lengths above one: P2T pools a side of 161 pixels to two, and its programs refuse smaller ones.
TRACED_SIZE = (256, 320)
VERIFIED = ((1, 224, 224), (3, 193, 259), (2, 161, 288))
REFUSED_OR_TRUE = ((3, 97, 131), (1, 33, 47))
REFUSALS = (AssertionError, RuntimeError)  # the guards' and AOTInductor's


class RawOutputs(nn.Module):
    """A model that returns its raw outputs by name."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return raw_outputs(self.model, pixel_values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pt2", action="store_true", help=f"also {FOLDER}/{PROGRAM}, for torch.export.load")
    parser.add_argument("--aoti", action="store_true", help=f"also {FOLDER}/{COMPILED}, compiled for this processor")


def write_programs(model: PreTrainedModel, folder: Path, pt2: bool, aoti: bool) -> list[ExportedFile]:
    """Write what is wanted into `folder`.

    Raises:
        NotImplementedError: a detector of several stages, which cannot be exported.
        ValueError: a program differs from the model at a size that it was not traced at, or refuses it.
    """
    images = torch.randn(2, model.config.num_channels, *TRACED_SIZE)
    sizes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    with torch.no_grad():
        program = torch.export.export(RawOutputs(model).eval(), (), {"pixel_values": images}, dynamic_shapes=sizes)
    runs: dict[str, Any] = {}
    if pt2:
        torch.export.save(program, folder / PROGRAM)
        runs[PROGRAM] = torch.export.load(folder / PROGRAM).module()
    if aoti:
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / COMPILED))
        runs[COMPILED] = torch._inductor.aoti_load_package(str(folder / COMPILED))
    return [compared(model, folder / name, run) for name, run in runs.items()]


@torch.no_grad()
def compared(model: PreTrainedModel, path: Path, program: Callable[..., Outputs]) -> ExportedFile:
    """With the model at the verified sizes; smaller images a program may refuse, but not answer otherwise."""

    def run(images: Tensor) -> Outputs:
        return program(pixel_values=images)

    try:
        change = check_sizes(model, run, LIMIT, path.name, VERIFIED)
    except REFUSALS as error:
        raise ValueError(f"{path.name} refuses a size that it has to take: {error}; nothing was written.") from error
    for size in REFUSED_OR_TRUE:
        with contextlib.suppress(*REFUSALS):
            check_sizes(model, run, LIMIT, path.name, [size])
    return ExportedFile(f"{FOLDER}/{path.name}", path.stat().st_size, change)
