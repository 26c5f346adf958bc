"""The mask head (Mask R-CNN, arXiv 1703.06870, section 3): the outline of each label inside a box.

Legend: see the folder's `__init__`; here n boxes of all images, C channels, S the side of a pooled map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...heads.initialized_layers import DrawnConv2d, DrawnConvTranspose2d, KaimingConv2d, kaiming
from .loss_terms import LossTerm
from .torchvision_ops import torchvision_ops


class MaskHead(nn.Module):
    """3x3 convolutions, doubling, and a 1x1 convolution to one map for each label.

    Args:
        draws: how the last two layers are drawn at first, if not as the others.
    """

    def __init__(self, config: Any, **draws: Any) -> None:
        super().__init__()
        width = config.fpn_hidden_size
        self.convs = nn.ModuleList(KaimingConv2d(width, width, 3, padding=1) for _ in range(config.num_mask_convs))
        draws = {"draw": kaiming} | draws
        self.upsample = DrawnConvTranspose2d(width, width, kernel_size=2, stride=2, **draws)
        self.conv_logits = DrawnConv2d(width, config.num_labels or 0, kernel_size=1, **draws)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled maps (n, C, S, S) -> the logits (n, 2S, 2S) of each box's label (n,)."""
        hidden = pooled.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            hidden = conv(hidden).relu_()
        logits = self.conv_logits(self.upsample(hidden).relu_())  # (n, K, 2S, 2S)
        return logits[torch.arange(len(labels), device=labels.device), labels]


def mask_loss(logits: Tensor, targets: Tensor) -> LossTerm:
    """Cross-entropy of logits (n, T, T)."""
    return LossTerm(F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), logits.numel())


def mask_targets(boxes: Tensor, masks: Tensor | None, learnt: Tensor, side: int) -> Tensor:
    """What of its object's mask lies in each box (n, 4), at `side` x `side`, 0 or 1: (n, side, side).

    Args:
        masks: (m, H, W).
        learnt: the index (n,) of each box's object.
    """
    assert masks is not None
    if not len(boxes):
        return boxes.new_zeros((0, side, side))
    objects, learnt = learnt.unique(return_inverse=True)  # of many masks only those in the sample become floats
    rois = torch.cat((learnt[:, None].to(boxes.dtype), boxes), dim=1)  # (n, 5)
    cut = torchvision_ops.roi_align(masks[objects, None].to(boxes.dtype), rois, side, sampling_ratio=0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes.dtype)
