"""Published detectors: all 38 of the authors', MMDetection's own pyramids, and one clear sentence for all others."""

from pathlib import Path
from typing import Any

import detector_keys
import pytest
import torch
from checkpoints import FIELDS, StateDict, assert_same_weights, message_of, saved
from detector_checkpoints import CLASSES, ON_ALL_VARIANTS, TINY_HEADS, layout_of, own_pyramid, tiny
from families import FAMILIES, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family
from torch.utils.flop_counter import FlopCounterMode

import hf_pvt
from hf_pvt import PUBLISHED_DETECTORS, VARIANTS, detector_config, load_original
from hf_pvt.detection.detector_classes import DETECTORS
from hf_pvt.original.load_original import build_model, recognise_layout
from hf_pvt.original.pyramid_layouts import to_original


def shapes_of(weights: StateDict) -> dict[str, tuple[int, ...]]:
    return {key: tuple(weight.shape) for key, weight in weights.items()}


# The published ones


def test_the_table_is_complete() -> None:
    assert {(row.model_type, row.variant) for row in PUBLISHED_DETECTORS.values()} == {
        (detector, variant)
        for detector in DETECTORS
        for variant in (VARIANTS if detector in ON_ALL_VARIANTS else ("pvt-v2-b2-li", "pvt-v2-b2"))
    }
    assert {row.model_type for row in PUBLISHED_DETECTORS.values() if row.schedule == "1x"} == set(ON_ALL_VARIANTS)
    assert PUBLISHED_DETECTORS["retinanet-pvt-small"].box_ap_reported == 40.4
    assert PUBLISHED_DETECTORS["mask-rcnn-pvt-v2-b4"].mask_ap_reported == 42.7
    assert all(
        (row.mask_ap_reported is None) != ("mask_rcnn" in row.model_type) for row in PUBLISHED_DETECTORS.values()
    )
    unlike_most = {row.variant: row.drop_path_rate for row in PUBLISHED_DETECTORS.values() if row.drop_path_rate != 0.1}
    assert unlike_most == {"pvt-medium": 0.0, "pvt-large": 0.0, "p2t-base": 0.3, "p2t-large": 0.3}
    assert {row.license for row in PUBLISHED_DETECTORS.values() if "p2t" in row.variant} == {"cc-by-nc-sa-4.0"}


