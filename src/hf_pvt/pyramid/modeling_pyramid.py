"""The Transformers side of the three families, written once: pretrained base, model, backbone, heads.

A family binds each class in a few lines; its pretrained base names the stage that its pyramids are made of.

Legend: see `layers`. Images are (B, C, H, W), normalised floats.
"""

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs, maybe_install_capturing_hooks

from ..cpu.packing import PackableMixin
from ..heads.initialized_layers import Drawn
from ..heads.semantic_fpn import SemanticFpn, semantic_loss
from ..remote_code import RemoteCodeMixin, family_classes, remote_auto_map, write_remote_code
from .input_channels import InputChannelsMixin
from .layers import ReducedAttention
from .pyramid import Pyramid, PyramidStage


class PyramidPreTrainedModel(RemoteCodeMixin, PackableMixin, InputChannelsMixin, PreTrainedModel):
    """What Transformers wants to know of every model here."""

    stage_class: type[PyramidStage]

    # Whether Transformers lacks this class, so that a saved folder has to carry it.
    needs_remote_code = False

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["PyramidBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(PyramidStage, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(ReducedAttention, index=1),
    }

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As Transformers', and with the code beside the weights where Transformers lacks the class."""
        vars(self.config).pop("auto_map", None)  # of the folder that the configuration may come from
        if self.needs_remote_code and (carried := self.class_to_carry()) is not None:
            self.config.auto_map = remote_auto_map(carried, family_classes(carried))
            if is_main_process:
                write_remote_code(carried, save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal linear weights, zero biases, unit norms; the pyramid's convolutions as the family's."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, Drawn):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            self.draw_convolution(module)

    def draw_convolution(self, convolution: nn.Conv2d) -> None:
        """As PyTorch, unless a family has a rule of its own."""
        draw_as_pytorch(convolution)


def draw_as_pytorch(layer: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's own initialisation of a layer, which it cannot repeat on parameters that Transformers created empty."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        init.uniform_(layer.bias, -bound, bound)


def check_pixel_values(pixel_values: Tensor, config: PreTrainedConfig) -> None:
    """One sentence for an image batch that the model cannot take.

    Raises:
        ValueError: no tensor, not (B, C, H, W), no image in the batch, another channel count than the configuration's,
            integers, or a side below `config.minimum_image_size` pixels.
    """
    if not isinstance(pixel_values, Tensor):
        raise ValueError(
            f"pixel_values has type {type(pixel_values).__name__}, expected a tensor (batch, channels, height, width); "
            "pass what the image processor returns under that name."
        )
    shape = tuple(pixel_values.shape)
    if len(shape) != 4:
        raise ValueError(f"pixel_values must have shape (batch, channels, height, width), got {shape}.")
    if shape[0] == 0:
        raise ValueError(f"pixel_values holds no image, got {shape}; pass a batch of at least one.")
    if shape[1] != config.num_channels:
        raise ValueError(
            f"pixel_values has {shape[1]} channels, the model expects {config.num_channels}; convert the images, or "
            f"build the model with num_channels={shape[1]}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values has dtype {pixel_values.dtype}, expected floats; let the image processor rescale and "
            "normalise the images."
        )
    minimum = config.minimum_image_size
    if min(shape[2:]) < minimum:
        raise ValueError(
            f"images of {shape[2]}x{shape[3]} pixels are too small, the minimum is {minimum}x{minimum}; resize or pad "
            "them."
        )


class PyramidModel(PyramidPreTrainedModel):
    """The bare pyramid."""

    # Opening a classifier's checkpoint without its head is what a bare model and a backbone are for.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^decode_head\."]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.encoder = self.build_encoder()
        self.post_init()

    def build_encoder(self) -> Pyramid:
        """The pyramid for dense prediction: one map per stage."""
        return Pyramid(self.stage_class(self.config, index) for index in range(self.config.num_encoder_blocks))

    def pool(self, last_hidden_state: Tensor) -> Tensor:
        """The mean of the last stage's map: (B, C, H, W) -> (B, C)."""
        return last_hidden_state.mean((2, 3))

    def get_input_embeddings(self) -> nn.Module:
        """The first convolution, whose output has to require gradients where checkpointing meets frozen weights."""
        return self.get_submodule("encoder.layers.0.patch_embedding.proj")

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode a batch of images: `last_hidden_state`, and `pooler_output`, the vectors (B, C) that classifiers read.

        Args:
            pixel_values: images (B, C, H, W) of 32 x 32 pixels or more, square or not, divisible by 32 or not.
            output_hidden_states: also return the stages' four maps (B, C, H, W), at 1/4, 1/8, 1/16, 1/32 of the size.
            output_attentions: also return the weights (B, heads, N, M) of every block, computed by eager attention.
            return_dict: a tuple instead where `False`.

        Raises:
            ValueError: images that the model cannot take; the message names what was given and what is expected.
        """
        if not torch.compiler.is_compiling():
            check_pixel_values(pixel_values, self.config)
        dtype = next(self.encoder.parameters()).dtype
        pixel_values = pixel_values.to(dtype=dtype, memory_format=torch.channels_last)
        last_hidden_state = self.encoder(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state, self.pool(last_hidden_state))


class PyramidBackbone(BackboneMixin, PyramidModel):
    """The pyramid as a feature extractor inside detectors and segmenters: one map (B, C, H, W) per chosen stage."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """Feature maps of the stages in `out_features` or `out_indices`; arguments and errors as the bare model's."""
        outputs = PyramidModel.forward(self, pixel_values, **kwargs)
        chosen = zip(self.stage_names, outputs.hidden_states, strict=True)
        return BackboneOutput(
            feature_maps=tuple(feature_map for name, feature_map in chosen if name in self.out_features),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PyramidForImageClassification(PyramidPreTrainedModel):
    """The pyramid and a linear classifier."""

    model_class: type[PyramidModel]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        setattr(self, self.base_model_prefix, self.model_class(config))
        dim = config.hidden_sizes[-1]
        self.classifier = nn.Linear(dim, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Class logits (B, num_labels), and the loss where labels are given.

        Args:
            pixel_values: images (B, C, H, W), as for the bare model.
            labels: class indices (B,), multi-hot floats (B, num_labels) or targets (B,), by `config.problem_type`.

        Raises:
            ValueError: images that the model cannot take; the message names what was given and what is expected.
        """
        outputs = self.base_model(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PyramidForSemanticSegmentation(PyramidPreTrainedModel):
    """The pyramid and a Semantic FPN on its four maps."""

    model_class: type[PyramidModel]
    needs_remote_code = True

    # A classifier's checkpoint is where segmentation starts from: its head is dropped, the decoder is fresh.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if self.num_labels < 2:
            raise ValueError(
                f"a segmenter needs at least 2 labels, got num_labels={self.num_labels}; the background is one."
            )
        pyramid = self.model_class(config)
        setattr(self, self.base_model_prefix, pyramid)
        self.decode_head = SemanticFpn(config)
        self.post_init()
        maybe_install_capturing_hooks(pyramid)  # as backbones do: compiled code cannot, at the first forward

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        """Logits (B, num_labels, H/4, W/4), and the loss where label maps are given.

        Args:
            pixel_values: images (B, C, H, W), as for the bare model.
            labels: label maps (B, H, W), integers in [0, num_labels) or `config.semantic_loss_ignore_index`.

        Raises:
            ValueError: images or label maps that the model cannot take; the message names what was given and what is
                expected.
        """
        outputs = self.base_model(pixel_values, **kwargs)
        logits = self.decode_head(outputs.hidden_states)
        loss = None
        if labels is not None:
            config = self.config
            loss = semantic_loss(logits, labels, config.semantic_loss_ignore_index, config.semantic_loss_class_weights)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
