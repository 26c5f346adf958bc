"""A detection's mask, a few probabilities inside its box, as pixels of the image (H, W).

One mask at a time, only in a window around its box and some rows at a time, so that the masks of a large photograph
need little memory beyond what is kept of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Probabilities that are held at once (16 MiB of float32).
PIXELS_AT_ONCE = 2**22

Window = tuple[slice, slice]  # rows and columns of the image


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """All masks (N, H, W) bool. Arguments as those of `pasted_windows`."""
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for mask, (window, pixels) in zip(pasted, pasted_windows(masks, boxes, size, threshold), strict=True):
        mask[window] = pixels
    return pasted


def pasted_windows(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[Window, Tensor]]:
    """Each mask's window of the image, and its pixels there (bool); outside it has none.

    A pixel belongs to the mask where the probability at its centre, interpolated bilinearly between the cells and zeros
    around them, is at least `threshold`. Published as `grid_sample` at each pixel; in a box with upright sides that is
    a product of two small matrices.

    Args:
        masks: probabilities (N, h, w), whose cells fill the box.
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the image; parts outside it are cut off.
        size: height and width of the image.
    """
    for mask, box in zip(masks.float(), boxes.float(), strict=True):
        x1, y1, x2, y2 = box.tolist()
        rows, columns = _grown(y1, y2, size[0]), _grown(x1, x2, size[1])
        yield (rows, columns), _pixels(mask, box, rows, columns, threshold)


def _grown(low: float, high: float, end: int) -> slice:
    """The box's whole pixels and one more at each side, inside the image: bilinear interpolation reaches no further."""
    first, last = int(low // 1) - 1, -int(-high // 1) + 1
    return slice(min(max(first, 0), end), min(max(last, 0), end))


def _pixels(mask: Tensor, box: Tensor, rows: slice, columns: slice, threshold: float) -> Tensor:
    x1, y1, x2, y2 = box
    across = _weights(columns, x1, x2, mask.shape[1])  # (columns, w)
    pixels = torch.empty(rows.stop - rows.start, len(across), dtype=torch.bool, device=mask.device)
    at_once = max(1, PIXELS_AT_ONCE // max(1, len(across)))
    for first in range(rows.start, rows.stop, at_once):
        some = slice(first, min(first + at_once, rows.stop))
        probabilities = _weights(some, y1, y2, mask.shape[0]) @ mask @ across.T  # (rows, columns)
        pixels[some.start - rows.start : some.stop - rows.start] = probabilities >= threshold
    return pixels


def _weights(pixels: slice, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """How much of each cell's probability goes to each pixel (pixels, cells) along one axis of a box."""
    centres = torch.arange(pixels.start, pixels.stop, device=low.device) + 0.5
    position = (centres - low) / (high - low) * cells - 0.5  # in cells, 0 at the first one's centre
    # As published: what a box without extent has nowhere is in its middle.
    position = torch.where(position.isfinite(), position, (cells - 1) / 2)
    distance = (position[:, None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0)
