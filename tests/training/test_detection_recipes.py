"""The published schedules, number by number, and the detectors that training starts from."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import reference
import run_object_detection as script
import torch
import transformers
from accelerate import PartialState
from families import (
    ATSS,
    CASCADE_MASK_RCNN,
    DETECTORS,
    FASTER_RCNN,
    GFL,
    RETINANET,
    SPARSE_RCNN,
    DetectorRow,
    tiny_detector,
)
from torch import nn

import hf_pvt
from hf_pvt.detection.parts.loss_terms import LossTerm, means
from hf_pvt.original.detector_layouts import DETECTOR_LAYOUTS
from hf_pvt.training.arguments import OptimizationArguments, fill
from hf_pvt.training.coco_recipes import coco_recipe
from hf_pvt.training.detectors import open_detector
from hf_pvt.training.optimization import parameter_groups

STEPS_PER_EPOCH = 7330  # COCO's 117,266 images with objects, in steps of 16


def schedule(config: Any, recipe: str, batch: int, **flags: Any) -> Any:
    task = script.DetectionArguments(recipe=recipe)
    optimization = OptimizationArguments(**flags)
    fill((task, optimization), script.RECIPES[recipe])
    published = None if recipe == "finetune" else coco_recipe(config, recipe)
    return script.schedule_of(task, optimization, published, STEPS_PER_EPOCH, batch)


# Of design/detection.md: the rate of the batch, and the batch.
RATES = [
    ("retinanet", "pvt-tiny", 1e-4, 16),
    ("retinanet", "pvt-large", 1e-4, 16),
    ("retinanet", "pvt-v2-b2", 1e-4, 16),
    ("retinanet", "pvt-v2-b4", 1e-4 / 1.4, 8),
    ("retinanet", "pvt-v2-b5", 1e-4 / 1.4, 8),
    ("retinanet", "p2t-large", 1e-4, 16),
    ("mask_rcnn", "pvt-medium", 2e-4, 16),
    ("mask_rcnn", "pvt-large", 2e-4 / 1.4, 8),
    ("mask_rcnn", "pvt-v2-b2-li", 2e-4, 16),
    ("mask_rcnn", "pvt-v2-b4", 2e-4 / 1.4, 8),
    ("mask_rcnn", "p2t-small", 1e-4, 16),
    ("mask_rcnn", "p2t-base", 1e-4, 16),
]


def test_rates_of_the_short_recipes() -> None:
    """They grow with the batch; decay, scales and clipping are the published ones."""
    for detector, variant, rate, batch in RATES:
        name = f"{detector} on {variant}"
        config = hf_pvt.detector_config(detector, variant, num_labels=3)
        assert schedule(config, "coco-1x", batch).peak == pytest.approx(rate), name
        assert schedule(config, "coco-1x", 2 * batch).peak == pytest.approx(2 * rate), name
        recipe = coco_recipe(config, "coco-1x")
        flags = recipe.flags()
        assert (flags["weight_decay"], flags["without_decay"]) == (1e-4, ["none"]), name
        assert (flags["scale_lowest"], flags["random_crop"]) == (1.0, 0.0), name
        clipped = detector == "mask_rcnn" and variant in ("p2t-base", "p2t-large")
        assert recipe.max_grad_norm == (10 if clipped else None), name


def test_short_schedule() -> None:
    """At known steps: warm-up from a thousandth over 500 steps, a tenth after 8 and 11 of 12 epochs."""
    config = hf_pvt.detector_config("retinanet", "pvt-v2-b4", num_labels=3)
    rates, rate = schedule(config, "coco-1x", 8), 1e-4 / 1.4
    assert rates.total_steps == 12 * STEPS_PER_EPOCH
    assert_warm_up(rates, rate)
    drops = {500: 1, 8 * STEPS_PER_EPOCH - 1: 1, 8 * STEPS_PER_EPOCH: 0.1, 11 * STEPS_PER_EPOCH - 1: 0.1}
    for step, factor in (drops | {11 * STEPS_PER_EPOCH: 0.01, 12 * STEPS_PER_EPOCH - 1: 0.01}).items():
        assert rates(step) == pytest.approx(rate * factor), step
    assert schedule(config, "coco-1x", 8, learning_rate=3e-4).peak == 3e-4


def assert_warm_up(rates: Any, rate: float) -> None:
    """MMDetection's: rate * (1 - (1 - step / 500) * (1 - 0.001))."""
    for step in (0, 1, 250, 499):
        assert rates(step) == pytest.approx(rate * (1 - (1 - step / 500) * 0.999)), step


