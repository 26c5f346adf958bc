"""From images to columns of a table: what all outputs of a model share."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from ..images.image_processing_pvt import channels_of
from ..original.load_original import load_original
from .arguments import Arguments

Columns = dict[str, list[Any]]
Inputs = dict[str, Tensor]  # of the model: `pixel_values` (C, H, W) of an image, (B, C, H, W) of a batch
Size = tuple[int, int]  # height, width


class Output:
    """A model with its processor, and the columns of what it says of images."""

    output: str
    head: str  # what a model of the kind has, and others lack
    auto_class: Any

    def __init__(self, arguments: Arguments, device: torch.device) -> None:
        path = str(arguments.model_name_or_path)
        model: Any = self.open(path)
        self.model = model.to(device).eval()
        # Of a Hub id without one, from_pretrained says so.
        has_processor = Path(path, "preprocessor_config.json").is_file() or not Path(path).exists()
        self.processor = AutoImageProcessor.from_pretrained(path) if has_processor else self.published_processor()
        self.channels = channels_of(self.processor.image_mean, self.processor.image_std)
        self.device, self.bf16 = device, arguments.bf16

    def open(self, path: str) -> PreTrainedModel:
        """Raises ValueError for a model of another kind, and for missing weights, which Transformers would draw."""
        if Path(path).is_file():
            model = load_original(path)
            missing = [] if hasattr(model, self.head) else [self.head]
        else:
            config = AutoConfig.from_pretrained(path)
            if type(config) not in self.auto_class._model_mapping:
                raise ValueError(
                    f"{path} is a {config.model_type}, which gives no {self.output}; choose another model or --output."
                )
            model, info = self.auto_class.from_pretrained(path, output_loading_info=True)
            missing = sorted(name for name in info["missing_keys"] if self.needs(name))
        if missing:
            raise ValueError(f"{path} has no weights for {missing[0]}; choose another model.")
        return model

    def needs(self, name: str) -> bool:
        """Whether the output depends on a weight."""
        return True

    def published_processor(self) -> Any:
        """The processor of models that come without one."""
        raise NotImplementedError

    def schema(self) -> dict[str, pa.DataType]:
        """The columns' types."""
        raise NotImplementedError

    def prepare(self, image: Any) -> Inputs:
        """What the model takes of one image."""
        return {name: values[0] for name, values in self.processor(image, return_tensors="pt").items()}

    def __call__(self, images: list[Inputs], sizes: list[Size]) -> Columns:
        """The columns of prepared images that were of these sizes.

        Images of one shape go through the model together: none is padded to another's, which would change its features.
        """
        shapes = [image["pixel_values"].shape for image in images]
        columns: dict[str, dict[int, Any]] = defaultdict(dict)
        for shape in dict.fromkeys(shapes):
            alike = [index for index, other in enumerate(shapes) if other == shape]
            batch = {name: torch.stack([images[i][name] for i in alike]).to(self.device) for name in images[0]}
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                found = self.columns(batch, [sizes[i] for i in alike])
            for name, values in found.items():
                columns[name] |= zip(alike, values, strict=True)
        return {name: [values[i] for i in range(len(images))] for name, values in columns.items()}

    def columns(self, batch: Inputs, sizes: list[Size]) -> Columns:
        """The columns of a batch of images of one shape."""
        raise NotImplementedError
