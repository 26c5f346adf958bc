"""All variants against what the published implementations compute."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoBackbone,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

import hf_pvt
from hf_pvt import VARIANTS

QUICK = {"pvt-tiny", "pvt-v2-b0", "pvt-v2-b2-li", "p2t-tiny"}


def in_tiers(variants: Iterable[str]) -> list[Any]:
    """Parameters of a test: all but a few variants are slow."""
    return [variant if variant in QUICK else pytest.param(variant, marks=pytest.mark.slow) for variant in variants]


RECORDED_FEATURES = [variant for variant in VARIANTS if [*reference.recorded_sizes(variant, "features")]]


def load(weights: dict[str, torch.Tensor], path: Path) -> PreTrainedModel:
    torch.save(weights, path)
    return hf_pvt.load_original(path)


@pytest.mark.parametrize("variant", in_tiers(VARIANTS))
def test_logits(variant: str, tmp_path: Path) -> None:
    """The published checkpoint, recognised by itself, gives the published logits on both paths."""
    model = load(reference.checkpoint(variant), tmp_path / "published.pth")
    fields = {name: getattr(model.config, name) for name in VARIANTS[variant].architecture}
    assert fields == VARIANTS[variant].architecture
    ((height, width),) = reference.recorded_sizes(variant, "logits")
    expected, image = reference.logits(variant, height, width), reference.image(height, width)
    tolerance = reference.tolerance(variant)
    assert reference.relative_error(model(image).logits.detach(), expected) < tolerance
    with torch.inference_mode():
        assert reference.relative_error(model(image).logits, expected) < tolerance


@pytest.mark.parametrize("variant", in_tiers(VARIANTS))
def test_segmentations(variant: str, tmp_path: Path) -> None:
    """MMSegmentation's checkpoint, recognised by itself, gives the published logits on both paths, and once saved."""
    segmenter = load(reference.segmentation_checkpoint(variant), tmp_path / "published.pth")
    segmenter.save_pretrained(tmp_path / "saved")
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved")
    sizes = list(reference.recorded_sizes(variant, "semantic_fpn"))
    assert sizes
    for size in sizes:
        shape, samples = reference.segmentation_logits(variant, *size)
        image = reference.image(*size)
        with torch.inference_mode():
            fast = [segmenter(image).logits, saved(image).logits]
        for logits in (segmenter(image).logits.detach(), *fast):
            assert tuple(logits.shape) == shape, size
            assert reference.relative_error(reference.samples(logits, 2048), samples) < 1e-5, size


@pytest.mark.parametrize("variant", in_tiers(RECORDED_FEATURES))
def test_features(variant: str, tmp_path: Path) -> None:
    """The backbone, opened from the saved base model, gives the published maps, also at sizes 32 does not divide."""
    base = load(reference.segmentation_backbone(variant), tmp_path / "published.pth")
    base.save_pretrained(tmp_path / "saved")
    backbone_class = AutoBackbone._model_mapping[type(base.config)]
    backbone, info = backbone_class.from_pretrained(
        tmp_path / "saved", out_indices=[0, 1, 2, 3], output_loading_info=True
    )
    assert not any(info.values()), info
    for size in reference.recorded_sizes(variant, "features"):
        with torch.inference_mode():
            maps = backbone(reference.image(*size)).feature_maps
        for feature_map, (shape, samples) in zip(maps, reference.features(variant, *size), strict=True):
            assert tuple(feature_map.shape) == shape, size
            assert reference.relative_error(reference.samples(feature_map), samples) < 1e-5, size


def test_segmentation_loss(tmp_path: Path) -> None:
    """The published loss, but divided by the labelled pixels alone."""
    model = load(reference.segmentation_checkpoint("pvt-v2-b0"), tmp_path / "published.pth")
    labels = reference.segmentation_labels()
    loss = model(reference.image(*labels.shape[1:]), labels=labels).loss.item()
    share = (labels != 255).double().mean().item()
    assert share < 0.95
    assert loss * share == pytest.approx(reference.segmentation_loss(), rel=1e-6)


def on_meta(variant: str, auto_class: Any, num_labels: int) -> PreTrainedModel:
    with torch.device("meta"):
        config = hf_pvt.variant_config(variant, num_labels=num_labels, attn_implementation="eager")
        return auto_class.from_config(config).eval()


def count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def gmacs(model: PreTrainedModel, size: int) -> float:
    """One multiply-accumulate is two operations."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("variant", in_tiers(VARIANTS))
def test_numbers_of_the_papers(variant: str) -> None:
    """Parameters and GMACs, to all digits of the tables, of the classifier of 1,000 classes and the segmenter of 150.

    Both of the published epsilons, too: a wrong one moves the logits by less than the tolerance above.
    """
    classifier = on_meta(variant, AutoModelForImageClassification, 1000)
    segmenter = on_meta(variant, AutoModelForSemanticSegmentation, 150)
    assert count(classifier.parameters()) == VARIANTS[variant].parameters
    assert count(segmenter.parameters()) == VARIANTS[variant].fpn_parameters
    for name, module in classifier.named_modules():
        if isinstance(module, nn.LayerNorm):
            is_reduction = name.endswith((".patch_embedding.layer_norm", ".attention.layer_norm"))
            assert module.eps == (1e-5 if is_reduction else 1e-6), name
    assert round(gmacs(classifier, 224), 3) == VARIANTS[variant].gmacs_224
    assert round(gmacs(segmenter, 512), 2) == VARIANTS[variant].fpn_gmacs_512


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
