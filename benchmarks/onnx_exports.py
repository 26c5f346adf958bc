"""Our models as ONNX files, float32 and quantised to int8, kept in out/benchmarks for the next run.

    python -m benchmarks.onnx_exports

exports what is missing (minutes, but nothing is timed: the machine need not be idle). They lie in a folder named after
a digest of the package's code and the libraries' versions, and go with it. Weights are random.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from .fresh_process import in_fresh_process
from .machine import versions
from .models import CASES, MODELS, SEMANTIC_FPN, ours

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "out" / "benchmarks"
KINDS = ("float32", "int8 dynamic", "int8 static")
LARGEST = {"float32": 1024, "int8 dynamic": 512, "int8 static": 512}
CALIBRATION_IMAGES = 2


def onnx_file(model: str, size: int, batch: int, kind: str) -> Path:
    """The file for images (batch, 3, size, size); made now where it is missing."""
    case = f"{batch}x{size}" if is_fixed(model) else "any"
    path = FOLDER / digest() / f"{model} {case} {kind}.onnx".replace(" ", "-")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    for outdated in FOLDER.iterdir():
        if outdated != path.parent:
            shutil.rmtree(outdated)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / "model.onnx"
        if kind == "float32":
            export(model, size, batch, written)
        else:
            quantize(onnx_file(model, size, batch, "float32"), written, size, batch, kind)
        os.replace(written, path)
    return path


def is_fixed(model: str) -> bool:
    """Whether a model is exported for one size: about P2T's pooled sizes, rounded quotients, torch reasons for long."""
    return model.startswith("p2t")


@cache
def digest() -> str:
    sources = sorted((ROOT / "src" / "hf_pvt").rglob("*.py"))
    content = b"".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return hashlib.sha256(content + repr(versions()).encode()).hexdigest()[:12]


def export(model: str, size: int, batch: int, path: Path) -> None:
    torch.manual_seed(0)
    any_size = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(
        ours(model),
        (),
        path,
        kwargs={"pixel_values": torch.randn(batch, 3, size, size) if is_fixed(model) else torch.randn(2, 3, 224, 256)},
        dynamic_shapes=None if is_fixed(model) else any_size,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def quantize(source: Path, path: Path, size: int, batch: int, kind: str) -> None:
    """As ONNX Runtime's guide has it: after its own preparation; a static one is calibrated on random images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    if kind == "int8 dynamic":
        quantization.quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul", "Gemm"])
    else:
        products = ["Conv", "MatMul", "Gemm"]  # with the rest as well it is several times slower
        quantization.quantize_static(prepared, path, RandomImages(size, batch), op_types_to_quantize=products)


class RandomImages:
    """What ONNX Runtime takes calibration data from."""

    def __init__(self, size: int, batch: int) -> None:
        generator = np.random.default_rng(0)
        shape = (batch, 3, size, size)
        self.images: Iterator[dict[str, np.ndarray]] = iter(
            [{"pixel_values": generator.standard_normal(shape, np.float32)} for _ in range(CALIBRATION_IMAGES)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.images, None)


def session(model: str, size: int, batch: int, kind: str) -> onnxruntime.InferenceSession:
    """A session that knows all sizes, as one of a file for this size alone would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    for name, value in (("batch", batch), ("height", size), ("width", size)):
        options.add_free_dimension_override_by_name(name, value)
    return onnxruntime.InferenceSession(onnx_file(model, size, batch, kind), options)


def export_missing(model: str, size: int, batch: int) -> None:
    """All files of a case, each in a process of its own."""
    for kind in KINDS:
        if size <= LARGEST[kind] and (kind == "float32" or model != SEMANTIC_FPN):
            in_fresh_process(onnx_file, model, size, batch, kind)


if __name__ == "__main__":
    logging.disable()
    for model in MODELS:
        for size, batch in CASES:
            export_missing(model, size, batch)
            print(f"{model}, {size}, {batch}", flush=True)
