"""What one token attends to: the values of `output_attentions`, and where they are drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from families import MASK_RCNN, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb, tiny_detector
from PIL import Image
from torch import Tensor
from transformers import UperNetConfig, UperNetForSemanticSegmentation

import hf_pvt
from hf_pvt.drawing.attention import HEAT, HEAT_ALPHA, _heading, _overlay, draw_attention
from hf_pvt.drawing.attention_maps import AttentionMap, attention_maps
from hf_pvt.drawing.whole_image import pyramid_of, whole_image

HEIGHT, WIDTH = 101, 150  # no stage divides both


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8))


def tiny(family: Family, kind: str = "segmenter", **fields: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(family, kind)(family.tiny_config(**fields)).eval()
    perturb(model, 0.2)
    return model


def row_of_all(model: Any, pixel_values: Tensor, place: tuple[float, float], stage: int, block: int) -> Tensor:
    """The token's row (heads, M) of what Transformers' `output_attentions` gives."""
    with torch.no_grad():
        outputs = pyramid_of(model)(pixel_values, output_attentions=True, output_hidden_states=True)
    height, width = outputs.hidden_states[stage].shape[-2:]
    weights = outputs.attentions[sum(model.config.depths[:stage]) + block][0]  # (heads, N, M)
    column, row = int(place[0] * width), int(place[1] * height)
    return weights[:, weights.shape[1] - height * width + row * width + column]


def flat(maps: list[AttentionMap]) -> Tensor:
    return torch.cat([level.weights.flatten() for level in maps])


# Where PVT classifies it has a class token; otherwise what stands on a pyramid does not matter.
@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PVT, "classifier"),
        (PVT, "segmenter"),
        (PVT_V2, "backbone"),
        (PVT_V2_LINEAR, "classifier"),
        (P2T, "segmenter"),
    ],
    ids=str,
)
def test_weights(row: Family, kind: str) -> None:
    """Every stage: the rows of `output_attentions`, of the mean and of a head, at the corners and inside."""
    model = tiny(row, kind)
    pixel_values = torch.randn(1, 3, HEIGHT, WIDTH)
    for stage, block, place in ((0, 0, (0.0, 0.0)), (1, 0, (0.99, 0.99)), (2, 1, (0.3, 0.8)), (3, 0, (0.6, 0.2))):
        expected = row_of_all(model, pixel_values, place, stage, block)
        class_token = int(row is PVT and kind == "classifier" and stage == 3)
        for head, weights in ((None, expected.mean(0)), (-1, expected[-1])):
            found = flat(attention_maps(pyramid_of(model), pixel_values, place, stage, block, head))
            torch.testing.assert_close(found, weights[class_token:], atol=1e-6, rtol=1e-5)
        assert weights.std() > 0, "not all alike"


def test_the_last_stage_and_block_are_the_default() -> None:
    model, pixel_values = tiny(PVT_V2, depths=(1, 1, 1, 2)), torch.randn(1, 3, 64, 96)
    expected = row_of_all(model, pixel_values, (0.5, 0.5), 3, 1).mean(0)
    torch.testing.assert_close(flat(attention_maps(pyramid_of(model), pixel_values, (0.5, 0.5))), expected)


def test_pooling_levels_of_p2t() -> None:
    """A map per level, as large as the published pooling makes it: the sides divided and rounded."""
    maps = attention_maps(pyramid_of(tiny(P2T)), torch.randn(1, 3, 256, 384), (0.1, 0.1), stage=0)
    assert [tuple(level.weights.shape) for level in maps] == [(5, 8), (4, 6), (3, 5), (3, 4)]
    assert [level.covered for level in maps] == [(1.0, 1.0)] * 4
    assert flat(maps).sum() == pytest.approx(1)


def test_keys_know_their_place() -> None:
    """A change of one part of the image changes the key there most: rows and columns are not swapped."""
    model = tiny(PVT_V2)
    pixel_values = torch.zeros(1, 3, 64, 160)
    changed = pixel_values.clone()
    changed[..., 32:, :32] = 3  # the second row of keys, its first column
    before, after = (
        attention_maps(pyramid_of(model), x, (0.9, 0.1), stage=0)[0].weights for x in (pixel_values, changed)
    )
    assert before.shape == (2, 5)
    difference = ((after / before).log() - (after / before).log().median()).abs()
    assert divmod(int(difference.argmax()), 5) == (1, 0)


@pytest.mark.parametrize("family", [PVT, PVT_V2], ids=str)
def test_what_keys_cover(family: Family) -> None:
    """A strided convolution leaves out rows and columns at the end: of 25 x 37 tokens, 24 x 32 at a stride of 8."""
    (level,) = attention_maps(pyramid_of(tiny(family)), torch.randn(1, 3, 100, 148), (0.5, 0.5), stage=0)
    assert level.weights.shape == (3, 4)
    assert level.covered == pytest.approx((24 / 25, 32 / 37))


def test_hooks_are_gone() -> None:
    """The model gives the same afterwards, and nothing is left in it, not even after an error."""
    model, pixel_values = tiny(PVT_V2), torch.randn(1, 3, 64, 64)

    def hooks() -> list[int]:  # Transformers has its own
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]

    with torch.inference_mode():
        expected, before = model(pixel_values).logits, hooks()
        attention_maps(pyramid_of(model), pixel_values, (0.5, 0.5))
        with pytest.raises(ValueError, match="too small"):
            attention_maps(pyramid_of(model), pixel_values[..., :8, :8], (0.5, 0.5))
        assert torch.equal(model(pixel_values).logits, expected)
    assert hooks() == before


def expected_overlay(image: Image.Image, shares: np.ndarray) -> np.ndarray:
    """Of shares (H, W) in [0, 1], by Pillow's grey and numpy's interpolation between the five colours."""
    heat = np.stack([np.interp(shares, np.linspace(0, 1, 5), np.array(HEAT)[:, c]) for c in range(3)], axis=-1)
    return (1 - HEAT_ALPHA) * np.asarray(image.convert("L"), dtype=float)[..., None] + HEAT_ALPHA * heat


def test_picture() -> None:
    """Each key's rectangle in its colour, what no key covers in that of 0, and a ring around the point."""
    model, image = tiny(PVT_V2), photo(148, 100)
    processor = hf_pvt.segmentation_image_processor(do_resize=False)
    (level,) = attention_maps(
        pyramid_of(model), processor(image, return_tensors="pt")["pixel_values"], (0.5, 0.1), 0, 0
    )
    shares = np.zeros((100, 148))
    keys = (level.weights / level.weights.max()).numpy()
    for (row, column), share in np.ndenumerate(keys):  # 3 x 4 keys of 32 pixels each
        shares[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = share
    picture = np.asarray(draw_attention(model, image, (74, 10), stage=0, block=0))
    overlay = picture[-100:, :148].astype(float)
    difference = np.abs(overlay - expected_overlay(image, shares)).max(axis=2)
    ring = np.hypot(*np.mgrid[-10:90, -74:74])
    assert difference[ring > 6].max() <= 0.5 + 1e-3
    assert (overlay[10, 74 - 3] == 255).all() and (difference[ring > 6].size > 10_000)


@pytest.mark.parametrize(("stage", "size"), [(1, (160, 96)), (3, (96, 64))], ids=["different", "grids alike"])
def test_a_picture_for_each_pooling_level(stage: int, size: tuple[int, int]) -> None:
    """In rows of two, from the finest, though grids and shares may be alike: each ends in its last key's colour."""
    model, image = tiny(P2T), Image.new("RGB", size, (200, 200, 200))
    processor = hf_pvt.segmentation_image_processor(do_resize=False)
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    maps = attention_maps(pyramid_of(model), pixel_values, (40 / size[0], 30 / size[1]), stage)
    picture = np.asarray(draw_attention(model, image, (40, 30), stage)).astype(float)
    height, width = picture.shape[0] // 2, picture.shape[1]
    assert len(maps) == 4 and width >= 2 * size[0]
    for number, level in enumerate(maps):
        last = expected_overlay(image, np.full(size[::-1], level.weights[-1, -1] / level.weights.max()))[-1, -1]
        shown = picture[(number // 2 + 1) * height - 1]
        half = shown[: width // 2] if number % 2 == 0 else shown[width // 2 :]
        assert (np.abs(half - last).max(axis=1) <= 0.6).any()


def test_heading() -> None:
    level = AttentionMap(torch.tensor([[0.125, 0.25, 0.0], [0.125, 0.0, 0.0]]), (1.0, 1.0))
    assert _heading(2, level) == "2: 3x2 keys, 50% of all, each at most 25.00%"


def test_a_level_without_attention() -> None:
    """A level whose weights softmax has rounded to 0 is dark, not the lightest."""
    image = Image.new("RGB", (90, 60), (200, 200, 200))
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    overlay = np.asarray(_overlay(grey, AttentionMap(torch.zeros(2, 3), (1.0, 1.0)), (5, 5)), dtype=float)
    assert np.abs(overlay - expected_overlay(image, np.zeros((60, 90))))[20:, 20:].max() <= 0.5 + 1e-3


def test_processor_resizes_but_does_not_crop() -> None:
    """The same picture as of the resized image's weights, over the image at its own size."""
    model, image = tiny(PVT_V2, "classifier"), photo(300, 200)
    processor = hf_pvt.classification_image_processor(crop_size=56)
    pixel_values = processor(image, do_center_crop=False, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[-2:] == (64, 96)
    drawn = draw_attention(model, image, (299, 199), image_processor=processor)
    assert drawn.width == 300 and drawn.height > 200
    (level,) = attention_maps(pyramid_of(model), pixel_values, (299 / 300, 199 / 200))
    expected = expected_overlay(image, np.full((200, 300), level.weights[0, 0] / level.weights.max()))
    assert np.abs(np.asarray(drawn)[-200, 0] - expected[0, 0]).max() <= 0.6


def test_processor_resizes_but_does_not_pad() -> None:
    """A detector's processor would add zeros at the end, and what is drawn would not lie over the image."""
    processor, image = hf_pvt.detection_image_processor(size={"shortest_edge": 64, "longest_edge": 96}), photo()
    padded = processor(image, return_tensors="pt")["pixel_values"]
    pixel_values = whole_image(pyramid_of(tiny(PVT_V2)), image, processor)
    assert padded.shape[-2:] == (64, 96) and pixel_values.shape[-2:] == (64, 95)
    assert torch.equal(pixel_values, padded[..., :95])


def test_detectors_and_models_of_others() -> None:
    """The pyramid is found wherever it stands."""
    config = PVT_V2.tiny_config(out_indices=[0, 1, 2, 3])
    upernet = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config, hidden_size=16, auxiliary_in_channels=48, num_labels=3)
    )
    for model in (tiny_detector(MASK_RCNN, "p2t"), upernet.eval()):
        assert draw_attention(model, photo(), (10, 20), stage=2).height > HEIGHT


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_kinds_of_images(mode: str) -> None:
    """Models of three channels see what is drawn; one of one channel takes grey images."""
    grey = photo(64, 64).convert("L")
    image = grey.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    expected = draw_attention(
        tiny(PVT_V2), np.asarray(image.convert("RGB") if mode != "I;16" else grey.convert("RGB")), (5, 5)
    )
    assert draw_attention(tiny(PVT_V2), image, (5, 5)).tobytes() == expected.tobytes()
    if mode == "L":
        assert draw_attention(tiny(PVT_V2, num_channels=1), image, (5, 5)).size == expected.size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"point": (150, 3)}, r"the point \(150, 3\) is outside of the image of 150x101 pixels"),
        ({"point": (3, -1)}, r"the point \(3, -1\) is outside"),
        ({"stage": 4}, "stage is 4, expected 0 to 3, or -4 to -1 from the end"),
        ({"stage": 2, "block": -3}, "block is -3, expected 0 to 1, or -2 to -1"),
        ({"stage": 0, "head": 1}, "head is 1, expected 0 to 0"),
        ({"image": np.zeros((50, 50))}, "the image is an array of float64"),
        ({"image": Image.new("RGB", (20, 50)), "point": (1, 1)}, "images of 50x20 pixels are too small"),
        ({"model": torch.nn.Linear(2, 2)}, "Linear has no pyramids, expected one"),
        ({"model": tiny(PVT_V2).train()}, "the model is in training mode"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"model": tiny(PVT_V2), "image": photo(), "point": (0, 0)} | changes
    with pytest.raises(ValueError, match=message):
        draw_attention(**arguments)
