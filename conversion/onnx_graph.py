"""A model as an ONNX graph: one file, free in batch, height and width, that says what it was made of.

The outputs have the names of the model's own: `logits`, a backbone's `feature_maps.0` and so on, a dense detector's
`logits` and what it says of boxes.
"""

import contextlib
import io
import json
from dataclasses import fields
from pathlib import Path

import torch
from sources import pyramid_of
from tasks import task_of
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_pvt
from hf_pvt.detection.modeling_detector import Detector, DetectorOutput
from hf_pvt.published.variants import WEIGHTS_LICENSES

TRACED_SIZE = (96, 160)
# What protobuf can hold; clients want one file.
LARGEST_FILE = 2**31


def write_graph(model: PreTrainedModel, processor: BaseImageProcessor, path: Path) -> None:
    """The model in float32, with labels and preprocessing in the file's metadata.

    Raises:
        NotImplementedError: a detector of several stages.
        ValueError: weights of 2 GB or more, or in another type than float32.
    """
    check_weights(model)
    images = torch.randn(2, model.config.num_channels, *TRACED_SIZE)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its steps
        program = torch.onnx.export(
            model,
            (),
            kwargs={"pixel_values": images},
            dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
            output_names=list(raw_outputs(model, images)),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as the dynamo exporter's always is
    program.model.metadata_props.update(metadata(model, processor))
    program.save(path, external_data=False)


def check_weights(model: PreTrainedModel) -> None:
    if model.training:
        raise ValueError("the model is in training mode, in which a file would drop paths; call model.eval() first.")
    if model.dtype != torch.float32:
        raise ValueError(f"the model is in {model.dtype}, expected torch.float32; load it with dtype=torch.float32.")
    size = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    if size >= LARGEST_FILE:
        raise ValueError(f"the weights take {size:,} bytes, and one ONNX file holds less than {LARGEST_FILE:,}.")


def metadata(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    """What ONNX Runtime gives as `get_modelmeta().custom_metadata_map`; labels and preprocessing are JSON."""
    config, task = model.config, task_of(model)
    facts = {
        "architecture": type(model).__name__,
        "hf_pvt": hf_pvt.__version__,
        "license": WEIGHTS_LICENSES.get(pyramid_of(config).model_type, "unknown"),
        "preprocessing": processor.to_json_string(),
        "task": task,
    }
    return facts if task == "features" else facts | {"labels": json.dumps(config.id2label, ensure_ascii=False)}


@torch.no_grad()
def raw_outputs(model: PreTrainedModel, images: Tensor) -> dict[str, Tensor]:
    """What the network says of images (B, C, H, W), by the names that the file has.

    Raises:
        NotImplementedError: a detector of several stages.
    """
    if isinstance(model, Detector):
        _, predictions, _ = model.encode(images)
        if "logits" not in predictions:
            raise NotImplementedError(
                f"{type(model).__name__} cannot be exported: a later stage depends on the boxes of the first; "
                "export a one-stage detector, such as RetinaNet, or the backbone."
            )
        return {field.name: predictions[field.name] for field in fields(DetectorOutput) if field.name in predictions}
    outputs: dict[str, Tensor] = {}
    for name, value in model(images).items():
        several = isinstance(value, tuple)
        outputs |= {f"{name}.{index}": one for index, one in enumerate(value)} if several else {name: value}
    return outputs
