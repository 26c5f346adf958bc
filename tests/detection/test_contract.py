"""What Transformers expects of a model, of every detector, on the three families and on Transformers' own backbones."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import (
    ATSS,
    BACKBONES,
    CASCADE_MASK_RCNN,
    DENSE,
    DETECTORS,
    FASTER_RCNN,
    GFL,
    MASK_RCNN,
    P2T,
    PVT,
    PVT_V2,
    RETINANET,
    SPARSE_RCNN,
    WITH_MASKS,
    DetectorRow,
    Family,
    label_branch,
    tiny_detector,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import ops
from transformers import (
    AutoConfig,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.models.pvt_v2.configuration_pvt_v2 import PvtV2Config as TransformersPvtV2Config

import hf_pvt

IMAGES = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
ONE_OF_A_KIND = (RETINANET, MASK_RCNN, SPARSE_RCNN)
# Each detector once, each backbone at least once; three and four maps of ours and of Transformers' own.
ON_BACKBONES = [
    (RETINANET, "pvt"),
    (ATSS, "resnet"),
    (GFL, "pvt_v2"),
    (MASK_RCNN, "swin"),
    (FASTER_RCNN, "pvt_v2"),
    (CASCADE_MASK_RCNN, "p2t"),
    (SPARSE_RCNN, "pvt"),
]
ON_FAMILIES = [(detector, {"resnet": "p2t", "swin": "pvt_v2"}.get(name, name)) for detector, name in ON_BACKBONES]
every = pytest.mark.parametrize("detector", DETECTORS, ids=str)
one_of_a_kind = pytest.mark.parametrize("detector", ONE_OF_A_KIND, ids=str)
on_backbones = pytest.mark.parametrize(("detector", "backbone"), ON_BACKBONES, ids=str)
on_families = pytest.mark.parametrize(("detector", "backbone"), ON_FAMILIES, ids=str)


def objects(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (96, 128)) -> dict[str, Tensor]:
    """Boxes of labels 0, 1, ... with masks that fill them."""
    corners = ops.box_convert(torch.tensor(boxes).view(-1, 4), "cxcywh", "xyxy") * torch.tensor(size[::-1] * 2)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    left, top, right, bottom = (side[:, None, None] for side in corners.unbind(1))
    return {
        "class_labels": torch.arange(len(boxes)) % 5,
        "boxes": torch.tensor(boxes).view(-1, 4),
        "masks": (x >= left) & (x < right) & (y >= top) & (y < bottom),
    }


LABELS = [objects((0.5, 0.5, 0.5, 0.6), (0.3, 0.3, 0.2, 0.3)), objects((0.25, 0.5, 0.5, 1.0))]


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, flat."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [tensor for value in values for tensor in tensors(value)]


def assert_same(output: Any, expected: Any, **tolerance: float) -> None:
    for ours, theirs in zip(tensors(output), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, **(tolerance or {"rtol": 0, "atol": 0}))


def assert_inside(boxes: Tensor, detector: DetectorRow) -> None:
    """Boxes as shares of their images reach over none, but for those of Sparse R-CNN, which are not clipped."""
    corners = ops.box_convert(boxes, "cxcywh", "xyxy")
    assert (corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6) == (detector is not SPARSE_RCNN)


def gradients(model: PreTrainedModel, labels: Any = None, images: Tensor = IMAGES) -> dict[str, Tensor | None]:
    """Of every parameter, in training; the sampling and the dropped paths are those of the seed."""
    torch.manual_seed(1)
    model.train().zero_grad()
    model(images, labels=labels or LABELS).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Saving and loading


@on_backbones
def test_save_and_load(detector: DetectorRow, backbone: str, tmp_path: Path) -> None:
    """Equal to the bit, by every Auto class that says it."""
    model = tiny_detector(detector, backbone)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(IMAGES)
    for auto_class in (AutoModelForObjectDetection, AutoModelForInstanceSegmentation):
        if auto_class.__name__ not in detector.model.auto_classes:
            continue
        loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is detector.model and not loaded.training
        assert not any(info.values()), info
        with torch.no_grad():
            assert_same(loaded(IMAGES), expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is detector.config and type(config.backbone_config) is type(model.config.backbone_config)
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == json.loads((tmp_path / "config.json").read_text())
    assert (expected.pred_masks is None) == (detector not in WITH_MASKS)


@one_of_a_kind
def test_half_precision_is_saved(detector: DetectorRow, tmp_path: Path) -> None:
    """bfloat16 comes back as it was, all of it; or as what is asked for."""
    tiny_detector(detector).bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in detector.model.from_pretrained(tmp_path, dtype="auto").parameters()} == {torch.bfloat16}
    model = detector.model.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # A configuration remembers the type; a detector built of it has one type all the same.
    config = copy.deepcopy(model.config)
    config.backbone_config.dtype = torch.bfloat16
    assert {p.dtype for p in detector.model(config).parameters()} == {torch.float32}


@every
def test_other_labels(detector: DetectorRow, tmp_path: Path) -> None:
    """What depends on the labels is an error, or fresh where that is asked for; the rest is the checkpoint's."""
    model = tiny_detector(detector)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        detector.model.from_pretrained(tmp_path, num_labels=7)
    swapped, info = detector.model.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    fresh = {name.rpartition(".")[0] for name, *_ in info["mismatched_keys"]}
    expected = {
        "retinanet": {"bbox_head.retina_cls"},
        "atss": {"bbox_head.atss_cls"},
        "gfl": {"bbox_head.gfl_cls"},
        "mask_rcnn": {"box_head.fc_cls", "box_head.fc_reg", "mask_head.conv_logits"},
        "faster_rcnn": {"box_head.fc_cls", "box_head.fc_reg"},
        "cascade_mask_rcnn": {
            layer.format(stage)
            for stage in range(3)
            for layer in ("box_heads.{}.fc_cls", "box_heads.{}.fc_reg", "mask_heads.{}.conv_logits")
        },
        "sparse_rcnn": {"box_heads.0.fc_cls", "box_heads.1.fc_cls"},
    }
    assert fresh == expected[detector.name]
    old = model.state_dict()
    for name, weight in swapped.state_dict().items():
        assert name.rpartition(".")[0] in fresh or weight.equal(old[name]), name
    labels = [{**label, "class_labels": label["class_labels"] + 5} for label in LABELS]
    output = swapped(IMAGES, labels=labels)
    assert output.loss.isfinite() and output.pred_labels.max() <= 6
    if detector is SPARSE_RCNN:
        return  # whose test of initialisation sees what is drawn
    bias, std = -math.log(99) if detector in DENSE else 0.0, 0.01
    if detector is CASCADE_MASK_RCNN:
        head = swapped.box_heads[2].fc_cls
        std = math.sqrt(2 / sum(head.weight.shape))
    else:
        head = label_branch(swapped) if detector in DENSE else swapped.box_head.fc_cls
    torch.testing.assert_close(head.bias, torch.full_like(head.bias, bias))
    assert head.weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(
    ("detector", "family", "role"),
    [
        (RETINANET, PVT, "classifier"),
        (ATSS, PVT_V2, "model"),
        (GFL, P2T, "backbone"),
        (MASK_RCNN, PVT_V2, "segmenter"),
        (CASCADE_MASK_RCNN, P2T, "classifier"),
        (SPARSE_RCNN, PVT, "model"),
    ],
    ids=str,
)
def test_from_backbone(detector: DetectorRow, family: Family, role: str, tmp_path: Path) -> None:
    """The pyramid's weights are taken from whatever has them, in any type; the labels are the detector's own."""
    torch.manual_seed(0)
    source = getattr(family, role)(family.tiny_config(depths=(1, 1, 1, 1))).to(torch.bfloat16)
    source.save_pretrained(tmp_path)
    model = detector.model.from_backbone(tmp_path, num_labels=3, fpn_hidden_size=64)
    theirs = (source if role in ("model", "backbone") else source.base_model).state_dict()
    ours = model.backbone.state_dict()
    assert ours.keys() <= theirs.keys()  # PVT has a class token
    assert all(weight.equal(theirs[name].float()) for name, weight in ours.items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.num_labels == 3 and not hasattr(model.config.backbone_config, "auto_map")
    assert model.backbone.config is model.config.backbone_config
    model.set_attn_implementation("eager")
    attentions = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    assert attentions and all(module.config._attn_implementation == "eager" for module in attentions)
    output = model.train()(IMAGES, labels=[{**label, "class_labels": label["class_labels"] * 0} for label in LABELS])
    assert output.loss.isfinite()


def test_from_backbone_with_a_configuration(tmp_path: Path) -> None:
    """All fields of the configuration but its backbone, and those that are given beside it."""
    P2T.classifier(P2T.tiny_config()).save_pretrained(tmp_path)
    config = RETINANET.config(num_head_convs=1, id2label={0: "cat", 1: "dog"})
    model = RETINANET.model.from_backbone(tmp_path, config, fpn_hidden_size=32)
    assert len(model.bbox_head.cls_convs) == 1 and model.config.id2label == {0: "cat", 1: "dog"}
    assert type(model.config.backbone_config) is P2T.config
    assert model.config.backbone_config.depths == list(P2T.tiny_config().depths)


# Initialisation

NORMAL = {"bbox_head": 0.01, "rpn_head": 0.01, "fc_cls": 0.01, "fc_reg": 0.001}


def fresh_detector(detector: DetectorRow, empty: bool, **fields: Any) -> Any:
    """On PVTv2, as it is built, or as it is opened without a single weight."""
    torch.manual_seed(0)
    config = detector.config(backbone_config=BACKBONES["pvt_v2"](), num_labels=20, fpn_hidden_size=64, **fields)
    return detector.model.from_pretrained(None, config=config, state_dict={}) if empty else detector.model(config)


@pytest.mark.parametrize(
    ("detector", "empty"),
    [(RETINANET, True), (ATSS, True), (GFL, True), (MASK_RCNN, True), (MASK_RCNN, False)],
    ids=str,
)
def test_initialisation(detector: DetectorRow, empty: bool) -> None:
    """The published distributions, and those that were meant, also of weights that a checkpoint lacks."""
    for name, layer in fresh_detector(detector, empty).named_modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) or name.startswith("backbone."):
            continue
        last = name.rpartition(".")[2]
        first = -math.log(99) if last in ("retina_cls", "atss_cls", "gfl_cls") else 0.0
        assert (layer.bias is None) == (detector in (ATSS, GFL) and name.endswith(".conv"))
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias, torch.full_like(layer.bias, first))
        inputs, outputs = (axis * layer.weight[0, 0].numel() for axis in layer.weight.shape[1::-1])
        part = name.partition(".")[0]
        if part == "neck":
            bound = math.sqrt(6 / (inputs + outputs))
            assert 0.98 * bound < layer.weight.abs().max() <= bound, name
            std = bound / math.sqrt(3)
        elif part == "mask_head":  # Kaiming, fan out, as PyTorch counts it of a transposed convolution as well
            std = math.sqrt(2 / outputs)
        elif "shared_fcs" in name:
            std = math.sqrt(2 / (inputs + outputs))
        else:
            std = NORMAL.get(last) or NORMAL[part]
        assert layer.weight.std().item() == pytest.approx(std, rel=0.08), name