def test_rates_of_the_long_schedule() -> None:
    config = hf_pvt.detector_config("mask_rcnn", "pvt-v2-b2", num_labels=3)
    rates, recipe = schedule(config, "coco-3x", 16), coco_recipe(config, "coco-3x")
    assert rates.total_steps == 36 * STEPS_PER_EPOCH
    for epoch, rate in ((1, 1e-4), (26.99, 1e-4), (27, 1e-5), (32.99, 1e-5), (33, 1e-6), (35.99, 1e-6)):
        assert rates(int(epoch * STEPS_PER_EPOCH)) == pytest.approx(rate), epoch
    assert (recipe.weight_decay, recipe.without_decay, recipe.max_grad_norm) == (0.05, ("backbone_norms",), None)
    assert (recipe.scale_lowest, recipe.random_crop) == (480 / 800, 0.5)
    usual = coco_recipe(hf_pvt.detector_config("retinanet", "pvt-v2-b2"), "coco-3x")
    assert (usual.learning_rate, usual.scale_lowest, usual.random_crop) == (1e-4, 640 / 800, 0.0)
    assert schedule(config, "finetune", 8).peak == pytest.approx(1e-4)


# Of design/detection_more.md: the rate of the batch, the batch, decay, what does not decay, clipping.
LONG = [
    *(
        (detector, variant, 1e-4, 16, 0.05, "backbone_norms", None)
        for detector in ("cascade_mask_rcnn", "atss", "gfl")
        for variant in ("pvt-v2-b2-li", "pvt-v2-b2")
    ),
    ("sparse_rcnn", "pvt-v2-b2-li", 2.5e-5, 16, 1e-4, "none", 1.0),
    ("sparse_rcnn", "pvt-v2-b2", 2.5e-5 / 1.4, 8, 1e-4, "none", 1.0),
]


def test_recipes_of_the_long_detectors() -> None:
    """36 epochs, a tenth after 27 and 33, images of several scales; there is no shorter schedule."""
    for detector, variant, rate, batch, decay, without, clip in LONG:
        name = f"{detector} on {variant}"
        config = hf_pvt.detector_config(detector, variant, num_labels=3)
        rates, recipe = schedule(config, "coco-3x", batch), coco_recipe(config, "coco-3x")
        assert rates.total_steps == 36 * STEPS_PER_EPOCH, name
        assert_warm_up(rates, rate)
        for epoch, factor in ((1, 1), (26.99, 1), (27, 0.1), (32.99, 0.1), (33, 0.01), (35.99, 0.01)):
            assert rates(int(epoch * STEPS_PER_EPOCH)) == pytest.approx(rate * factor), (name, epoch)
        flags = {"weight_decay": decay, "without_decay": [without], "max_grad_norm": clip}
        assert recipe.flags() == flags | {"scale_lowest": 480 / 800, "random_crop": 0.5, "backbone_rate": 1.0}, name
        assert config.backbone_config.drop_path_rate == 0.1, name
        with pytest.raises(ValueError, match=rf"published of {detector} under coco-1x; take --recipe coco-3x\."):
            coco_recipe(config, "coco-1x")


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn", "atss", "gfl", "sparse_rcnn"])
def test_what_the_long_recipes_decay(detector: str) -> None:
    """By the published names: nothing that has "norm" in its own, or, of Sparse R-CNN, everything."""
    (row,) = (row for row in DETECTORS if row.name == detector)
    model = tiny_detector(row)
    layout = next(one for one in DETECTOR_LAYOUTS if (one.detector, one.model_type) == (detector, "pvt_v2"))
    recipe = coco_recipe(model.config, "coco-3x")
    found = decays(model, recipe.without_decay)
    published = {name: layout.name(name.removeprefix("backbone.")) for name in found}
    for name, decay in found.items():
        kept = "norm" not in published[name] or detector == "sparse_rcnn"
        assert decay == (0.05 if kept else 0), name
    assert (0 in found.values()) == (detector != "sparse_rcnn")
    if detector == "cascade_mask_rcnn":
        assert any(name.endswith(".bn.weight") for name in published.values())


