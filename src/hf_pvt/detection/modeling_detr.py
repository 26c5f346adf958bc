"""DETR (arXiv 2005.12872) as it was published on PVT: Transformers' model, trained as the published one was.

Transformers' own `auxiliary_loss` changes the network: it gives what its norm makes of a decoder layer to the next
layer, where the published one is only read out by that norm.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DetrConfig
from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput
from transformers.utils.generic import can_return_tuple

from .parts.roi_pooling import at_least_float32

# What of the published configuration is not Transformers' default. An image is padded to multiples of `size_divisor`,
# which the backbone sees though the attention does not: the scripts in examples/ read it of the configuration.
PUBLISHED_SETTINGS = {"attention_dropout": 0.1, "activation_dropout": 0.1, "size_divisor": 32}


class DetrForObjectDetection(transformers.DetrForObjectDetection):
    """Transformers' DETR, the same in all it predicts; its loss is that of every decoder layer.

    Each layer is read out by the norm that follows the last one ("Auxiliary decoding losses", section 3.2). What goes
    into the encoder is not dropped at random, as published.
    """

    def __init__(self, config: DetrConfig) -> None:
        if config.auxiliary_loss:
            raise ValueError(
                "auxiliary_loss=True gives each decoder layer other inputs than the published DETR has, and a "
                "checkpoint of it other detections; leave it out: the loss is that of every layer without it."
            )
        super().__init__(config)
        self.model.encoder.dropout = 0.0  # of its input alone: the layers have their own

    def set_num_channels(self, num_channels: int) -> None:
        """Raises ValueError for other than three channels, which DETR's code expects."""
        if num_channels != self.config.num_channels:
            raise ValueError(f"DETR takes images of {self.config.num_channels} channels, got {num_channels}.")

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> DetrObjectDetectionOutput:
        """Transformers' outputs, and the loss where labels are given.

        Args:
            pixel_values: images (B, 3, H, W).
            pixel_mask: (B, H, W), 1 on an image and 0 on its padding; without it padding counts as image.
            labels: for each image a dict of class_labels (n,) and boxes (n, 4): centre x, centre y, width and height as
                shares of the image's size inside its padding.

        `loss_dict` has Transformers' terms, without their weights: `loss_ce`, `loss_bbox` and `loss_giou` of the last
        layer, and with `_0`, `_1`, ... of those before it.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        wanted = output_hidden_states or labels is not None
        outputs = super().forward(pixel_values, pixel_mask=pixel_mask, output_hidden_states=wanted, **kwargs)
        if labels is None:
            return outputs
        # The last one of these is behind its norm already.
        before = outputs.decoder_hidden_states[-self.config.decoder_layers : -1]
        norm = self.model.decoder.layernorm
        states = torch.stack([*map(norm, before), outputs.last_hidden_state])  # (layers, B, queries, D)
        logits = at_least_float32(self.class_labels_classifier(states))
        boxes = at_least_float32(self.bbox_predictor(states).sigmoid())
        with_layers = copy.copy(self.config)
        with_layers.auxiliary_loss = True
        loss, terms, layer_outputs = self.loss_function(
            logits[-1], labels, self.device, boxes[-1], with_layers, logits, boxes
        )
        found = dict(outputs) | {"loss": loss, "loss_dict": terms, "auxiliary_outputs": layer_outputs}
        if not output_hidden_states:
            found |= {"encoder_hidden_states": None, "decoder_hidden_states": None}
        return DetrObjectDetectionOutput(**found)
