"""Features of boxes, each from the level that fits its size (FPN, arXiv 1612.03144, equation 1).

Legend: see the folder's `__init__`; C channels, S the side of a pooled map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .torchvision_ops import torchvision_ops

# A box of this side in pixels is on the border of the first and the second level.
FINEST_SIDE = 56

EVERY_CELL = 0

# The level of boxes whose area is negative or no number, which learned boxes may come to.
NOWHERE = -1


def at_least_float32(values: Tensor) -> Tensor:
    """Boxes, scores and losses are computed in float32, whatever the network's dtype or autocast."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def levels_of(boxes: Tensor, levels: int) -> Tensor:
    """The level (n,) of each box (n, 4): one coarser wherever the side doubles; `NOWHERE` where that is no number."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    # The epsilon is inside the logarithm, other than in torchvision.
    level = (side / FINEST_SIDE + 1e-6).log2().floor().clamp(0, levels - 1)
    return level.masked_fill(~side.isfinite(), NOWHERE).to(torch.int64)


def pool_boxes(
    feature_maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Sequence[Tensor],
    side: int,
    sampling_ratio: int = EVERY_CELL,
) -> Tensor:
    """RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3), aligned.

    Args:
        feature_maps: (B, C, H, W) of each level.
        boxes: (n, 4) of each image.
        sampling_ratio: samples in a bin along each of its sides; by default as many as it has cells.

    Returns:
        (boxes of all images, C, S, S), image after image, in float32 (or float64); zeros where a box has no level.
    """
    together = torch.cat(list(boxes))
    image = torch.cat([some.new_full((len(some), 1), index) for index, some in enumerate(boxes)])
    feature_maps = [at_least_float32(feature_map) for feature_map in feature_maps]
    rois = torch.cat((image, together), dim=1).to(feature_maps[0].dtype)  # (n, 5)
    level = levels_of(together, len(feature_maps))
    pooled = rois.new_zeros(len(rois), feature_maps[0].shape[1], side, side)
    # A level without boxes takes part all the same: every process has a gradient for every parameter.
    for index, (feature_map, stride) in enumerate(zip(feature_maps, strides, strict=True)):
        some = (level == index).nonzero().flatten()
        pooled[some] = torchvision_ops.roi_align(
            feature_map, rois[some], side, 1 / stride, sampling_ratio, aligned=True
        )
    return pooled