def test_initialisation_of_the_cascade() -> None:
    """As run for the published weights: Xavier for all linears, PyTorch's own for the last two layers of mask heads."""
    model = fresh_detector(CASCADE_MASK_RCNN, empty=True, box_pool_size=3, num_box_convs=2)
    heads = [*model.box_heads.named_modules(), *model.mask_heads.named_modules()]
    layers = [(name, layer) for name, layer in heads if hasattr(layer, "weight")]
    assert len(layers) == 3 * (2 * 2 + 3) + 3 * 6
    for name, layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all() and (layer.running_var == 1).all()
            continue
        inputs, outputs = (axis * layer.weight[0, 0].numel() for axis in layer.weight.shape[1::-1])
        if name.endswith(("upsample", "conv_logits")):
            bound = 1 / math.sqrt(inputs)
            for drawn in (layer.weight, layer.bias):
                assert 0.7 * bound < drawn.abs().max() <= bound, name
            std = bound / math.sqrt(3)
        else:
            std = math.sqrt(2 / outputs) if isinstance(layer, nn.Conv2d) else math.sqrt(2 / (inputs + outputs))
            assert layer.bias is None or (layer.bias == 0).all()
        assert layer.weight.std().item() == pytest.approx(std, rel=0.08), name


@one_of_a_kind
def test_the_seed_decides(detector: DetectorRow) -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(detector.model(detector.tiny_config(BACKBONES["p2t"]())).state_dict().values())

    assert all(one.equal(other) for one, other in zip(weights(0), weights(0), strict=True))
    assert any(not one.equal(other) for one, other in zip(weights(0), weights(1), strict=True))


