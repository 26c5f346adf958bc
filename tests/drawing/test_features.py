"""The drawn feature maps: scikit-learn's principal components as colours."""

import numpy as np
import pytest
import torch
from families import FAMILIES, MASK_RCNN, PVT_V2, Family, tiny_detector
from PIL import Image
from sklearn.decomposition import PCA

import hf_pvt
from hf_pvt.drawing.features import as_colours, draw_features, principal_components


@pytest.mark.parametrize("shape", [(7, 30, 20), (256, 4, 5)], ids=str)
def test_components(shape: tuple[int, ...]) -> None:
    """Those of scikit-learn, signs too, though it takes another way (of vectors or of channels the fewer)."""
    feature_map = torch.from_numpy(np.random.normal(3, np.random.uniform(0.1, 2, (shape[0], 1, 1)), shape))
    expected = PCA(3, svd_solver="full").fit_transform(feature_map.flatten(1).T.numpy())
    np.testing.assert_allclose(principal_components(feature_map).reshape(-1, 3), expected, atol=1e-9)


def test_colours() -> None:
    """Each direction from black to full, outliers cut off, the main one red."""
    feature_map = torch.zeros(5, 10, 100)
    feature_map[2] = torch.linspace(-10, 10, 1000).view(10, 100)
    feature_map[4] = torch.linspace(-1, 1, 100).square()
    colours = as_colours(feature_map)
    assert colours.shape == (10, 100, 3) and colours.dtype == np.uint8
    expected = ((np.linspace(-10, 10, 1000) + 9.8) / 19.6).clip(0, 1) * 255  # between the quantiles 0.01 and 0.99
    np.testing.assert_allclose(colours[..., 0].ravel(), expected, atol=0.5001)
    assert colours[..., 1].min() == 0 and colours[..., 1].max() == 255
    assert (colours[..., 2] == 128).all(), "there is no third direction"


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 4, 4), (1, 6, 6)], ids=str)
def test_few_vectors_or_channels(shape: tuple[int, ...]) -> None:
    feature_map = torch.from_numpy(np.random.normal(size=shape))
    colours = as_colours(feature_map)
    directions = min(shape[0], shape[1] * shape[2] - 1)
    assert [bool((colours[..., c] != 128).any()) for c in range(3)] == [c < directions for c in range(3)]


def test_rounding_is_not_drawn() -> None:
    feature_map = 100 + 1e-5 * torch.from_numpy(np.random.normal(size=(8, 6, 6)))
    assert (as_colours(feature_map) == 128).all()
    assert (as_colours(feature_map - 100) != 128).any()


@pytest.mark.parametrize(
    ("family", "kind"), list(zip(FAMILIES, ("classifier", "segmenter", "backbone"), strict=True)), ids=str
)
def test_picture(family: Family, kind: str) -> None:
    """The four maps of `output_hidden_states`, each of its pixels a rectangle, beside the image."""
    torch.manual_seed(0)
    model = getattr(family, kind)(family.tiny_config()).eval()
    image = Image.fromarray(np.random.randint(0, 256, (64, 96, 3), dtype=np.uint8))
    picture = np.asarray(draw_features(model, image))
    panels = picture[-160:]  # 240 x 160 pixels each
    processor = hf_pvt.segmentation_image_processor(do_resize=False)
    with torch.inference_mode():
        maps = model(**processor(image, return_tensors="pt"), output_hidden_states=True).hidden_states
    left = 240
    assert np.array_equal(panels[:, :240], np.asarray(image.resize((240, 160))))
    for feature_map in maps:
        assert len(maps) == 4
        cell = 160 // feature_map.shape[2]
        expected = as_colours(feature_map[0]).repeat(cell, 0).repeat(cell, 1)
        left = (
            next(x for x in range(left, panels.shape[1] - 239) if np.array_equal(panels[:, x : x + 240], expected))
            + 240
        )
    assert left == panels.shape[1]


def test_shape_and_processor() -> None:
    """Panels have the image's shape; the processor's size is that of the maps."""
    model = PVT_V2.classifier(PVT_V2.tiny_config()).eval()
    image = Image.fromarray(np.random.randint(0, 256, (200, 100, 3), dtype=np.uint8))
    processor = hf_pvt.classification_image_processor(crop_size=56)
    picture = np.asarray(draw_features(model, image, processor))
    with torch.inference_mode():
        inputs = processor(image, do_center_crop=False, return_tensors="pt")
        last = model(**inputs, output_hidden_states=True).hidden_states[3]
    assert last.shape[-2:] == (4, 2)
    expected = as_colours(last[0]).repeat(60, 0).repeat(60, 1)
    places = range(picture.shape[1] - 119)
    assert [np.array_equal(picture[-240:, x : x + 120], expected) for x in places].count(True) == 1


def test_detector() -> None:
    assert draw_features(tiny_detector(MASK_RCNN), Image.new("L", (90, 60), 77)).width > 4 * 240


def test_refused() -> None:
    with pytest.raises(ValueError, match="the model is in training mode"):
        draw_features(FAMILIES[0].model(FAMILIES[0].tiny_config()).train(), Image.new("RGB", (64, 64)))
    with pytest.raises(ValueError, match="ReLU has no pyramids"):
        draw_features(torch.nn.ReLU().eval(), Image.new("RGB", (64, 64)))