def counted_gmacs(model: Any) -> float:
    """One image of 800 x 1280; 1,000 proposals and 100 masks, or 300. One multiply-accumulate is two operations."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode(torch.empty(1, 3, 800, 1280))
        for head in getattr(model, "box_heads", [model.box_head] if hasattr(model, "box_head") else []):
            sparse = model.config.model_type == "sparse_rcnn"
            head(*([torch.empty(1, 300, 256)] if sparse else []), torch.empty(300 if sparse else 1000, 256, 7, 7))
        for head in getattr(model, "mask_heads", [model.mask_head] if hasattr(model, "mask_head") else []):
            head(torch.empty(100, 256, 14, 14), torch.zeros(100, dtype=torch.int64))
    return counter.get_total_flops() / 2e9


# One row of each detector and each family; every layout's values go there and back in a tiny one below.
QUICK = (
    "retinanet-pvt-tiny",
    "mask-rcnn-p2t-tiny",
    *(f"{head}-pvt-v2-b2-li" for head in ("atss", "gfl", "cascade-mask-rcnn", "sparse-rcnn")),
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED_DETECTORS]
)
def test_published(name: str) -> None:
    """Every key is used, there and back; configuration, counts and products are those of the table."""
    row = PUBLISHED_DETECTORS[name]
    keys = detector_keys.published_keys(row)
    weights = detector_keys.without_values(keys)
    layout = recognise_layout(weights, "file.pth")
    model = build_model(weights, layout, {}, {"attn_implementation": "eager"}, "file.pth")
    assert type(model) is DETECTORS[row.model_type]
    assert shapes_of(to_original(model, layout)) == keys
    with torch.device("meta"):
        expected = DETECTORS[row.model_type](detector_config(row.model_type, row.variant))
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.config.id2label == hf_pvt.coco_id2label()
    buffers = {name for name, _ in model.named_buffers()}
    learnt = {layout.name(name.removeprefix("backbone.")) for name in model.state_dict() if name not in buffers}
    assert model.num_parameters() == row.parameters == sum(torch.Size(keys[key]).numel() for key in learnt)
    assert round(counted_gmacs(model), 2) == row.gmacs_800x1280


AUTHORS_COUNTS = {
    "retinanet-pvt-v2-b2-li": 227.4,
    "retinanet-pvt-v2-b2": 290.7,
    "atss-pvt-v2-b2-li": 194.26,
    "atss-pvt-v2-b2": 257.55,
    "gfl-pvt-v2-b2-li": 197.36,
    "gfl-pvt-v2-b2": 260.65,
    "cascade-mask-rcnn-pvt-v2-b2-li": 724.53,
    "cascade-mask-rcnn-pvt-v2-b2": 787.82,
    "sparse-rcnn-pvt-v2-b2-li": 151.31,
    "sparse-rcnn-pvt-v2-b2": 214.60,
}


def test_gmacs_are_near_the_papers() -> None:
    """Those of PVTv2, whose counter took in norms and some additions, but no products of dynamic convolutions."""
    unseen = {name: 6 * 300 * 49 * 2 * 256 * 64 / 1e9 if "sparse" in name else 0 for name in AUTHORS_COUNTS}
    ours = {name: PUBLISHED_DETECTORS[name].gmacs_800x1280 - unseen[name] for name in AUTHORS_COUNTS}
    assert ours == pytest.approx(AUTHORS_COUNTS, rel=0.005)


def test_the_recorded_own_pyramids() -> None:
    assert set(detector_keys.with_own_pyramid()) == {"pvt-tiny", "pvt-large", "pvt-v2-b0", "pvt-v2-b5"}


@pytest.mark.parametrize(
    ("variant", "detector"),
    [("pvt-tiny", "retinanet"), ("pvt-large", "mask_rcnn"), ("pvt-v2-b0", "mask_rcnn"), ("pvt-v2-b5", "retinanet")],
)
def test_own_pyramids(variant: str, detector: str) -> None:
    """MMDetection's layout has one entry less in PVT's last position embeddings, and 1e-6 in every norm."""
    row = PUBLISHED_DETECTORS[f"{detector.replace('_', '-')}-{variant}"]
    keys = detector_keys.own_keys(row)
    weights = detector_keys.without_values(keys)
    layout = recognise_layout(weights, "file.pth")
    model = build_model(weights, layout, {}, {}, "file.pth")
    assert shapes_of(to_original(model, layout)) == keys
    fields = {"reduction_layer_norm_eps": 1e-6, "drop_path_rate": 0.1}
    with torch.device("meta"):
        expected = DETECTORS[detector](detector_config(detector, variant, **fields))
    assert model.config.to_dict() == expected.config.to_dict()


# The configurations


def test_overrides_of_a_configuration() -> None:
    """Of the detector, and of the backbone where only that has the field."""
    config = detector_config(
        "mask_rcnn", "pvt-v2-b0", num_labels=3, drop_path_rate=0.2, num_channels=4, nms_threshold=1
    )
    assert (config.num_labels, config.nms_threshold, config.id2label[2]) == (3, 1, "LABEL_2")
    assert (config.backbone_config.drop_path_rate, config.num_channels) == (0.2, 4)
    assert config.fpn_hidden_size == 256


def test_names_that_are_unknown() -> None:
    with pytest.raises(ValueError, match=r"^unknown detector 'yolo', expected one of: retinanet, mask_rcnn, .*\.$"):
        detector_config("yolo", "pvt-v2-b0")
    with pytest.raises(ValueError, match=r"^unknown variant 'pvt-v2', expected one of: pvt-tiny, .*p2t-large\.$"):
        detector_config("retinanet", "pvt-v2")


# Tiny ones


METAS: dict[str, dict[str, Any]] = {
    "2.x": {"meta": {"CLASSES": CLASSES, "mmdet_version": "2.13.0", "config": "model = dict()"}},
    "3.x": {"meta": {"dataset_meta": {"classes": CLASSES, "palette": [(220, 20, 60)] * 5}}},
}


@pytest.mark.parametrize("detector", TINY_HEADS)
def test_there_and_back(detector: str) -> None:
    """On every pyramid, MMDetection's own too: widths and depths are read, and weights come back equal to the bit."""
    for family in FAMILIES:
        model = tiny(family, detector)
        published = to_original(model, layout_of(model))
        for weights in (published,) if family is P2T else (published, own_pyramid(published)):
            layout = recognise_layout(weights, "file.pth")
            assert (layout.model_type, layout.detector) == (family.config.model_type, detector)
            loaded = build_model(weights, layout, {}, {}, "file.pth")
            assert type(loaded) is type(model), layout.source
            told = ("num_labels", "fpn_hidden_size", *TINY_HEADS[detector])
            assert all(getattr(loaded.config, name) == getattr(model.config, name) for name in told), layout.source
            again = to_original(loaded, layout)
            assert again.keys() == weights.keys(), layout.source
            assert all(again[key].equal(weight) for key, weight in weights.items()), layout.source
            if weights is published:
                assert_same_weights(loaded, model)