# Outputs


@on_backbones
def test_output(detector: DetectorRow, backbone: str) -> None:
    """Detections of one length, the best first, inside the image; evaluation with labels gives loss and detections.

    Places without a detection say so; a high threshold leaves nothing.
    """
    model = tiny_detector(detector, backbone)
    with torch.no_grad():
        plain, output = model(IMAGES), model(IMAGES, labels=LABELS, output_hidden_states=True)
    assert plain.loss is None and plain.loss_dict is None and plain.hidden_states is None and plain.attentions is None
    assert_same(plain.pred_boxes, output.pred_boxes)
    assert output.pred_scores.shape == output.pred_labels.shape == (2, 100) and output.pred_boxes.shape == (2, 100, 4)
    assert output.pred_scores.equal(output.pred_scores.sort(descending=True).values)
    found, least = output.pred_labels >= 0, getattr(model.config, "score_threshold", 0)
    assert found.any() and output.pred_labels.max() < 5 and (output.pred_scores[found] > least).all()
    assert not output.pred_scores[~found].any() and not output.pred_boxes[~found].any()
    assert_inside(output.pred_boxes, detector)
    if detector in WITH_MASKS:
        assert output.pred_masks.shape == (2, 100, 28, 28)
        assert output.pred_masks.min() >= 0 and output.pred_masks.max() <= 1 and not output.pred_masks[~found].any()
    terms = {"loss_cls", "loss_bbox"}
    terms |= {"loss_rpn_cls", "loss_rpn_bbox"} if detector not in DENSE else set()
    terms |= {"atss": {"loss_centerness"}, "gfl": {"loss_dfl"}}.get(detector.name, set())
    if detector is SPARSE_RCNN:
        terms = {f"stage{stage}_loss_{term}" for stage in range(2) for term in ("cls", "bbox", "iou")}
    terms |= {"loss_mask"} if detector is MASK_RCNN else set()
    if detector is CASCADE_MASK_RCNN:
        of_boxes = {"loss_cls", "loss_bbox", "loss_mask"}
        terms = terms - of_boxes | {f"s{stage}.{term}" for stage in range(3) for term in of_boxes}
    assert set(output.loss_dict) == terms and all(term.isfinite() and term > 0 for term in output.loss_dict.values())
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    expected = {"resnet": 5, "swin": 5}.get(backbone, 4)
    assert len(output.hidden_states) == expected
    if detector is not SPARSE_RCNN:  # which has no threshold
        model.config.score_threshold = 1.0
        with torch.no_grad():
            nothing = model(IMAGES[:1])
        assert (nothing.pred_labels == -1).all() and not nothing.pred_scores.any() and not nothing.pred_boxes.any()
        assert nothing.pred_masks is None or not nothing.pred_masks.any()
    training = model.train()(IMAGES, labels=LABELS)
    assert training.loss.requires_grad and training.pred_boxes is None and training.pred_scores is None


