"""Our backbones inside Transformers' detectors and segmenters, by `backbone_config=`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, P2T, PVT_V2, Family, perturb
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

BATCH, HEIGHT, WIDTH, CLASSES = 2, 64, 96, 3

# Group norms of 32 groups stand behind the width of 32.
SMALL_DETR: dict[str, Any] = {
    "d_model": 32,
    "num_queries": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_labels": CLASSES,
}


def detr(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return DetrForObjectDetection(DetrConfig(backbone_config=backbone_config, **SMALL_DETR))


def deformable_detr(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=backbone_config,
            num_feature_levels=3,
            encoder_n_points=1,
            decoder_n_points=1,
            **SMALL_DETR,
        )
    )


def rt_detr_v2(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return RTDetrV2ForObjectDetection(
        RTDetrV2Config(
            backbone_config=backbone_config,
            encoder_in_channels=list(backbone_config.hidden_sizes[1:]),
            encoder_hidden_dim=32,
            decoder_in_channels=[32, 32, 32],
            decoder_n_points=1,
            hidden_expansion=0.5,
            num_denoising=2,
            **SMALL_DETR,
        )
    )


def upernet(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone_config, hidden_size=16, auxiliary_channels=8, num_labels=CLASSES)
    )


def maskformer(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=backbone_config,
            decoder_config=DetrConfig(**SMALL_DETR),
            fpn_feature_size=32,
            mask_feature_size=32,
            num_labels=CLASSES,
        )
    )


def mask2former(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone_config,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            num_attention_heads=2,
            num_queries=4,
            train_num_points=64,
            num_labels=CLASSES,
        )
    )


def boxes() -> dict[str, Any]:
    """Two objects in every image, boxes as relative centre and size."""
    target = {
        "class_labels": torch.tensor([0, 2]),
        "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]]),
    }
    return {"labels": [target] * BATCH}


def label_map() -> dict[str, Any]:
    """A class for every pixel."""
    return {"labels": torch.arange(BATCH * HEIGHT * WIDTH).view(BATCH, HEIGHT, WIDTH) // 7 % CLASSES}


def masks() -> dict[str, Any]:
    """Two segments in every image: its left third and the rest."""
    left = (torch.arange(WIDTH) < WIDTH // 3).float().expand(HEIGHT, WIDTH)
    return {
        "mask_labels": [torch.stack((left, 1 - left))] * BATCH,
        "class_labels": [torch.tensor([0, 2])] * BATCH,
    }


@dataclass(frozen=True)
class Host:
    """A model that builds its backbone from `backbone_config`: which stages it wants, and what it learns from."""

    build: Callable[[PreTrainedConfig], PreTrainedModel]
    out_indices: tuple[int, ...]
    labels: Callable[[], dict[str, Any]]

    def __str__(self) -> str:
        return self.build.__name__


HOSTS = (
    Host(detr, (3,), boxes),
    Host(deformable_detr, (1, 2, 3), boxes),
    Host(rt_detr_v2, (1, 2, 3), boxes),
    Host(upernet, (0, 1, 2, 3), label_map),
    Host(maskformer, (0, 1, 2, 3), masks),
    Host(mask2former, (0, 1, 2, 3), masks),
)


def backbone_of(model: PreTrainedModel, family: Family) -> PreTrainedModel:
    """The one backbone of this family inside `model`."""
    backbones = [module for module in model.modules() if isinstance(module, family.backbone)]
    assert len(backbones) == 1
    return backbones[0]


def images() -> Tensor:
    return torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predictions(model: PreTrainedModel) -> dict[str, Tensor]:
    """Everything that the model says of the images, in evaluation mode."""
    outputs = model.eval()(pixel_values=images())
    return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


# A host sees a family through its backbone alone: families take turns, and UperNet, which reads all maps, has all.
@pytest.mark.parametrize(
    ("host", "family"),
    [*zip(HOSTS, cycle(FAMILIES), strict=False), (HOSTS[3], PVT_V2), (HOSTS[3], P2T)],
    ids=str,
)
def test_backbone_trains_and_survives_inside(host: Host, family: Family, tmp_path: Path) -> None:
    """Inside another model: ours, with the stages asked for; it learns; saving and loading keeps every number."""
    torch.manual_seed(0)
    config = family.tiny_config(out_indices=list(host.out_indices))
    model = host.build(config).train()
    perturb(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one batch has to do, or evaluation would scale the images away

    backbone = backbone_of(model, family)
    shapes = [tuple(feature_map.shape) for feature_map in backbone(images()).feature_maps]
    assert shapes == [
        (BATCH, config.hidden_sizes[index], HEIGHT // 2 ** (index + 2), WIDTH // 2 ** (index + 2))
        for index in host.out_indices
    ]

    loss = model(pixel_values=images(), **host.labels()).loss
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Softmax ignores what all keys have in common.
        assert parameter.grad.any() or name.endswith(".key.bias"), name

    model.save_pretrained(tmp_path)
    loaded, problems = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    assert type(loaded.config.backbone_config) is family.config
    weights, loaded_weights = model.state_dict(), loaded.state_dict()
    assert weights.keys() == loaded_weights.keys()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)
    expected, actual = predictions(model), predictions(loaded)
    assert expected.keys() == actual.keys()
    for name, prediction in expected.items():
        # Not to the bit: the hosts' convolutions round by where in memory their weights lie.
        torch.testing.assert_close(actual[name], prediction, rtol=1e-5, atol=1e-5)

    # The predictions come from the backbone, or their equality would say little.
    perturb(backbone_of(loaded, family))
    changed = predictions(loaded)
    assert max((changed[name] - expected[name]).abs().max().item() for name in expected) > 1e-2
