"""Smaller ONNX files: half precision, and weights of 8 bits, both made by ONNX Runtime's own tools."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16


def write_half(source: Path, path: Path) -> None:
    """Weights and computation in float16; input and outputs stay float32, as the Hub's clients expect."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def write_quantized(source: Path, path: Path) -> None:
    """Linear layers with weights of 8 bits, a scale for each channel; activations are quantised as they come.

    Weights are unsigned: products of signed ones overflow in processors without VNNI, silently. Convolutions stay
    float32: ONNX Runtime has no fast ones of dynamic scale.
    """
    with quiet():
        quantize_dynamic(
            source, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QUInt8
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without advice on the root logger to pre-process the graph: that is for static scales."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