def test_a_custom_backbone_has_the_detector_s_usual_rates() -> None:
    config = RETINANET.tiny_config(hf_pvt.PvtV2Config(hidden_sizes=[8, 16, 20, 32]))
    assert coco_recipe(config, "coco-1x").learning_rate == coco_recipe(config, "coco-3x").learning_rate == 1e-4


def decays(model: nn.Module, without: tuple[str, ...]) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, without_decay=without)
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def test_norms_do_not_decay() -> None:
    """Told by the modules: nothing else but norms is left out, biases decay."""
    for detector, backbone in ((RETINANET, "pvt"), (ATSS, "pvt_v2"), (CASCADE_MASK_RCNN, "p2t")):
        model = tiny_detector(detector, backbone)
        kinds = nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm
        norms = {name for name, module in model.named_modules() if isinstance(module, kinds)}
        for name, decay in decays(model, ("norms",)).items():
            assert decay == (0 if name.rpartition(".")[0] in norms else 0.05), name
        assert {*decays(model, ("none",)).values()} == {0.05}


# Where a detector comes from


@pytest.fixture(autouse=True)
def process() -> None:
    """What the logger asks for."""
    PartialState(cpu=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    config = hf_pvt.PvtV2Config(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4], drop_path_rate=0.3
    )
    hf_pvt.PvtV2ForImageClassification(config).save_pretrained(folder)
    return folder


def different(one: nn.Module, other: nn.Module) -> set[str]:
    """The names of those weights that differ."""
    theirs = other.state_dict()
    return {name for name, weight in one.state_dict().items() if name not in theirs or not weight.equal(theirs[name])}


NAMES = ["cell", "nucleus"]


def test_a_new_detector_on_saved_weights(classifier: Path) -> None:
    model = open_detector(None, "retinanet", str(classifier), NAMES, seed=0, drop_path_rate=0.1, with_masks=None)
    assert type(model).__name__ == "RetinaNetForObjectDetection" and model.config.id2label == {0: "cell", 1: "nucleus"}
    assert model.config.backbone_config.drop_path_rate == 0.1
    expected = hf_pvt.PvtV2Backbone.from_pretrained(classifier)
    theirs = model.backbone.state_dict()
    shared = [name for name in expected.state_dict() if name in theirs]
    assert len(shared) > 50 and all(theirs[name].equal(expected.state_dict()[name]) for name in shared)
    again = open_detector(None, "retinanet", str(classifier), NAMES, seed=0)
    other = open_detector(None, "retinanet", str(classifier), NAMES, seed=1)
    assert not different(model, again) and {name.split(".")[0] for name in different(model, other)} == {
        "neck",
        "bbox_head",
    }


def test_a_new_detector_from_scratch_has_the_published_drop_path() -> None:
    model = open_detector(None, "retinanet", "p2t-tiny", NAMES, seed=0)
    assert model.config.backbone_config.drop_path_rate == 0.1 and model.config.num_labels == 2
    model = open_detector(None, "retinanet", "pvt-v2-b0", NAMES, seed=0, num_channels=4, drop_path_rate=0.2)
    assert model.config.backbone_config.drop_path_rate == 0.2 and model.config.num_channels == 4


def test_a_published_variant_has_the_published_drop_path(tmp_path: Path) -> None:
    """Whatever its classifier was trained with."""
    config = hf_pvt.variant_config("pvt-v2-b0", drop_path_rate=0.25)
    hf_pvt.PvtV2Model(config).save_pretrained(tmp_path)
    for given, expected in ((None, 0.1), (0.4, 0.4)):
        model = open_detector(None, "retinanet", str(tmp_path), NAMES, seed=0, drop_path_rate=given)
        assert model.config.backbone_config.drop_path_rate == expected


def test_a_published_file_as_backbone(tmp_path: Path) -> None:
    """With its variant recognised, and so the published detector's drop path."""
    torch.save(reference.checkpoint("pvt-v2-b0"), tmp_path / "pvt_v2_b0.pth")
    model = open_detector(None, "retinanet", str(tmp_path / "pvt_v2_b0.pth"), NAMES, seed=0, num_channels=4)
    assert model.config.backbone_config.drop_path_rate == 0.1 and model.config.num_channels == 4
    expected = hf_pvt.load_original(tmp_path / "pvt_v2_b0.pth", num_channels=4).pvt_v2.state_dict()
    theirs = model.backbone.state_dict()
    assert all(weight.equal(theirs[name]) for name, weight in expected.items() if name in theirs)


