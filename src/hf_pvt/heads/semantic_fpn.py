"""Semantic FPN (arXiv 1901.02446, section 3), as the papers evaluate their pyramids on ADE20K: four maps become logits.

Legend: see `layers`. Level i is the map of stage i, at 1/4, 1/8, 1/16 and 1/32 of the image's size; D is the neck's
width, F the head's, K the number of labels.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init

from .feature_pyramid import FeaturePyramid
from .initialized_layers import DrawnConv2d
from .synchronized_batch_norm import ConvNormReLU

# As MMSegmentation draws its heads.
NormalConv2d = partial(DrawnConv2d, draw=partial(init.normal_, std=0.01))


class SemanticFpn(FeaturePyramid):
    """Feature pyramid network, then one head per level, summed: maps (B, C_i, H_i, W_i) become logits (B, K, H_0, W_0).

    Neck and head are two modules in MMSegmentation; here they are one, all of it under `decode_head`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        width, dim = config.fpn_hidden_size, config.decoder_hidden_size
        super().__init__(config.hidden_sizes, width)
        self.scale_heads = nn.ModuleList(
            ScaleHead(width, dim, doublings=level) for level in range(len(config.hidden_sizes))
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # of whole channels
        self.classifier = NormalConv2d(dim, config.num_labels or 0, kernel_size=1)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        size = feature_maps[0].shape[-2:]
        summed = None
        for level, head in zip(super().forward(feature_maps), self.scale_heads, strict=True):
            scaled = resize(head(level), size)  # (B, F, H_0, W_0)
            summed = scaled if summed is None else summed + scaled
        return self.classifier(self.dropout(summed))  # (B, K, H_0, W_0)


class ScaleHead(nn.Sequential):
    """[3x3 convolution, batch norm, ReLU, bilinear doubling] per level above 0: (B, D, H, W) -> (B, F, 2^n H, 2^n W).

    Level 0 itself is convolved once and not doubled.
    """

    def __init__(self, width: int, dim: int, doublings: int) -> None:
        layers: list[nn.Module] = [ConvNormReLU(width, dim)]
        for doubling in range(doublings):
            if doubling > 0:
                layers.append(ConvNormReLU(dim, dim))
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        super().__init__(*layers)


def resize(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, H, W) -> (B, C, *size); the map itself where it has that size."""
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and feature_map.shape[-2:] == tuple(size):
        return feature_map  # compiled and exported code, where the comparison would pin the size, resizes always
    return F.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)


def semantic_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean cross-entropy of logits (B, K, h, w), resized bilinearly to the label maps (B, H, W), over labelled pixels.

    MMSegmentation divides by all pixels, ignored ones too. A batch without a labelled pixel gives 0, not NaN.

    Raises:
        ValueError: label maps of another shape or type, or with a label that is neither in [0, K) nor `ignore_index`.
    """
    check_labels(logits, labels, ignore_index)
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    labels = labels.long()
    scores = resize(logits, labels.shape[-2:])  # (B, K, H, W)
    loss = F.cross_entropy(scores, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    labelled = labels != ignore_index
    total = labelled.sum() if weight is None else weight[labels[labelled]].sum()
    return loss / torch.where(total > 0, total, 1)


def check_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    """One sentence for label maps that do not fit, before a kernel fails without one."""
    batch, classes = logits.shape[:2]
    if labels.dim() != 3 or labels.shape[0] != batch:
        raise ValueError(
            f"labels must be one label map (H, W) per image, of shape ({batch}, H, W), got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels has dtype {labels.dtype}, expected integers: the index of each pixel's label.")
    if torch.compiler.is_compiling():
        return  # looking at values would break the graph
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels holds {sorted(wrong.unique().tolist())[:8]}, expected 0 to {classes - 1} or the ignored "
            f"{ignore_index}; check num_labels, and do_reduce_labels of the image processor."
        )
