"""Parameter groups partition the parameters, rates fall with the depth, schedules take their values."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family
from run_image_classification import RECIPES
from run_semantic_segmentation import RECIPES as SCENES
from torch import nn

from hf_pvt.training.optimization import Schedule, parameter_groups, set_learning_rate

# PVT's class token is the classifier's alone.
MODELS = [(PVT, "classifier"), (PVT, "segmenter"), (PVT_V2, "segmenter"), (P2T, "segmenter")]
MODELS += [(PVT_V2_LINEAR, "classifier")]


def build(family: Family, head: str) -> nn.Module:
    return getattr(family, head)(family.tiny_config())


def settings(model: nn.Module, weight_decay: float = 0.05, layer_decay: float = 1.0) -> dict[str, tuple[float, float]]:
    """Rate and decay by the parameter's name, from the groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay, layer_decay)
    return {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize(("family", "head"), MODELS, ids=lambda value: str(value))
def test_groups_and_their_decay(family: Family, head: str) -> None:
    """A partition of the parameters: weights of linear layers and convolutions decay, as modules tell; nothing else."""
    model = build(family, head)
    grouped = [id(p) for group in parameter_groups(model, 0.05, 0.8) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    decaying = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    decays = settings(model)
    assert {name for name, (_, decay) in decays.items() if decay == 0.05} == decaying
    assert {decay for name, (_, decay) in decays.items() if name not in decaying} == {0.0}
    if family is PVT:
        positions = [name for name in decays if name.endswith("position_embeddings")]
        assert len(positions) == 4 and any(name.endswith("cls_token") for name in decays) == (head == "classifier")
        assert not decaying & {*positions}


def test_what_decays_in_the_published_runs() -> None:
    """On ImageNet PVT's four position embeddings, but not the class token; on ADE20K every weight."""
    model = build(PVT, "classifier")
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decaying(recipe: dict[str, Any]) -> set[str]:
        groups = parameter_groups(model, 0.05, without_decay=recipe["without_decay"])
        return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}

    imagenet, ade20k = decaying(RECIPES["pvt-imagenet"]), decaying(SCENES["ade20k"])
    ours = decaying(RECIPES["finetune"])
    assert ours < imagenet < ade20k == {*names.values()}
    more = sorted(imagenet - ours)
    assert more == [f"pvt.encoder.layers.{n}.patch_embedding.position_embeddings" for n in range(4)]
    assert "cls_token" in {name.rpartition(".")[2] for name in ade20k - imagenet}


def test_frozen_parameters_are_in_no_group() -> None:
    model = build(PVT_V2, "classifier")
    model.base_model.requires_grad_(False)
    assert set(settings(model)) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("family", "head"), [(PVT, "classifier"), (PVT_V2, "segmenter"), (P2T, "segmenter")], ids=str)
def test_layer_decay_per_depth(family: Family, head: str) -> None:
    """Depths (1, 1, 2, 1): five blocks, so that the head is at depth 6."""
    model = build(family, head)
    scales = {name: scale for name, (scale, _) in settings(model, layer_decay=0.5).items()}
    prefix = f"{model.base_model_prefix}.encoder.layers."
    expected = {
        "0.patch_embedding.": 0,
        "0.blocks.0.": 1,
        "1.patch_embedding.": 2,
        "1.blocks.0.": 2,
        "2.patch_embedding.": 3,
        "2.blocks.0.": 3,
        "2.blocks.1.": 4,
        "3.patch_embedding.": 5,
        "3.blocks.0.": 5,
    }
    if family is PVT_V2:
        expected |= {"0.layer_norm.": 1, "1.layer_norm.": 2, "2.layer_norm.": 4, "3.layer_norm.": 5}
    unmatched = set(scales)
    for part, depth in expected.items():
        members = {name for name in scales if name.startswith(prefix + part)}
        assert members and {scales[name] for name in members} == {0.5 ** (6 - depth)}, part
        unmatched -= members
    shared = {name for name in unmatched if name.startswith(prefix)}
    assert bool(shared) == (family is P2T)  # the convolutions that the blocks of a stage share
    for name in shared:
        first_block = f"{prefix}{name.removeprefix(prefix)[0]}.blocks.0.layer_norm_1.weight"
        assert scales[name] == scales[first_block]
    assert {scales[name] for name in unmatched - shared} == {1.0}  # classifier, decoder, PVT's last norm


def test_the_published_schedule() -> None:
    """300 epochs of 10 steps: 5 from 1e-6 up, then the cosine to 1e-5, whose time counts from the first step."""
    schedule = Schedule(peak=1e-3, total_steps=3000, warmup_steps=50, warmup_start=1e-6, end=1e-5)
    after_warmup = 1e-5 + 0.99e-3 * (1 + math.cos(math.pi * 50 / 3000)) / 2
    assert schedule(0) == 1e-6
    assert schedule(25) == pytest.approx((1e-6 + after_warmup) / 2)
    assert schedule(50) == pytest.approx(after_warmup) and after_warmup > 0.999e-3
    assert schedule(1500) == pytest.approx((1e-3 + 1e-5) / 2)
    assert schedule(2000) == pytest.approx(1e-5 + 0.99e-3 * 0.25)
    assert schedule(3000) == schedule(3001) == pytest.approx(1e-5)
    rates = [schedule(step) for step in range(50, 3001)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_the_published_schedule_of_segmentation() -> None:
    schedule = Schedule(peak=1e-4, total_steps=80_000, curve="poly", power=0.9)
    assert schedule(0) == 1e-4
    assert schedule(40_000) == pytest.approx(1e-4 * 0.5**0.9)
    assert schedule(72_000) == pytest.approx(1e-4 * 0.1**0.9)
    assert schedule(80_000) == 0.0


def test_rates_of_the_groups() -> None:
    model = build(PVT_V2, "classifier")
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05, layer_decay=0.5), lr=1.0)
    set_learning_rate(optimizer, 3e-4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.classifier.weight)] == 3e-4
    block = model.base_model.encoder.layers[3].blocks[0]
    assert rates[id(block.layer_norm_1.weight)] == rates[id(block.mlp.dense1.weight)] == 1.5e-4