@pytest.mark.parametrize(
    ("family", "detector", "meta"), [(PVT_V2_LINEAR, "retinanet", "2.x"), (P2T, "mask_rcnn", "3.x")], ids=str
)
def test_a_training_checkpoint(family: Family, detector: str, meta: str, tmp_path: Path) -> None:
    """Its labels are read; the optimizer's state is left, and P2T's classifier; the model computes the same."""
    model = tiny(family, detector)
    weights = to_original(model, layout_of(model))
    if family is P2T:
        weights |= {"backbone.head.weight": torch.ones(1000, 16), "backbone.head.bias": torch.ones(1000)}
    path = saved(METAS[meta] | {"state_dict": weights, "optimizer": {"state": {}}}, tmp_path / "detector.pth")
    loaded = load_original(path)
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert loaded.config.id2label == dict(enumerate(CLASSES)) and loaded.config.label2id["car"] == 2
    assert not hasattr(loaded.config, "palette")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        outputs, expected = loaded(images), model(images)
    assert outputs.pred_scores.equal(expected.pred_scores) and outputs.pred_boxes.equal(expected.pred_boxes)


def test_faster_rcnn(tmp_path: Path) -> None:
    """Mask R-CNN's checkpoint without a mask head."""
    model = tiny(PVT_V2, "mask_rcnn", with_masks=False)
    weights = to_original(model, layout_of(model))
    assert not any("mask_head" in key for key in weights)
    loaded = load_original(saved({"state_dict": weights}, tmp_path / "detector.pth"))
    assert_same_weights(loaded, model)
    assert loaded.config.with_masks is False


def test_what_the_caller_says(tmp_path: Path) -> None:
    """Names, fields of the detector, and fields of its backbone alone."""
    model = tiny(PVT, backbone_config=PVT.tiny_config(**FIELDS, image_size=(64, 96)))
    content = METAS["2.x"] | {"state_dict": to_original(model, layout_of(model))}
    path = saved(content, tmp_path / "detector.pth")
    assert "pass image_size=(height, width)" in message_of(path)
    names = dict(enumerate("abcde"))
    config = load_original(path, image_size=(64, 96), id2label=names, nms_threshold=0.6).config
    assert (config.id2label, config.nms_threshold, config.backbone_config.image_size) == (names, 0.6, (64, 96))


def test_images_of_other_channels(tmp_path: Path) -> None:
    model = tiny(PVT_V2)
    path = saved({"state_dict": to_original(model, layout_of(model))}, tmp_path / "detector.pth")
    loaded = load_original(path, num_channels=5)
    assert loaded.config.num_channels == loaded.config.backbone_config.num_channels == 5
    assert torch.isfinite(loaded(torch.randn(1, 5, 64, 64)).logits).all()


def test_80_labels_are_cocos(tmp_path: Path) -> None:
    for count, name in ((80, "toothbrush"), (79, "LABEL_78")):
        weights = to_original(model := tiny(PVT_V2, num_labels=count), layout_of(model))
        config = load_original(saved({"state_dict": weights}, tmp_path / "detector.pth")).config
        assert config.id2label[count - 1] == name and config.label2id[name] == count - 1