@on_families
def test_raw_outputs_and_tuples(detector: DetectorRow, backbone: str) -> None:
    """Attentions sum to 1, tuples hold the same, dense detectors show what they say of each anchor."""
    model = tiny_detector(detector, backbone)
    with torch.no_grad():
        output = model(IMAGES, output_attentions=True)
        as_tuple = model(IMAGES, output_attentions=True, return_dict=False)
        model.config.output_hidden_states = True
        assert_same(model(IMAGES).hidden_states, model(IMAGES, output_hidden_states=True).hidden_states)
    assert isinstance(as_tuple, tuple)
    assert_same(as_tuple, output.to_tuple())
    assert len(output.attentions) == sum(model.config.backbone_config.depths)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if detector in DENSE:
        per_place = 9 if detector is RETINANET else 1
        anchors = sum(per_place * math.ceil(96 / stride) * math.ceil(128 / stride) for stride in model.config.strides)
        assert output.logits.shape == (2, anchors, 5)
        others = {"box_deltas": (4,)} | ({"centerness": ()} if detector is ATSS else {})
        others = {"box_distributions": (4 * 17,)} if detector is GFL else others
        for name in ("box_deltas", "centerness", "box_distributions"):
            raw = getattr(output, name)
            assert (None if raw is None else raw.shape[2:]) == others.get(name)
            assert raw is None or raw.shape[:2] == (2, anchors)


# Batches


@on_families
def test_a_batch_is_its_images(detector: DetectorRow, backbone: str) -> None:
    """Two images of different sizes give each what it gives alone at the same padded size.

    The network does in float32. What follows compares, and would turn over where two scores differ by a rounding:
    here the network is in float64, which no rounding of float32 sees.
    """
    model = tiny_detector(detector, backbone)
    mask, images = torch.zeros(2, 96, 128, dtype=torch.long), IMAGES.clone()
    mask[0, :96, :70], mask[1, :64, :128] = 1, 1
    images *= mask[:, None]
    with torch.no_grad():
        together = model.encode(images)[1]
        for index in range(2):
            assert_same(
                {name: value[index : index + 1] for name, value in together.items()},
                model.encode(images[index : index + 1])[1],
                rtol=1e-5,
                atol=1e-5,
            )
        model.double()
        output, unmasked = model(images, pixel_mask=mask), model(images)
        for index in range(2):
            alone = model(images[index : index + 1], pixel_mask=mask[index : index + 1])
            for name, value in alone.items():
                torch.testing.assert_close(output[name][index : index + 1], value, rtol=1e-5, atol=1e-5)
    assert_inside(output.pred_boxes, detector)
    assert not torch.allclose(unmasked.pred_boxes, output.pred_boxes)


