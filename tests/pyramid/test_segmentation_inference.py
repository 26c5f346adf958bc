"""Sliding windows and several scales."""

import pytest
import torch
from families import FAMILIES, PVT_V2, Family, perturb
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

import hf_pvt
from hf_pvt import segmentation_inference


def segmenter(family: Family) -> PreTrainedModel:
    torch.manual_seed(0)
    model = family.segmenter(family.tiny_config(num_labels=5)).eval()
    perturb(model)
    nn.init.normal_(model.decode_head.classifier.weight)  # or one label would win everywhere
    return model


def images(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def whole(model: PreTrainedModel, image: Tensor) -> Tensor:
    with torch.no_grad():
        return F.interpolate(model(image).logits, image.shape[-2:], mode="bilinear").argmax(1)


class Pointwise(nn.Module):
    """Logits that depend on their cell alone: any window sees the same."""

    config = hf_pvt.PvtV2Config(num_labels=37)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []
        self.weight = torch.randn(37, 3, 1, 1, generator=torch.Generator().manual_seed(2))

    def forward(self, image: Tensor) -> SemanticSegmenterOutput:
        self.calls.append(tuple(image.shape))
        return SemanticSegmenterOutput(logits=F.conv2d(image[..., ::4, ::4], self.weight))


@pytest.mark.parametrize(("family", "size"), list(zip(FAMILIES, [(61, 50), (64, 96), (61, 50)], strict=True)), ids=str)
def test_one_window_is_the_whole_image(family: Family, size: tuple[int, int]) -> None:
    model, image = segmenter(family), images(*size, batch=2)
    labels = hf_pvt.segment_sliding(model, image, window=96, stride=64)
    assert labels.equal(whole(model, image))
    assert labels.unique().numel() > 1


SIZES = [(128, 128), (200, 64), (64, 200), (131, 157), (300, 66)]
WINDOWS = [(64, 64), (64, 40), ((96, 64), (32, 64)), (64, 4)]
ACROSS = [1, 2, 4]


# Each size with each width of the columns; windows take turns, so that each of them meets each width too.
@pytest.mark.parametrize(
    ("size", "windows_across", "window", "stride"),
    [
        (size, across, *WINDOWS[(row + column) % 4])
        for row, size in enumerate(SIZES)
        for column, across in enumerate(ACROSS)
    ],
    ids=str,
)
def test_seams_do_not_show(
    size: tuple[int, int],
    windows_across: int,
    window: int | tuple[int, int],
    stride: int | tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where all windows agree the result is that of the whole image, also at sizes that 4 does not divide."""
    monkeypatch.setattr(segmentation_inference, "WINDOWS_ACROSS", windows_across)
    model, image = Pointwise(), images(*size)
    cells = [4 * -(-side // 4) for side in size]
    logits = F.interpolate(model(image).logits, cells, mode="bilinear")
    expected = logits.argmax(1)[:, : size[0], : size[1]]
    model.calls.clear()
    labels = hf_pvt.segment_sliding(model, image, window, stride)
    assert labels.shape == expected.shape
    assert (labels == expected).float().mean() > 0.999  # sums round differently where two labels tie
    height, width = (window, window) if isinstance(window, int) else window
    assert max(shape[2] for shape in model.calls) <= height
    assert max(shape[3] for shape in model.calls) <= width


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_windows_at_the_end_see_whole_cells(family: Family) -> None:
    """Where the image cuts the last window by 1 to 3 pixels, zeros replace them; nothing is stretched."""
    model = segmenter(family)
    for height, width in ((95, 130), (129, 63)):
        image = images(height, width)
        padded = F.pad(image, (0, -width % 4, 0, -height % 4))
        labels = hf_pvt.segment_sliding(model, image, window=64, stride=32)
        assert labels.equal(hf_pvt.segment_sliding(model, padded, window=64, stride=32)[:, :height, :width])
        assert labels.unique().numel() > 1


def test_the_smallest_window() -> None:
    """32 pixels, whatever the image leaves of the last window."""
    for sides in ((64, 72), (32, 61), (33, 33)):
        assert hf_pvt.segment_sliding(segmenter(PVT_V2), images(*sides), window=32).shape == (1, *sides)


@pytest.mark.parametrize("windows_across", [1, 4])
def test_overlaps_are_averaged(windows_across: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every window's logits summed on the full grid, in float64."""
    monkeypatch.setattr(segmentation_inference, "WINDOWS_ACROSS", windows_across)
    model, image = segmenter(PVT_V2).double(), images(96, 160).double()
    sums, counts = torch.zeros(1, 5, 24, 40).double(), torch.zeros(24, 40)
    with torch.no_grad():
        for top in (0, 32):
            for left in (0, 48, 96):
                y, x = top // 4, left // 4
                sums[..., y : y + 16, x : x + 16] += model(image[..., top : top + 64, left : left + 64]).logits
                counts[y : y + 16, x : x + 16] += 1
    assert counts.unique().tolist() == [1, 2, 4]
    expected = F.interpolate(sums / counts, (96, 160), mode="bilinear").argmax(1)
    assert hf_pvt.segment_sliding(model, image, 64, (32, 48)).equal(expected)
    assert not hf_pvt.segment_sliding(model, image, 64, 64).equal(expected)


@pytest.mark.parametrize(
    ("window", "stride"), [(66, 32), (64, 30), (64, 68), (64, 0), (28, 28), ((64, 28), (32, 28))], ids=str
)
def test_bad_windows(window: int | tuple[int, int], stride: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 4, the window at least 32 pixels, the stride positive"):
        hf_pvt.segment_sliding(segmenter(PVT_V2), images(128, 128), window, stride)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_scales_and_mirror_images(family: Family) -> None:
    """The mean of the probabilities, written out; mirrored images alone give the mirrored result."""
    model, image = segmenter(family), images(64, 90)
    total = torch.zeros(1, 5, 64, 90)
    with torch.no_grad():
        for size in ((32, 64), (64, 96), (128, 160)):
            scaled = F.interpolate(image, size, mode="bilinear")
            for view in (lambda x: x, lambda x: x.flip(-1)):
                logits = F.interpolate(model(view(scaled)).logits, (64, 90), mode="bilinear")
                total += view(logits.softmax(1))
    labels = hf_pvt.segment_multi_scale(model, image, scales=(0.5, 1.0, 1.75))
    assert labels.equal(total.argmax(1))
    mirrored = hf_pvt.segment_multi_scale(model, image.flip(-1), scales=(0.5, 1.0, 1.75)).flip(-1)
    assert (mirrored == labels).float().mean() > 0.999  # sums round differently where two labels tie
    same_size = images(64, 96)
    assert hf_pvt.segment_multi_scale(model, same_size, scales=(1.0,), flip=False).equal(whole(model, same_size))


def test_scales_of_an_image_that_was_scaled() -> None:
    """Probabilities are averaged at the size of the label maps, not at that of the scaled image."""
    model, image = segmenter(PVT_V2), images(64, 96)
    total = torch.zeros(1, 5, 100, 151)
    with torch.no_grad():
        for size in ((32, 64), (64, 96)):
            logits = model(F.interpolate(image, size, mode="bilinear")).logits
            total += F.interpolate(logits, (100, 151), mode="bilinear").softmax(1)
    labels = hf_pvt.segment_multi_scale(model, image, scales=(0.5, 1.0), flip=False, size=(100, 151))
    assert labels.equal(total.argmax(1))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0)], ids=str)
def test_bad_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales must be positive"):
        hf_pvt.segment_multi_scale(segmenter(PVT_V2), images(64, 64), scales)
