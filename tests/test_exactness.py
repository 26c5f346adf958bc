"""All variants against what the published implementations compute."""

from pathlib import Path

import pytest
import reference
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoBackbone, AutoModelForImageClassification, PreTrainedModel

import hf_pvt
from hf_pvt import VARIANTS

# Relative to the largest output; float32 against float64. The deepest variants are allowed ten times as much.
TOLERANCE = {"pvt-large": 1e-4, "pvt-v2-b4": 1e-4, "pvt-v2-b5": 1e-4, "p2t-large": 1e-4}
RECORDED_FEATURES = [(v, size) for v in VARIANTS for size in reference.recorded_sizes(v, "features")]


def load(weights: dict[str, torch.Tensor], path: Path) -> PreTrainedModel:
    torch.save(weights, path)
    return hf_pvt.load_original(path)


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, tmp_path: Path) -> None:
    """The published checkpoint, recognised by itself, gives the published logits on both paths."""
    model = load(reference.checkpoint(variant), tmp_path / "published.pth")
    fields = {name: getattr(model.config, name) for name in VARIANTS[variant].architecture}
    assert fields == VARIANTS[variant].architecture
    ((height, width),) = reference.recorded_sizes(variant, "logits")
    expected, image = reference.logits(variant, height, width), reference.image(height, width)
    tolerance = TOLERANCE.get(variant, 1e-5)
    assert relative_error(model(image).logits.detach(), expected) < tolerance
    with torch.inference_mode():
        assert relative_error(model(image).logits, expected) < tolerance


@pytest.mark.parametrize(("variant", "size"), RECORDED_FEATURES, ids=str)
def test_features(variant: str, size: tuple[int, int], tmp_path: Path) -> None:
    """The backbone, opened from the saved base model, gives the published maps, also at sizes 32 does not divide."""
    base = load(reference.segmentation_backbone(variant), tmp_path / "published.pth")
    base.save_pretrained(tmp_path / "saved")
    backbone_class = AutoBackbone._model_mapping[type(base.config)]
    backbone, info = backbone_class.from_pretrained(
        tmp_path / "saved", out_indices=[0, 1, 2, 3], output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.inference_mode():
        maps = backbone(reference.image(*size)).feature_maps
    for feature_map, (shape, samples) in zip(maps, reference.features(variant, *size), strict=True):
        assert tuple(feature_map.shape) == shape
        assert relative_error(reference.samples(feature_map), samples) < 1e-5


def on_meta(variant: str) -> PreTrainedModel:
    with torch.device("meta"):
        config = hf_pvt.variant_config(variant, num_labels=1000, attn_implementation="eager")
        return AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters(variant: str) -> None:
    assert sum(parameter.numel() for parameter in on_meta(variant).parameters()) == VARIANTS[variant].parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_gmacs(variant: str) -> None:
    """To the three digits of the papers' tables; one multiply-accumulate is two operations."""
    model = on_meta(variant)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 3) == VARIANTS[variant].gmacs_224


def test_variants_are_the_published_ones() -> None:
    assert set(VARIANTS) == set(reference.published_keys())
    for name, variant in VARIANTS.items():
        shapes = reference.published_keys()[name].values()
        assert variant.parameters == sum(torch.Size(shape).numel() for shape in shapes)


def test_licences() -> None:
    """P2T's weights are never labelled free."""
    licences = {name: variant.license for name, variant in VARIANTS.items()}
    assert {name for name, licence in licences.items() if licence == "cc-by-nc-sa-4.0"} == {
        "p2t-tiny", "p2t-small", "p2t-base", "p2t-large"
    }  # fmt: skip
    assert set(licences.values()) == {"apache-2.0", "cc-by-nc-sa-4.0"}