@pytest.mark.parametrize(
    ("detector", "fresh"),
    [
        (GFL, ["gfl_cls"]),
        (FASTER_RCNN, ["fc_cls", "fc_reg"]),
        (CASCADE_MASK_RCNN, ["fc_cls", "fc_reg", "conv_logits"]),
        (SPARSE_RCNN, ["fc_cls"]),
    ],
    ids=str,
)
def test_other_labels_keep_what_does_not_know_them(detector: DetectorRow, fresh: list[str], tmp_path: Path) -> None:
    model = tiny_detector(detector)
    model.save_pretrained(tmp_path)
    kept = open_detector(str(tmp_path), None, None, list(model.config.id2label.values()), seed=0)
    assert not different(kept, model)
    changed = open_detector(str(tmp_path), None, None, NAMES, seed=0)
    assert {name.split(".")[-2] for name in different(changed, model)} == {*fresh}
    assert changed.config.num_labels == 2 and changed.has_masks == model.has_masks
    if detector is CASCADE_MASK_RCNN:
        assert not open_detector(str(tmp_path), None, None, NAMES, seed=0, with_masks=False).has_masks


@pytest.mark.parametrize(
    ("architecture", "fresh"), [("detr", "class_labels_classifier"), ("deformable_detr", "class_embed")]
)
def test_other_labels_of_transformers_own_detectors(
    architecture: str, fresh: str, classifier: Path, tmp_path: Path
) -> None:
    """Fine-tuning keeps all but the layers that know the labels."""
    model = open_detector(None, architecture, str(classifier), ["cat", "dog", "bird"], seed=0)
    model.save_pretrained(tmp_path)
    changed = open_detector(str(tmp_path), None, None, NAMES, seed=1)
    names = different(changed, model)
    assert names and all(fresh in name for name in names)
    assert changed.config.id2label == {0: "cell", 1: "nucleus"} and type(changed) is type(model)


def test_a_pyramid_that_lacks_weights_starts_no_detr(classifier: Path, tmp_path: Path) -> None:
    model = hf_pvt.PvtV2ForImageClassification.from_pretrained(classifier)
    weights = {name: weight for name, weight in model.state_dict().items() if "layers.2.blocks.0.attention" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"cannot start a DetrForObjectDetection: it has no .*layers\.2\.blocks\.0"):
        open_detector(None, "detr", str(tmp_path), NAMES, seed=0)