@pytest.mark.parametrize("detector", [*DENSE, *WITH_MASKS, SPARSE_RCNN], ids=str)
def test_the_loss_of_a_batch_is_one_mean(detector: DetectorRow) -> None:
    """Twice the same image has the loss of one: nothing is drawn where samples are larger than what there is."""
    fields = {} if detector in DENSE else {"rpn_samples": 10**6, "box_samples": 10**6}
    model = tiny_detector(detector, **fields)
    with torch.no_grad():
        one = model(IMAGES[:1], labels=LABELS[:1]).loss_dict
        two = model(IMAGES[[0, 0]], labels=LABELS[:1] * 2).loss_dict
    for name, term in one.items():
        torch.testing.assert_close(two[name], term, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("detector", [RETINANET, GFL], ids=str)
def test_anchors_beyond_an_image_learn_nothing(detector: DetectorRow) -> None:
    """Only those up to the image's own padded size, 64 x 96 here, have a gradient."""
    model = tiny_detector(detector).train()
    mask = torch.zeros(1, 96, 128)
    mask[:, :40, :70] = 1
    output = model(IMAGES[:1], pixel_mask=mask, labels=[objects()])
    output.logits.retain_grad()
    output.loss.backward()
    seen = output.logits.grad.abs().sum(2)[0] > 0
    levels = [torch.zeros(1, 1, -(-96 // stride), -(-128 // stride)) for stride in model.config.strides]
    assert seen.equal(model.anchors.inside(levels, (64, 96))) and 0 < seen.float().mean() < 0.6


@pytest.mark.parametrize(
    ("detector", "backbone", "size"),
    [
        (RETINANET, "pvt", (65, 97)),
        (RETINANET, "p2t", (32, 200)),
        (ATSS, "pvt_v2", (127, 66)),
        (GFL, "pvt", (64, 64)),
        (GFL, "p2t", (65, 97)),
        (MASK_RCNN, "p2t", (127, 66)),
        (MASK_RCNN, "pvt_v2", (32, 200)),
        (CASCADE_MASK_RCNN, "pvt", (127, 66)),
        (CASCADE_MASK_RCNN, "p2t", (64, 64)),
        (SPARSE_RCNN, "pvt_v2", (65, 97)),
        (SPARSE_RCNN, "pvt", (64, 200)),
    ],
    ids=str,
)
def test_sizes(detector: DetectorRow, backbone: str, size: tuple[int, int]) -> None:
    """From 64 pixels up, odd ones too: loss and detections."""
    model = tiny_detector(detector, backbone)
    with torch.no_grad():
        output = model(torch.randn(1, 3, *size), labels=[objects((0.5, 0.5, 0.5, 0.5), size=size)])
    assert output.loss.isfinite() and (output.pred_labels >= 0).any()


def test_images_that_do_not_fit() -> None:
    for detector in ONE_OF_A_KIND:
        model = tiny_detector(detector)
        for images, message in (
            (IMAGES[:, :1], "1 channels, the model expects 3"),
            (IMAGES[:, :, :31], "31x128 pixels are too small, the minimum is 32x32"),
            (IMAGES[0], "must have shape"),
            (IMAGES.byte(), "expected floats"),
        ):
            with pytest.raises(ValueError, match=message):
                model(images)
        with pytest.raises(ValueError, match="labels of image 1: the box .* reaches outside"):
            model(IMAGES, labels=[LABELS[0], objects((0.9, 0.5, 0.5, 0.5))])


# Training

MANY = torch.rand(1000, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + torch.tensor([0.4, 0.4, 0, 0])
GROUND_TRUTH: dict[str, Callable[[], list[dict[str, Tensor]]]] = {
    "none": lambda: [objects(), objects()],
    "none in one image": lambda: [objects(), objects((0.5, 0.5, 0.3, 0.3))],
    "whole image, border, below a pixel": lambda: [
        objects((0.5, 0.5, 1, 1), (0.05, 0.05, 0.1, 0.1), (0.95, 0.95, 0.1, 0.1), (1 - 1e-3, 0.5, 2e-3, 1)),
        objects((0.5, 0.5, 1, 1), (0.5, 0.5, 1e-3, 1e-3), (0.31, 0.7, 1e-5, 0.5)),
    ],
    "below a pixel": lambda: [objects((0.5, 0.5, 1e-3, 1e-3)), objects((0.31, 0.7, 1e-5, 0.5))],
    "1,000 boxes": lambda: [objects(*map(tuple, MANY.clamp(min=0.01).tolist())), LABELS[1]],
}


@one_of_a_kind
def test_crowds_are_not_learnt(detector: DetectorRow) -> None:
    """What the image processor keeps apart changes no loss."""
    model = tiny_detector(detector)
    crowd = {f"crowd_{name}": value for name, value in objects((0.5, 0.5, 0.9, 0.9)).items()}
    crowds = [label | crowd for label in LABELS]
    losses = []
    for labels in (LABELS, crowds):
        torch.manual_seed(0)
        losses.append(model(IMAGES, labels=labels).loss)
    assert losses[0].equal(losses[1])


@one_of_a_kind
def test_other_channels(detector: DetectorRow, tmp_path: Path) -> None:
    """In the configuration, of a classifier's folder and of a detector's: the first convolution is theirs, repeated."""
    config = tiny_detector(detector).config
    assert type(config)(**config.to_dict() | {"num_channels": 5}).backbone_config.num_channels == 5
    tiny_detector(detector).save_pretrained(tmp_path)
    model = type(tiny_detector(detector)).from_pretrained(tmp_path, num_channels=4).eval()
    assert model.config.num_channels == model.config.backbone_config.num_channels == 4
    theirs = tiny_detector(detector).get_input_embeddings().weight
    torch.testing.assert_close(model.get_input_embeddings().weight, theirs[:, [0, 1, 2, 0]] * 3 / 4)
    processor = hf_pvt.detection_image_processor(4, size={"shortest_edge": 64, "longest_edge": 96})
    pixels = np.random.default_rng(0).integers(0, 65536, (48, 64, 4), dtype=np.uint16)
    inputs = processor(pixels, return_tensors="pt")
    assert inputs["pixel_values"].shape[1] == 4
    with torch.no_grad():
        assert model(**inputs).pred_scores.isfinite().all()


def test_what_cannot_start_a_detector(tmp_path: Path) -> None:
    """A file, and a folder without some of the pyramid's weights."""
    (tmp_path / "pvt.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pvt\.pth is a file, expected a folder .* hf_pvt\.load_original"):
        hf_pvt.RetinaNetForObjectDetection.from_backbone(tmp_path / "pvt.pth")
    hf_pvt.PvtV2Model(PVT_V2.tiny_config()).save_pretrained(tmp_path / "bare")
    weights = load_file(tmp_path / "bare" / "model.safetensors")
    lost = next(name for name in weights if "layers.2" in name and "attention.query" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, tmp_path / "bare" / "model.safetensors")
    with pytest.raises(ValueError, match=r"bare cannot start a RetinaNet.*: it has no .*attention\.query"):
        hf_pvt.RetinaNetForObjectDetection.from_backbone(tmp_path / "bare", num_labels=3)


# No anchor of the proposals overlaps such a box by 0.3.
MAYBE_UNSEEN = ("none", "below a pixel")


@pytest.mark.parametrize(
    ("detector", "case"),
    [
        *((detector, case) for detector in (RETINANET, ATSS, GFL, MASK_RCNN, SPARSE_RCNN) for case in GROUND_TRUTH),
        (FASTER_RCNN, "none"),
        (CASCADE_MASK_RCNN, "none"),
        *(pytest.param(CASCADE_MASK_RCNN, case, marks=pytest.mark.slow) for case in [*GROUND_TRUTH][1:]),
    ],
    ids=str,
)
def test_ground_truth(detector: DetectorRow, case: str) -> None:
    """Finite losses, and a finite gradient for every parameter, also where there is nothing to find: DDP needs them."""
    model = tiny_detector(detector)
    for name, gradient in gradients(model, GROUND_TRUTH[case]()).items():
        assert gradient is not None and gradient.isfinite().all(), name
        corrects = "reg" in name or name.startswith("mask_head") or "init_proposal_bboxes" in name  # of positives
        corrects |= ".scales." in name or "centerness" in name
        in_regions = detector in (SPARSE_RCNN, CASCADE_MASK_RCNN) and name.startswith("neck.fpn_convs.")
        if in_regions or ".scales." in name and case != "none":
            continue  # the boxes may all be of one level, and no coarse anchor of the cascade lies inside the image
        assert not (case == "none" and corrects and gradient.any()), name
        # A bias of the keys moves all scores of a query alike: softmax cancels it.
        assert gradient.any() or "key.bias" in name or case in MAYBE_UNSEEN and corrects, name


@on_backbones
def test_gradients(detector: DetectorRow, backbone: str) -> None:
    """Of every parameter but those of Swin that its own maps do not use; the same twice, as the detections are."""
    model = tiny_detector(detector, backbone)
    with torch.no_grad():
        assert_same(copy.deepcopy(model)(IMAGES, output_hidden_states=True), model(IMAGES, output_hidden_states=True))
    found = gradients(model)
    first = {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
    norm = "backbone.swin.layernorm"
    assert found.keys() - first.keys() == ({f"{norm}.weight", f"{norm}.bias"} if backbone == "swin" else set())
    again = gradients(model)
    assert_same({name: again[name] for name in first}, first)


def test_masks_of_every_type() -> None:
    model = tiny_detector(MASK_RCNN)
    losses = []
    for kind in (torch.bool, torch.uint8, torch.float32, torch.int64):
        torch.manual_seed(1)
        labels = [{**label, "masks": label["masks"].to(kind)} for label in LABELS]
        losses.append(model(IMAGES, labels=labels).loss)
    assert all(loss.equal(losses[0]) for loss in losses)


@pytest.mark.parametrize(
    ("detector", "backbone", "use_reentrant"),
    [
        (RETINANET, "pvt", True),
        (GFL, "p2t", True),
        (MASK_RCNN, "pvt_v2", False),
        (SPARSE_RCNN, "p2t", False),
    ],
    ids=str,
)
def test_gradient_checkpointing(detector: DetectorRow, backbone: str, use_reentrant: bool) -> None:
    """The same gradients, of less memory."""
    model = tiny_detector(detector, backbone)
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.backbone.modules())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("detector", "whole", "kind"),
    [
        (RETINANET, False, torch.bfloat16),
        (RETINANET, True, torch.float16),
        (ATSS, False, torch.float16),
        (ATSS, True, torch.bfloat16),
        (GFL, False, torch.bfloat16),
        (GFL, True, torch.float16),
        (MASK_RCNN, False, torch.float16),
        (MASK_RCNN, True, torch.bfloat16),
        (CASCADE_MASK_RCNN, False, torch.bfloat16),
        pytest.param(CASCADE_MASK_RCNN, True, torch.float16, marks=pytest.mark.slow),
        (SPARSE_RCNN, False, torch.float16),
        (SPARSE_RCNN, True, torch.bfloat16),
    ],
    ids=str,
)
def test_half_precision(detector: DetectorRow, whole: bool, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network in half precision; decoding, suppression and losses in float32, and finite."""
    model, seen, batched_nms = tiny_detector(detector), set(), ops.batched_nms

    def recorded(boxes: Tensor, scores: Tensor, *args: Any) -> Tensor:
        seen.update((boxes.dtype, scores.dtype))
        return batched_nms(boxes, scores, *args)

    monkeypatch.setattr(ops, "batched_nms", recorded)
    expected = model(IMAGES, labels=LABELS)
    model = model.to(kind) if whole else model
    with torch.autocast("cpu", kind, enabled=not whole):
        output = model(IMAGES, labels=LABELS)
    assert seen == ({torch.float32} if detector is not SPARSE_RCNN else set())
    assert {output.loss.dtype, *(term.dtype for term in output.loss_dict.values())} == {torch.float32}
    assert output.pred_scores.dtype == output.pred_boxes.dtype == torch.float32
    assert all(tensor.isfinite().all() for tensor in tensors(output))
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Photographs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": IMAGES[index % 2], "labels": LABELS[index % 2]}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [item["labels"] for item in items],
    }


@one_of_a_kind
def test_trainer(detector: DetectorRow, tmp_path: Path) -> None:
    """Steps of two accumulated batches move the weights as their mean does; evaluation gives loss and detections."""
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, optim="sgd",
        learning_rate=1.0, max_grad_norm=0, lr_scheduler_type="constant", remove_unused_columns=False, use_cpu=True,
        label_names=["labels"], eval_do_concat_batches=False, report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    fields = {} if detector in DENSE else {"rpn_samples": 10**6, "box_samples": 10**6}
    model, seen = tiny_detector(detector, **fields), []
    expected = copy.deepcopy(model).train()
    data = torch.utils.data.Subset(Photographs(), [0, 0, 0, 0])
    expected(IMAGES[:1], labels=LABELS[:1]).loss.backward()
    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=data, eval_dataset=Photographs(),
        compute_metrics=lambda prediction: seen.append(prediction) or {},
    )  # fmt: skip
    trainer.train()
    for (name, moved), before in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved, before - before.grad, rtol=1e-4, atol=1e-5, msg=name)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    (prediction,) = seen
    scores, labels, boxes, *masks = prediction.predictions[0]
    assert scores.shape[1:] == labels.shape[1:] == (100,) and boxes.shape[1:] == (100, 4)
    assert [array.shape[1:] for array in masks] == ([(100, 28, 28)] if detector in WITH_MASKS else [])


# Configurations


BAD_FIELDS: dict[type[PreTrainedConfig], list[tuple[dict[str, Any], str]]] = {
    hf_pvt.RetinaNetConfig: [
        ({"strides": [8, 16]}, "`strides` has 2 values, expected 3 for the backbone's maps or more"),
        ({"negative_iou": 0.6}, "`negative_iou` must not exceed `positive_iou`, got 0.6 and 0.5"),
        ({"focal_gamma": -1.0}, "`focal_gamma` must not be negative"),
        ({"anchor_scales": []}, "`anchor_scales` must be positive numbers, at least one"),
        ({"score_threshold": 1.5}, r"`score_threshold` must lie in \[0, 1\], got 1.5"),
    ],
    hf_pvt.AtssConfig: [
        ({"box_stds": [0.1, 0.1, 0.2, 0.0]}, "`box_stds` must be four positive numbers"),
        ({"anchor_ratios": [0.5, 1, 2]}, "AtssConfig has one square anchor at each place, got"),
        ({"fpn_hidden_size": 32}, "`fpn_hidden_size` must be twice `num_groups` or .*, got 32 and 32"),
        ({"assigner_candidates": 0}, "`assigner_candidates` must be positive, got 0"),
    ],
    hf_pvt.GflConfig: [
        ({"anchor_scales": [4, 8]}, r"GflConfig has one square anchor at each place, got `anchor_scales` \[4, 8"),
        ({"fpn_hidden_size": 48}, "`fpn_hidden_size` must be twice `num_groups` or .*, got 48 and 32"),
        ({"reg_max": 0}, "`reg_max` must be positive, got 0"),
        ({"focal_gamma": math.nan}, "`focal_gamma` must not be negative"),
    ],
    hf_pvt.MaskRcnnConfig: [
        ({"strides": [4, 8, 16, 32]}, "`strides` has 4 values, expected 4 for the backbone's maps and one"),
        ({"rpn_negative_iou": 0.8}, "`rpn_negative_iou` must not exceed `rpn_positive_iou`"),
        ({"box_stds": [0.1, 0.1]}, "`box_stds` must be four positive numbers"),
        ({"anchor_ratios": [0.5, -1]}, "`anchor_ratios` must be positive numbers"),
        ({"max_detections": 0}, "`max_detections` must be positive, got 0"),
        ({"mask_pool_size": 0}, "`mask_pool_size` must be positive"),
    ],
    hf_pvt.CascadeMaskRcnnConfig: [
        ({"stage_positive_ious": [0.5]}, "one value for each stage, got 1, 3 and 3"),
        ({"stage_positive_ious": [0.5, 0.6, 7.0]}, r"`stage_positive_ious` must lie in \(0, 1\]"),
        ({"stage_box_stds": [[0.1] * 4, [0.1], [0.1] * 4]}, r"for each stage, got \[0.1\]"),
        ({"stage_loss_weights": [1, 0.5, 0]}, r"`stage_loss_weights` must be positive, got \[1"),
        ({"rpn_smooth_l1_beta": 0.0}, "`rpn_smooth_l1_beta` must be positive, got 0.0"),
    ],
    hf_pvt.SparseRcnnConfig: [
        ({"strides": [4, 8, 16, 32, 64]}, "`strides` has 5 values, expected 4 for the backbone's maps:"),
        ({"box_stds": [0.5, 0.5, 1]}, r"`box_stds` must be four positive numbers, got \[0.5, 0.5, 1\]"),
        ({"proposal_attention_heads": 7}, "a multiple of `proposal_attention_heads`, got 256 and 7"),
        ({"giou_weight": -2.0}, "`giou_weight` must not be negative, got -2.0"),
        ({"focal_alpha": 1.5}, r"`focal_alpha` must lie in \[0, 1\], got 1.5"),
        ({"num_proposals": 0}, "`num_proposals` must be positive, got 0"),
    ],
}


@pytest.mark.parametrize("config", BAD_FIELDS)
def test_bad_configurations(config: type[PreTrainedConfig]) -> None:
    """One sentence for each, with the field and what it was given."""
    for fields, message in BAD_FIELDS[config]:
        with pytest.raises(Exception) as raised:
            config(**fields)
        error = raised.value.__cause__ or raised.value  # Transformers wraps what a validation says
        assert isinstance(error, ValueError) and re.search(message, str(error)), (fields, error)


def test_bad_backbones() -> None:
    with pytest.raises(ValueError, match="is a BertConfig, which is no backbone's: it has no stages"):
        RETINANET.config(backbone_config=AutoConfig.for_model("bert"))
    with pytest.raises(ValueError, match="the model type 'nothing', which Transformers does not know"):
        RETINANET.config(backbone_config={"model_type": "nothing"})
    with pytest.raises(ValueError, match=r"gives 2 maps \(stage1, stage4\), RetinaNetConfig needs 3"):
        RETINANET.config(backbone_config={"model_type": "p2t", "out_features": ["stage1", "stage4"]})
    with pytest.raises(ValueError, match="at least 1 label, got num_labels=0"):
        RETINANET.model(RETINANET.tiny_config(BACKBONES["pvt"](), num_labels=0))


@on_families
def test_configurations(detector: DetectorRow, backbone: str) -> None:
    """A configuration survives its own dictionary, and leaves the one that it was given alone."""
    given = BACKBONES[backbone]()
    before = given.to_dict()
    config = detector.tiny_config(given, max_detections=17)
    assert given.to_dict() == before
    again = detector.config.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict() and again.max_detections == 17
    assert type(again.backbone_config) is type(given)
    levels = 3 if detector in DENSE else 4
    assert again.backbone_config.out_features == [f"stage{index}" for index in range(5 - levels, 5)]
    assert detector.model(again)(IMAGES[:1]).pred_scores is None  # fresh models train


def test_transformers_own_configuration_of_our_family() -> None:
    """Its backbone is ours, as it is after saving and opening."""
    config = RETINANET.config(backbone_config=TransformersPvtV2Config(depths=[1, 1, 1, 1]), fpn_hidden_size=32)
    assert type(config.backbone_config) is hf_pvt.PvtV2Config and config.backbone_config.depths == [1, 1, 1, 1]
    assert type(RETINANET.model(config).backbone) is hf_pvt.PvtV2Backbone
