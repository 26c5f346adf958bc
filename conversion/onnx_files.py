"""ONNX files of a model where the Hub's clients look for them: `onnx/model.onnx` beside the configuration.

One file takes any batch, height and width. Its input is `pixel_values` (B, C, H, W), its outputs have the names of the
model's own: `logits`, a backbone's `feature_maps.0` and so on, a dense detector's `logits` and `box_deltas`.
"""

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from whole_folder import written_whole

from hf_pvt.detection.modeling_detector import Detector

TRACED_SIZE = (96, 160)


def export(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: Path,
    fp16: bool = False,
    int8: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write `onnx/model.onnx` into the folder of a saved model, and return what was written.

    Raises:
        FileExistsError: the folder has an `onnx` already, and `overwrite` is not set.
        NotImplementedError: a detector of two stages, which no file can hold.
    """
    with written_whole(folder / "onnx", overwrite) as temporary:
        write_graph(model, temporary / "model.onnx")
        names = [path.name for path in temporary.iterdir()]
    return [folder / "onnx" / name for name in names]


def write_graph(model: PreTrainedModel, path: Path) -> None:
    """The model in float32, traced at one size and free in batch, height and width, as a single file."""
    images = torch.randn(2, model.config.num_channels, *TRACED_SIZE)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps
        torch.onnx.export(
            model,
            (),
            path,
            kwargs={"pixel_values": images},
            dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
            output_names=list(raw_outputs(model, images)),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


@torch.inference_mode()
def raw_outputs(model: PreTrainedModel, images: Tensor) -> dict[str, Tensor]:
    """What the network says of images (B, C, H, W), by the names that the file has."""
    if isinstance(model, Detector):
        _, predictions, _ = model.encode(images)
        return predictions
    outputs: dict[str, Tensor] = {}
    for name, value in model(images).items():
        several = isinstance(value, tuple)
        outputs |= {f"{name}.{index}": one for index, one in enumerate(value)} if several else {name: value}
    return outputs
