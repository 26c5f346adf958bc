"""Is an exported file true? Its outputs against the model's, at sizes that it was not traced at, and on photographs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import onnxruntime
import torch
from onnx_graph import raw_outputs
from photographs import PHOTOGRAPHS
from tasks import task_of
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

Outputs = dict[str, Tensor]
Run = Callable[[Tensor], Outputs]

# Batch, height and width: odd, not divisible, not square; none is the traced one.
VERIFIED = ((1, 224, 224), (3, 97, 131), (2, 160, 256))


def opened(path: Path) -> Run:
    """The ONNX file in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what it says of its own optimisations is nobody's error
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Outputs:
        values = session.run(names, {"pixel_values": images.numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run


def check_sizes(
    model: PreTrainedModel, run: Run, limit: float, name: str, sizes: Sequence[tuple[int, int, int]] = VERIFIED
) -> float:
    """The largest difference from the model at (batch, height, width), as a share of each output's largest value.

    Raises:
        ValueError: it is above `limit`, or the outputs have other names or shapes.
    """
    drawing = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch, height, width in sizes:
        images = torch.randn(batch, model.config.num_channels, height, width, generator=drawing)
        difference = largest_difference(run(images), raw_outputs(model, images))
        if not difference <= limit:  # NaN is above every limit
            raise ValueError(
                f"{name} differs from the model by {difference:.1e} of the outputs' scale at {batch} x {height} x "
                f"{width}, the limit is {limit:.0e}; nothing was written."
            )
        largest = max(largest, difference)
    return largest


def largest_difference(outputs: Outputs, expected: Outputs) -> float:
    """Of all outputs, each relative to its scale; infinite where names or shapes differ."""
    shapes, expected_shapes = ({name: one.shape for name, one in some.items()} for some in (outputs, expected))
    if shapes != expected_shapes:
        return torch.inf
    return max_of((outputs[name] - one).abs().max() / one.abs().max() for name, one in expected.items())


def change_on_photographs(model: PreTrainedModel, processor: BaseImageProcessor, run: Run) -> float:
    """How much the outputs on the example photographs change, the largest of all outputs: see `relative_change`.

    Raises:
        ValueError: the model has not three channels, so that photographs say nothing of it.
    """
    if model.config.num_channels != 3:
        raise ValueError(
            f"int8 is measured on photographs, and the model has {model.config.num_channels} channels; leave --int8."
        )
    return max_of(relative_change(run(images), raw_outputs(model, images)) for images in photographs(model, processor))


def photographs(model: PreTrainedModel, processor: BaseImageProcessor) -> Iterator[Tensor]:
    """The example photographs of the model's task as it sees them, each (1, 3, H, W)."""
    for photograph in PHOTOGRAPHS[task_of(model)]:
        yield processor(photograph.open(), return_tensors="pt")["pixel_values"]


def relative_change(outputs: Outputs, expected: Outputs) -> float:
    """The root mean square of the change over the standard deviation of what is expected, the largest of all outputs.

    Over the deviation, not over the values: a common offset, such as that of a detector's logits, would hide changes.
    """
    return max_of((outputs[name] - one).square().mean().sqrt() / one.std() for name, one in expected.items())


def max_of(values: Iterable[Tensor | float]) -> float:
    """NaN where one is, which Python's `max` skips."""
    return torch.tensor([float(value) for value in values]).max().item()