def test_what_no_detector_starts_from(classifier: Path, tmp_path: Path) -> None:
    every = "--model_name_or_path and --architecture and --from_backbone"
    for given, said in (((None,) * 3, "neither"), (("a", "b", "c"), every), ((None, "b", None), "--architecture")):
        message = f"--model_name_or_path, or --architecture with --from_backbone; got {said}."
        with pytest.raises(ValueError, match=rf"^say where to start: either {re.escape(message)}$"):
            open_detector(*given, NAMES, seed=0)
    with pytest.raises(FileNotFoundError, match=r"folder pvt_v2_b0; did you mean pvt-v2-b0, which is from"):
        open_detector(None, "retinanet", "pvt_v2_b0", NAMES, seed=0)
    with pytest.raises(ValueError, match=r"has no detector's heads; give it as --from_backbone, with --architecture\."):
        open_detector(str(classifier), None, None, NAMES, seed=0)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*/none\.pth to start from\."):
        open_detector(str(tmp_path / "none.pth"), None, None, NAMES, seed=0)
    model = tiny_detector(RETINANET)
    weights = {name: weight for name, weight in model.state_dict().items() if "fpn_convs.1" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(ValueError, match=r"cannot start a RetinaNetForObjectDetection: it has no neck\.fpn_convs\.1"):
        open_detector(str(tmp_path / "part"), None, None, NAMES, seed=0)


def test_detr_as_published(classifier: Path, tmp_path: Path) -> None:
    """50 epochs without a warm-up, a tenth of the rate in the backbone, the losses of every layer; then fine-tuning."""
    model = open_detector(None, "detr", str(classifier), NAMES, seed=0)
    rates, recipe = schedule(model.config, "coco-50e", 16), coco_recipe(model.config, "coco-50e")
    assert rates.total_steps == 50 * STEPS_PER_EPOCH
    for epoch, rate in ((0, 1e-4), (32.99, 1e-4), (33, 1e-5), (49.99, 1e-5)):
        assert rates(int(epoch * STEPS_PER_EPOCH)) == pytest.approx(rate), epoch
    flags = {"weight_decay": 1e-4, "without_decay": ["none"], "max_grad_norm": 0.1, "random_crop": 0.0}
    assert recipe.flags() == flags | {"scale_lowest": 640 / 800, "backbone_rate": 0.1}
    with pytest.raises(ValueError, match=r"nothing is published of retinanet under coco-50e; take --recipe coco-1x\.$"):
        coco_recipe(hf_pvt.detector_config("retinanet", "pvt-small"), "coco-50e")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-4, without_decay=["none"], backbone_rate=0.1)
    assert {group["lr_scale"] for group in groups} == {0.1, 1.0} and {group["weight_decay"] for group in groups} == {
        1e-4
    }
    for group in groups:
        inside = {"model.backbone." in names[id(parameter)] for parameter in group["params"]}
        assert inside == {group["lr_scale"] == 0.1}
    with pytest.raises(ValueError, match=r"^--backbone_rate is for a detector's backbone, which a Linear is not on\.$"):
        parameter_groups(torch.nn.Linear(1, 1), 0.0, backbone_rate=0.1)
    assert type(model) is hf_pvt.DetrForObjectDetection
    assert (model.config.attention_dropout, model.config.activation_dropout, model.config.size_divisor) == (
        0.1,
        0.1,
        32,
    )
    model.save_pretrained(tmp_path)
    assert type(open_detector(str(tmp_path), None, None, NAMES, seed=0)) is hf_pvt.DetrForObjectDetection
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auxiliary_loss": True}))  # another network
    other = open_detector(str(tmp_path), None, None, NAMES, seed=0)
    assert type(other) is transformers.DetrForObjectDetection and other.config.auxiliary_loss


@pytest.mark.parametrize("architecture", ["detr", "deformable_detr"])
def test_transformers_own_detectors(architecture: str, classifier: Path) -> None:
    """The pyramid's weights are the checkpoint's; its blocks alone have lower rates; nothing is published of them."""
    model = open_detector(None, architecture, str(classifier), NAMES, seed=0, drop_path_rate=0.0)
    expected, backbone = hf_pvt.PvtV2Backbone.from_pretrained(classifier), model.model.backbone.model
    assert isinstance(backbone, hf_pvt.PvtV2Backbone) and model.config.num_labels == 2
    theirs = backbone.state_dict()
    shared = [name for name in expected.state_dict() if name in theirs]
    assert len(shared) > 50 and all(theirs[name].equal(expected.state_dict()[name]) for name in shared)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, 0.05, layer_decay=0.5):
        inside = {names[id(parameter)].startswith("model.backbone.model.") for parameter in group["params"]}
        assert inside == {group["lr_scale"] < 1}
    instead = {"detr": "take --recipe coco-50e", "deformable_detr": "leave --recipe out"}[architecture]
    with pytest.raises(ValueError, match=rf"nothing is published of {architecture} under coco-1x; {instead}\.$"):
        coco_recipe(model.config, "coco-1x")
    with pytest.raises(ValueError, match=rf"{architecture} has no masks; leave --with_masks out"):
        open_detector(None, architecture, "pvt-v2-b0", NAMES, seed=0, with_masks=True)
    with pytest.raises(ValueError, match=rf"{architecture} takes images of 3 channels, the backbone 4\."):
        open_detector(None, architecture, "pvt-v2-b0", NAMES, seed=0, num_channels=4)


# The terms of a loss


def test_means_of_sums() -> None:
    terms = {"a": LossTerm(torch.tensor(6.0), 4), "b": LossTerm(torch.tensor(0.0), 0)}
    found = means(terms, over_processes=True)  # alone
    assert found["a"].item() == 1.5 and found["b"].item() == 0 and not math.isnan(found["b"])
