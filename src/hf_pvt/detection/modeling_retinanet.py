"""RetinaNet (arXiv 1708.02002): one stage, and a loss that passes over the many anchors that are easy.

Legend: see the folder's `__init__`; P anchors per place, D the neck's width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..heads.feature_pyramid import ConvolvedNeck
from ..heads.initialized_layers import RARE_AT_FIRST, DrawnConv2d
from .configuration_retinanet import RetinaNetConfig
from .modeling_dense_detector import DenseDetector, Matched
from .parts.anchors import per_anchor
from .parts.assigners import IoUAssigner
from .parts.box_coder import encode
from .parts.loss_terms import LossTerm


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, shared by the levels: one for the labels, one for the boxes (section 4).

    Drawn normal (section 4.1, "Initialization").
    """

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        width, anchors, self.num_labels = config.fpn_hidden_size, config.anchors_per_place, config.num_labels or 0
        draw = partial(init.normal_, std=config.initializer_range)
        convolution = partial(DrawnConv2d, width, kernel_size=3, padding=1, draw=draw)
        self.cls_convs = nn.ModuleList(convolution(out_channels=width) for _ in range(config.num_head_convs))
        self.reg_convs = nn.ModuleList(convolution(out_channels=width) for _ in range(config.num_head_convs))
        self.retina_cls = convolution(out_channels=anchors * self.num_labels, first_bias=RARE_AT_FIRST)
        self.retina_reg = convolution(out_channels=anchors * 4)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels (B, D, H_i, W_i) -> logits (B, A, K) and deltas (B, A, 4), level after level."""
        logits = [per_anchor(self.retina_cls(tower(self.cls_convs, level)), self.num_labels) for level in levels]
        deltas = [per_anchor(self.retina_reg(tower(self.reg_convs, level)), 4) for level in levels]
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


def tower(convs: nn.ModuleList, feature_map: Tensor) -> Tensor:
    """Convolutions with a ReLU after each."""
    for conv in convs:
        feature_map = conv(feature_map).relu_()
    return feature_map


class RetinaNetForObjectDetection(DenseDetector):
    """RetinaNet on any backbone."""

    config: RetinaNetConfig
    config_class = RetinaNetConfig

    def build_neck(self, channels: Sequence[int]) -> ConvolvedNeck:
        return ConvolvedNeck(channels, self.config.fpn_hidden_size, further=len(self.config.strides) - len(channels))

    def build_heads(self) -> None:
        super().build_heads()
        self.bbox_head = RetinaNetHead(self.config)

    def assign(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Every box is learnt by the anchors that fit it best, however little they do."""
        return IoUAssigner(self.config.positive_iou, self.config.negative_iou, least=0.0)(
            torch.cat(list(anchors)), boxes
        )

    def predict(self, levels: list[Tensor]) -> dict[str, Tensor]:
        logits, deltas = self.bbox_head(levels)
        return {"logits": logits, "box_deltas": deltas}

    def losses_of(self, batch: list[Matched]) -> dict[str, LossTerm]:
        """Focal loss of all anchors that are not ignored (section 3.2), L1 of the positive ones' deltas.

        Both are divided by the number of positive anchors in the batch. As published, an image without one counts as
        one; it was hardly meant.
        """
        labels, boxes, count = [], [], 0
        for image in batch:
            positive = image.positive
            labels.append(image.focal_loss(self.config.focal_alpha, self.config.focal_gamma))
            distance = image.predictions["box_deltas"][positive] - encode(image.anchors[positive], image.boxes)
            boxes.append(distance.abs().sum())
            count += max(len(positive), 1)
        return {
            "loss_cls": LossTerm(torch.stack(labels).sum(), count),
            "loss_bbox": LossTerm(torch.stack(boxes).sum(), count),
        }