# MMDetection's own pyramids


@pytest.mark.parametrize("family", [PVT, PVT_V2], ids=str)
def test_own_pyramids_compute_the_same(family: Family, tmp_path: Path) -> None:
    """With the authors' epsilons to the bit; with MMDetection's, which are read, nearly."""
    model = tiny(family)
    weights = own_pyramid(to_original(model, layout_of(model)))
    path = saved(METAS["3.x"] | {"state_dict": weights}, tmp_path / "detector.pth")
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected = model(images).logits
        assert load_original(path, reduction_layer_norm_eps=1e-5)(images).logits.equal(expected)
        loaded = load_original(path)
        difference = (loaded(images).logits - expected).abs().max() / expected.abs().max()
    assert 0 < difference < 1e-3
    norms = [module for module in loaded.backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms and all(norm.eps == 1e-6 for norm in norms)


def test_the_class_tokens_position_is_invented() -> None:
    """MMDetection threw it away; it is zero here, in front."""
    row = PUBLISHED_DETECTORS["retinanet-pvt-tiny"]
    layout = recognise_layout(detector_keys.without_values(detector_keys.own_keys(row)), "file.pth")
    ours = "backbone.encoder.layers.3.patch_embedding.position_embeddings"
    positions = torch.randn(1, 49, 8)
    table = layout.part(positions, ours)
    assert table[:, 0].count_nonzero() == 0 and table[:, 1:].equal(positions)
    assert layout.whole(table, ours).equal(positions)


# What is refused


@pytest.mark.parametrize(
    ("detector", "key"),
    [("retinanet", "bbox_head.cls_convs.1.conv.bias"), ("mask_rcnn", "roi_head.mask_head.upsample.bias")],
)
def test_unknown_missing_and_misshapen_keys_are_named_at_once(detector: str, key: str, tmp_path: Path) -> None:
    model = tiny(P2T, detector)
    weights = to_original(model, layout_of(model))
    del weights[key]
    weights |= {"neck.fpn_convs.0.conv.bias": torch.ones(9), "neck.fpn_convs.9.conv.bias": torch.ones(16)}
    message = message_of(saved({"state_dict": weights}, tmp_path / "detector.pth"))
    assert message == (
        f", recognised as {layout_of(model).source}, does not fit: unknown keys: neck.fpn_convs.9.conv.bias; "
        f"missing keys: {key}; misshapen keys: neck.fpn_convs.0.conv.bias (9,) instead of (16,)."
    )


def test_incomplete(tmp_path: Path) -> None:
    model = tiny(PVT_V2, "mask_rcnn")
    weights = to_original(model, layout_of(model))
    for gone in ("neck.lateral_convs.0.conv.weight", "backbone.patch_embed2.proj.weight"):
        rest = {key: weight for key, weight in weights.items() if key != gone}
        assert message_of(saved({"state_dict": rest}, tmp_path / "detector.pth")) == (
            f", recognised as MMDetection R-CNN on published PVTv2, is incomplete; missing or misshapen keys: {gone}."
        )


def test_another_detector(tmp_path: Path) -> None:
    """Of a Cascade R-CNN nothing is read by half, nor is it taken for a segmenter."""
    model = tiny(PVT_V2, "mask_rcnn")
    weights = to_original(model, layout_of(model))
    weights = {key.replace("bbox_head.", "bbox_head.0."): weight for key, weight in weights.items()}
    assert message_of(saved({"state_dict": weights}, tmp_path / "cascade.pth")).startswith(
        " is none of: published P2T, "
    )


def test_labels_that_the_head_does_not_have(tmp_path: Path) -> None:
    model = tiny(PVT_V2)
    content = {"meta": {"CLASSES": ("cat", "dog")}, "state_dict": to_original(model, layout_of(model))}
    message = message_of(saved(content, tmp_path / "detector.pth"))
    assert message.endswith(
        "misshapen keys: bbox_head.retina_cls.bias (45,) instead of (18,), bbox_head.retina_cls.weight (45, 16, 3, 3) "
        "instead of (18, 16, 3, 3)."
    )
