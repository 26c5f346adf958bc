"""The skeleton of a detector: backbone -> neck -> head, written once.

A detector builds its neck and heads, and says what the heads predict of the neck's levels, which losses that gives, and
which detections. Masks of padding are never given to the network, as published: padding is zeros after normalisation.

Legend: see the folder's `__init__`.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..cpu.packing import PackableMixin
from ..heads.feature_pyramid import FeaturePyramid
from ..heads.initialized_layers import Drawn
from ..heads.synchronized_batch_norm import SynchronizedBatchNorm2d
from ..pyramid.input_channels import InputChannelsMixin
from ..pyramid.model_classes import AUTO_CLASSES
from ..pyramid.modeling_pyramid import check_pixel_values
from ..remote_code import RemoteCodeMixin, remote_auto_map, write_remote_code
from .configuration_detector import RAW_OUTPUTS, DetectorConfig, divided
from .parts.ground_truth import GroundTruth, Size, ground_truth, valid_sizes
from .parts.loss_terms import LossTerm, means
from .parts.roi_pooling import at_least_float32
from .parts.suppression import Detections
from .parts.torchvision_ops import require_torchvision, torchvision_ops

NO_LABEL = -1

# What a classifier's configuration has beside that of its backbone.
NOT_OF_A_BACKBONE = ("architectures", "auto_map", "id2label", "label2id", "num_labels", "problem_type")


@dataclass
class DetectorOutput(ModelOutput):
    """What every detector returns.

    loss: the sum of `loss_dict`, whose terms have their published names; where labels are given.
    pred_scores: (B, D), the best first, 0 where there is no detection; D is `config.max_detections`.
    pred_labels: (B, D), -1 where there is no detection.
    pred_boxes: (B, D, 4), centre x, centre y, width and height as shares of the image's size inside its padding.
    pred_masks: (B, D, 28, 28), probabilities of the label's mask inside the box.
    logits, box_deltas, centerness, box_distributions: a dense detector's raw outputs (B, A, K), (B, A, 4), (B, A) and
        (B, A, 4 * distances), side after side; level after level, as far as it has them.

    In training there are no detections.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    pred_scores: Tensor | None = None
    pred_labels: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None
    logits: Tensor | None = None
    box_deltas: Tensor | None = None
    centerness: Tensor | None = None
    box_distributions: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


# By name: of a folder's own code Transformers may load configurations and models as two copies.
OUR_BACKBONES = {config_class.model_type: classes[AutoBackbone] for config_class, classes in AUTO_CLASSES.items()}


def backbone_class(config: Any) -> Any:
    """Ours, whether it is registered or not; else Transformers'."""
    if config.model_type in OUR_BACKBONES:
        return OUR_BACKBONES[config.model_type]
    if type(config) not in AutoBackbone._model_mapping:
        raise ValueError(
            f"`backbone_config` is a {type(config).__name__}, for which Transformers has no backbone; choose another."
        )
    return AutoBackbone._model_mapping[type(config)]


