"""Segmentation of images that do not fit at once, and of images at several scales.

Legend: B batch, H x W the image, h x w its cells of 4 x 4 pixels, K labels. A segmenter gives one logit per cell.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .heads.semantic_fpn import resize
from .images.image_processing_pvt import most_likely_labels

CELL = 4
# Scales of the papers' multi-scale evaluation, and what the sides of a scaled image are rounded up to.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SIZE_DIVISOR = 32

# Width of the columns in which an image is done: narrower ones run more windows twice, wider ones hold more logits.
WINDOWS_ACROSS = 4

Size = tuple[int, int]


@torch.inference_mode()
def segment(model: PreTrainedModel, image: Tensor) -> Tensor:
    """Label maps (B, H, W) of whole images (B, C, H, W)."""
    height, width = image.shape[-2:]
    return torch.stack([most_likely_labels(logits, (height, width)) for logits in model(image).logits])


@torch.inference_mode()
def segment_sliding(
    model: PreTrainedModel, image: Tensor, window: int | Size = 512, stride: int | Size | None = None
) -> Tensor:
    """Label maps (B, H, W) of images of any size, seen through a window that slides over them.

    Logits are averaged per cell where windows overlap, and upsampled once. (MMSegmentation's "slide" upsamples every
    window first; its sums need 16 times the memory.) The image is done in columns of four windows, from the top: beside
    image and result, memory is that of a window and of the logits of four. Windows on a column's border are run twice.

    Args:
        model: a segmenter.
        image: normalised images (B, C, H, W), from the image processor with `do_resize=False`.
        window: height and width of the window in pixels, or one number for both.
        stride: pixels from one window to the next; two thirds of the window unless given.

    Raises:
        ValueError: a window or stride that is no multiple of 4, a window smaller than the model's minimum, or a stride
            larger than the window.
    """
    window = (window, window) if isinstance(window, int) else window
    if stride is None:
        stride = (2 * window[0] // 3 // CELL * CELL, 2 * window[1] // 3 // CELL * CELL)
    stride = (stride, stride) if isinstance(stride, int) else stride
    check_window(window, stride, model.config.minimum_image_size)
    if image.shape[-2] <= window[0] and image.shape[-1] <= window[1]:
        return segment(model, image)
    label_maps = torch.empty((image.shape[0], *image.shape[-2:]), dtype=torch.int64, device=image.device)
    cells, column = _cells(image.shape[-1]), WINDOWS_ACROSS * window[1] // CELL
    for single, labels in zip(to_whole_cells(image), label_maps, strict=True):
        for left in range(0, cells, column):
            _slide(model, single[None], window, stride, (left, min(left + column, cells)), labels)
    return label_maps


def to_whole_cells(image: Tensor) -> Tensor:
    """Zeros after the last row and column, up to a multiple of 4, so that each cell of the last window has its logit.

    PVT has no patch for 1 to 3 pixels at the end: the window's logits would be stretched. PVTv2 and P2T pad with the
    same zeros themselves.
    """
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % CELL, 0, -height % CELL))


def _slide(
    model: PreTrainedModel, image: Tensor, window: Size, stride: Size, column: tuple[int, int], labels: Tensor
) -> None:
    """Fill a column of cells, (first, last), of the label map (H, W) of one image (1, C, 4h, 4w).

    Bilinear upsampling looks one cell to each side. So the column is computed one cell wider, the last row of every
    strip waits for the next strip, and the row before it stays as context.
    """
    left, right = max(column[0] - 1, 0), min(column[1] + 1, _cells(image.shape[-1]))
    inner = slice(CELL * (column[0] - left), CELL * (column[1] - left))
    labels = labels[:, CELL * column[0] : CELL * column[1]]
    waiting: Tensor | None = None  # (K, 1 or 2, w): context, if any, and the waiting row
    first = done = 0  # rows of cells that are context, rows of pixels that are finished
    for strip, is_last in _strips(model, image, window, stride, (left, right)):
        rows = strip if waiting is None else torch.cat((waiting, strip), dim=1)  # (K, n, w)
        last = rows.shape[1] - (0 if is_last else 1)
        upsampled = most_likely_labels(rows, (CELL * rows.shape[1], CELL * rows.shape[2]))
        finished = upsampled[CELL * first : CELL * last, inner][: labels.shape[0] - done, : labels.shape[1]]
        labels[done : done + len(finished)] = finished
        done += len(finished)
        first = min(last, 1)
        waiting = rows[:, last - first :].clone()


def _strips(
    model: PreTrainedModel, image: Tensor, window: Size, stride: Size, column: tuple[int, int]
) -> Iterator[tuple[Tensor, bool]]:
    """Averaged logits (K, n, w) of a column of cells, strip after strip from the top, and whether one is the last."""
    height, width = image.shape[-2:]
    channels = (model.config.num_labels or 0) + 1  # the last one counts windows
    tops, lefts = (_starts(*lengths) for lengths in zip((height, width), window, stride, strict=True))
    kept: Tensor | None = None  # sums (K + 1, n, w) that the next windows overlap
    for top, next_top in zip(tops, [*tops[1:], None], strict=True):
        sums = image.new_zeros((channels, _cells(min(window[0], height - CELL * top)), column[1] - column[0]))
        if kept is not None:
            sums[:, : kept.shape[1]] = kept
        for left in lefts:
            start, stop = max(left, column[0]), min(left + window[1] // CELL, column[1])
            if start >= stop:
                continue
            crop = image[..., CELL * top : CELL * top + window[0], CELL * left : CELL * left + window[1]]
            logits = model(crop).logits[0]  # (K, n, window's w)
            place = sums[..., start - column[0] : stop - column[0]]
            place[:-1] += logits[..., start - left : stop - left]
            place[-1] += 1
        finished = sums.shape[1] if next_top is None else next_top - top
        kept = sums[:, finished:].clone()
        yield sums[:-1, :finished].div_(sums[-1, :finished]), next_top is None


def _cells(length: int) -> int:
    return -(-length // CELL)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """First cells of the windows along one side; the last window ends where the image does."""
    last = max(_cells(length - window), 0)
    return [*range(0, last, stride // CELL), last]


def check_window(window: Size, stride: Size, minimum: int) -> None:
    for length, step in zip(window, stride, strict=True):
        if length < minimum or length % CELL or step % CELL or not 0 < step <= length:
            raise ValueError(
                f"window {window} and stride {stride} do not fit: both must be multiples of {CELL}, the window at "
                f"least {minimum} pixels, the stride positive and at most the window."
            )


@torch.inference_mode()
def segment_multi_scale(
    model: PreTrainedModel,
    image: Tensor,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    size: Size | None = None,
) -> Tensor:
    """Label maps (B, H, W) from the mean of the probabilities at several scales, each mirrored as well.

    The papers' multi-scale evaluation (0.5 to 1.75). Holds probabilities (B, K, H, W), and the logits of one scale.

    Args:
        model: a segmenter.
        image: normalised images (B, C, H, W).
        scales: factors of the image's sides, which are then rounded up to multiples of 32.
        flip: also mirror the image from left to right.
        size: height and width of the label maps, where the image was scaled before; default: the image's.

    Raises:
        ValueError: no scale, or one that is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive factors of the image's size, got {list(scales)}.")
    height, width = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        scaled = resize(image, [_round_up(scale * side) for side in (height, width)])
        for mirrored in (False, True) if flip else (False,):
            logits = model(scaled.flip(-1) if mirrored else scaled).logits
            probabilities = resize(logits, size or (height, width)).softmax(1)  # (B, K, H, W)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.argmax(1)


def _round_up(length: float) -> int:
    return max(-(-int(length + 0.5) // SIZE_DIVISOR), 1) * SIZE_DIVISOR
