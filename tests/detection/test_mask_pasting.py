"""Masks pasted into images: the published formula at each pixel. Memory: tests/machine."""

import numpy as np
import pytest
import torch
from paths import FIXTURES
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from hf_pvt.detection.parts import mask_pasting
from hf_pvt.detection.parts.mask_pasting import paste_masks

SIZE = (61, 83)


def published(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, H, W) as MMDetection defines them, in float64 and at every pixel of the image."""
    x1, y1, x2, y2 = boxes.double()[:, :, None].unbind(1)
    v = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1  # (N, H)
    u = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1  # (N, W)
    grid = torch.stack([u[:, None].expand(-1, size[0], -1), v[:, :, None].expand(-1, -1, size[1])], dim=3)
    return F.grid_sample(masks[:, None].double(), grid, align_corners=False)[:, 0]


def random_masks(count: int, cells: tuple[int, int] = (28, 28)) -> Tensor:
    """Smooth probabilities, with a part of each value."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 4
    return F.interpolate(noise, cells, mode="bicubic")[:, 0].sigmoid()


BOXES = {
    "inside": [10.3, 7.8, 55.1, 41.2],
    "below one pixel": [20.2, 30.4, 20.6, 30.9],
    "one pixel": [20.0, 30.0, 21.0, 31.0],
    "the image": [0.0, 0.0, 83.0, 61.0],
    "over the border": [-12.5, -7.1, 30.0, 20.5],
    "over the other border": [70.2, 50.1, 99.9, 75.0],
    "outside": [90.0, 70.0, 120.0, 95.0],
    "far outside": [-500.0, -400.0, -450.0, -390.0],
    "thin": [5.2, 0.0, 6.25, 61.0],
    "larger than the image": [-200.0, -100.0, 300.0, 200.0],
}


@pytest.mark.parametrize(
    ("name", "cells", "pixels_at_once"),
    [
        *((name, (14, 28), 2**22) for name in BOXES),  # all rows at once
        *((name, (28, 28), 500) for name in ("the image", "over the border", "larger than the image")),
        *((name, (28, 28), 1) for name in ("inside", "over the other border", "thin")),
    ],
    ids=str,
)
def test_published_formula(
    name: str, cells: tuple[int, int], pixels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows at once; a probability within rounding of the threshold may fall either way."""
    monkeypatch.setattr(mask_pasting, "PIXELS_AT_ONCE", pixels_at_once)
    masks, boxes = random_masks(5, cells), torch.tensor([BOXES[name]]).expand(5, 4)
    expected = published(masks, boxes, SIZE)
    for threshold in (0.5, 0.2, 1e-3):
        differs = paste_masks(masks, boxes, SIZE, threshold) != (expected >= threshold)
        assert ((expected[differs] - threshold).abs() < 1e-5).all()
    if "outside" not in name and "below" not in name:
        assert 0 < (expected >= 0.5).double().mean() < 1


def test_windows_cover_what_is_set() -> None:
    """Of many boxes at once, each with its own mask; a mask of ones is the box and what it covers in part."""
    boxes = torch.tensor(list(BOXES.values()))
    windows = list(mask_pasting.pasted_windows(torch.ones(len(boxes), 28, 28), boxes, SIZE))
    for (name, box), ((rows, columns), pixels) in zip(BOXES.items(), windows, strict=True):
        assert pixels.shape == (rows.stop - rows.start, columns.stop - columns.start)
        assert 0 <= rows.start <= rows.stop <= SIZE[0] and 0 <= columns.start <= columns.stop <= SIZE[1], name
        assert rows.stop - rows.start <= box[3] - box[1] + 4 and columns.stop - columns.start <= box[2] - box[0] + 4
    assert windows[2][1].int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert int((~windows[3][1]).sum()) == 4, "all but the corners"


def test_box_without_extent() -> None:
    """As published, the middle of the mask is everywhere in its window; nothing is NaN."""
    box = torch.tensor([[20.25, 10.0, 20.25, 30.0]])
    ((rows, columns), pixels) = next(mask_pasting.pasted_windows(torch.ones(1, 28, 28), box, SIZE))
    assert (rows, columns) == (slice(9, 31), slice(19, 22))
    assert pixels[1:-1].all() and not pixels[[0, -1]].any()


def test_no_masks_and_half_precision() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)
    masks, boxes = random_masks(3).half(), torch.tensor([BOXES["inside"]]).expand(3, 4)
    assert paste_masks(masks, boxes, SIZE).equal(paste_masks(masks.float(), boxes, SIZE))


RECORDED = load_file(FIXTURES / "detection" / "masks.safetensors")


@pytest.mark.parametrize("image", sorted({key.rpartition("/masks/")[0] for key in RECORDED if "/masks/" in key}))
def test_masks_of_mmdetection(image: str) -> None:
    """Its own area and box of each mask, and each eighth pixel; single pixels may differ, a half within rounding."""
    logits, boxes, size = (RECORDED[f"{image}/{name}"] for name in ("mask_logits_of_label", "detections/boxes", "size"))
    area, box, every8 = (RECORDED[f"{image}/masks/{name}"] for name in ("area", "box", "every8"))
    pasted = paste_masks(logits.sigmoid(), boxes, tuple(size.tolist())).numpy()
    assert np.abs(pasted.sum(axis=(1, 2)) - area.numpy()).sum() <= 5 < area.sum() / 1000
    some = pasted[:, 4::8, 4::8].reshape(len(pasted), -1)
    assert (np.unpackbits(every8.numpy(), axis=1)[:, : some.shape[1]] != some).sum() <= 5
    for mask, (left, top, right, bottom) in zip(pasted, box.tolist(), strict=True):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == [left, top, right, bottom]