class Detector(RemoteCodeMixin, PackableMixin, InputChannelsMixin, PreTrainedModel):
    """Backbone -> neck -> head. See `DetectorOutput`."""

    config: DetectorConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    # The losses count what is in their own batch: the Trainer has to average them over accumulated ones.
    accepts_loss_kwargs = False
    # Those that open a saved detector.
    auto_classes: ClassVar[tuple[str, ...]] = ("AutoModelForObjectDetection",)
    _no_split_modules = ["PyramidBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DetectorConfig) -> None:
        require_torchvision(type(self).__name__)
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        if self.num_labels < 1:
            raise ValueError("a detector needs at least 1 label, got num_labels=0; the background is none.")
        backbone = config.backbone_config
        # In the type of neck and heads, whatever its own weights had when they were saved.
        self.backbone = backbone_class(backbone)._from_config(backbone, dtype=torch.get_default_dtype())
        self.neck = self.build_neck(self.backbone.channels)
        self.build_heads()
        self.post_init()

    @classmethod
    def from_backbone(
        cls, name_or_path: str | os.PathLike[str], config: DetectorConfig | None = None, **fields: Any
    ) -> Self:
        """A detector with fresh heads on the weights of a classifier, bare model or backbone.

        Args:
            name_or_path: a folder or an id of the Hub.
            config: the detector's configuration, whose `backbone_config` is replaced.
            fields: of the detector's configuration, such as `num_labels=3` or `id2label`, or, where only that has them,
                of the backbone's, such as `drop_path_rate=0.1`.

        Raises:
            ValueError: a file, or weights that lack some of the backbone's.
        """
        if os.path.isfile(name_or_path):
            raise ValueError(
                f"{name_or_path} is a file, expected a folder or an id of the Hub; open a published checkpoint with "
                "hf_pvt.load_original, and save it with save_pretrained."
            )
        theirs = AutoConfig.from_pretrained(name_or_path)
        config_class: Any = cls.config_class
        own, of_backbone = divided(fields, config_class, type(theirs))
        settings: dict[str, Any] = {} if config is None else config.to_dict()
        pyramid = {name: value for name, value in theirs.to_diff_dict().items() if name not in NOT_OF_A_BACKBONE}
        settings["backbone_config"] = pyramid | of_backbone
        model: Self = cls(config_class.from_dict(settings | own))
        chosen: Any = copy.deepcopy(model.config.backbone_config)
        pretrained, report = type(model.backbone).from_pretrained(name_or_path, config=chosen, output_loading_info=True)
        if chosen.model_type in OUR_BACKBONES and report["missing_keys"]:  # Swin's has norms that no classifier has
            missing = ", ".join(sorted(report["missing_keys"])[:4])
            raise ValueError(f"{name_or_path} cannot start a {cls.__name__}: it has no {missing}.")
        model.backbone.load_state_dict(pretrained.state_dict())
        return model

    def build_neck(self, channels: Sequence[int]) -> FeaturePyramid:
        """The neck on maps of so many channels, the finest first."""
        raise NotImplementedError

    def build_heads(self) -> None:
        raise NotImplementedError

    def predict(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """What the heads that see every place say of the levels (B, D, H_i, W_i)."""
        raise NotImplementedError

    def predict_inside(self, levels: list[Tensor], sizes: list[Size]) -> dict[str, Tensor]:
        """What heads say that look at places inside the images, for the loss and for the detections."""
        return {}

    def losses(
        self, levels: list[Tensor], predictions: dict[str, Tensor], objects: list[GroundTruth], sizes: list[Size]
    ) -> dict[str, LossTerm]:
        """The terms of the loss, under their published names."""
        raise NotImplementedError

    def detect(
        self, levels: list[Tensor], predictions: dict[str, Tensor], sizes: list[Size]
    ) -> tuple[list[Detections], Tensor | None]:
        """The detections of each image and, image after image, their masks' probabilities (detections, 28, 28)."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> DetectorOutput:
        """Detections of a batch of images, and the loss where labels are given, in evaluation mode as well.

        Args:
            pixel_values: images (B, C, H, W), normalised and padded with zeros, as the image processor makes them.
            pixel_mask: (B, H, W), 1 on an image and 0 on the padding right of it and below; by default 1.
            labels: for each image a dict of class_labels (n,), boxes (n, 4): centre x, centre y, width and height as
                shares of the image's size inside its padding, and, for a detector with masks, masks (n, H, W).
            output_hidden_states, output_attentions: also return the backbone's.
            return_dict: a tuple instead where `False`.

        Raises:
            ValueError: images, masks or labels that the model cannot take; the message names what was given and what
                is expected.
        """
        levels, predictions, features = self.encode(pixel_values, **kwargs)
        if torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting():  # of PyTorch 2.8 both are true
            return self.complete(levels, predictions, features, pixel_values, pixel_mask, labels)
        # What follows the network depends on values; a file can hold the raw outputs.
        if "logits" not in predictions:
            raise NotImplementedError(
                f"{type(self).__name__} cannot be exported: a later stage depends on the boxes of the one before."
            )
        raw: dict[str, Any] = {name: predictions.get(name) for name in RAW_OUTPUTS}
        return DetectorOutput(**raw)

    def encode(self, pixel_values: Tensor, **kwargs: Any) -> tuple[list[Tensor], dict[str, Tensor], Any]:
        """The neck's levels, the dense predictions, and the backbone's output: one graph for a compiler."""
        if not torch.compiler.is_compiling():
            check_pixel_values(pixel_values, self.config)
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.config, name)
        features = self.backbone(pixel_values.to(self.dtype), **{key: value for key, value in kwargs.items() if value})
        levels = self.neck(features.feature_maps)
        return levels, self.predict(levels), features

    @torch.compiler.disable
    def complete(
        self,
        levels: list[Tensor],
        predictions: dict[str, Tensor],
        features: Any,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        labels: Sequence[Mapping[str, Any]] | None,
    ) -> DetectorOutput:
        """With loss and detections, whose shapes depend on values; boxes and losses are computed in float32."""
        sizes = valid_sizes(pixel_values, pixel_mask)
        found: dict[str, Any] = {name: predictions.get(name) for name in RAW_OUTPUTS}
        found |= {"hidden_states": features.hidden_states, "attentions": features.attentions}
        predictions = {name: at_least_float32(prediction) for name, prediction in predictions.items()}
        predictions |= self.predict_inside(levels, sizes)
        if labels is not None:
            objects = ground_truth(labels, pixel_values, sizes, self.num_labels, self.has_masks)
            terms = self.losses(levels, predictions, objects, sizes)
            found["loss_dict"] = means(terms, over_processes=self.training)
            found["loss"] = torch.stack(list(found["loss_dict"].values())).sum()
        if not self.training:
            with torch.no_grad():
                found |= self.packed(*self.detect(levels, predictions, sizes), sizes)
        return DetectorOutput(**found)

    @property
    def has_masks(self) -> bool:
        return False

    def packed(self, detections: list[Detections], masks: Tensor | None, sizes: list[Size]) -> dict[str, Tensor | None]:
        """Detections of each image as tensors of one length."""
        shape = (len(detections), self.config.max_detections)
        scores = detections[0].boxes.new_zeros(shape)
        labels = torch.full_like(scores, NO_LABEL, dtype=torch.int64)
        boxes = scores.new_zeros((*shape, 4))
        for index, (found, (height, width)) in enumerate(zip(detections, sizes, strict=True)):
            count = len(found.scores)
            scores[index, :count], labels[index, :count] = found.scores, found.labels
            shares = found.boxes / found.boxes.new_tensor((width, height, width, height))
            boxes[index, :count] = torchvision_ops.box_convert(shares, "xyxy", "cxcywh")
        pred_masks = None
        if masks is not None:
            pred_masks = masks.new_zeros((*shape, *masks.shape[1:]))
            pred_masks[labels != NO_LABEL] = masks
        return {"pred_scores": scores, "pred_labels": labels, "pred_boxes": boxes, "pred_masks": pred_masks}

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As Transformers', and with the code beside the weights, because Transformers has no such detector."""
        vars(self.config).pop("auto_map", None)  # of the folder that the configuration may come from
        if (carried := self.class_to_carry()) is not None:
            self.config.auto_map = remote_auto_map(carried, dict.fromkeys(self.auto_classes, carried.__name__))
            if is_main_process:
                write_remote_code(carried, save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Neck and heads draw themselves; the backbone draws its own."""
        if isinstance(module, Drawn):
            module.reset_parameters()
        elif isinstance(module, SynchronizedBatchNorm2d):
            super()._init_weights(module)
