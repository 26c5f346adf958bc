"""PVT + DETR against what MMDetection 2.13.0 computes with the published code, and what is its own."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conversion_runs import failure
from detection_checks import EXACT, TOLERANCE, check_gradient_norms, check_samples, gradients, in_float64
from detection_reference import Case, recordings
from export_original import export
from families import PVT, perturb
from transformers import AutoModelForObjectDetection, DetrConfig, PreTrainedModel

import hf_pvt
from hf_pvt.original.pyramid_layouts import to_original

(RECORDED,) = recordings("detr")
CASES = ("one", "two")
# Transformers' terms, which are reported without their weights: MMDetection's name and weight.
TERMS = {"loss_ce": ("loss_cls", 1), "loss_bbox": ("loss_bbox", 5), "loss_giou": ("loss_iou", 2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "detr.pth"
    RECORDED.save(path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return hf_pvt.load_original(checkpoint)


def labels_of(case: Case, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    return [{"class_labels": label["class_labels"], "boxes": label["boxes"].to(dtype)} for label in case.labels]


def test_there_and_back(checkpoint: Path, model: PreTrainedModel) -> None:
    """Transformers' model with the published settings; every tensor comes back equal to the bit."""
    assert isinstance(model, transformers.DetrForObjectDetection) and not model.training
    assert round(model.num_parameters() / 1e6, 2) == 41.65
    head = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("model.backbone."))
    assert head == 17_673_813
    config = model.config
    assert type(config) is DetrConfig and config.id2label == hf_pvt.coco_id2label()
    settings = ("dropout", "attention_dropout", "activation_dropout", "auxiliary_loss", "num_queries", "encoder_layers")
    assert [getattr(config, name) for name in settings] == [0.1, 0.1, 0.1, False, 100, 6]
    assert type(model.model.backbone.model) is hf_pvt.PvtBackbone
    assert config.backbone_config.out_features == ["stage4"] and config.backbone_config.drop_path_rate == 0.1
    assert config.size_divisor == 32
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    back = to_original(model, RECORDED.layout)
    assert back.keys() == weights.keys() and all(back[name].equal(weights[name]) for name in weights)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_outputs(model: PreTrainedModel, name: str) -> None:
    """In float32: the feature map, and logits and boxes of all six layers."""
    case = RECORDED.case(name)
    (feature,) = model.model.backbone.model(case.pixel_values).feature_maps
    output = model(case.pixel_values, case.pixel_mask, labels=labels_of(case))
    plain = model(case.pixel_values, case.pixel_mask)
    check_samples(feature, RECORDED, f"{name}/feature/0")
    layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    logits, boxes = RECORDED.tensor(f"{name}/logits"), RECORDED.tensor(f"{name}/boxes")
    assert len(layers) == len(logits) == 6
    for layer, their_logits, their_boxes in zip(layers, logits, boxes, strict=True):
        assert (layer["logits"] - their_logits).abs().max() < TOLERANCE * logits.abs().max()
        assert (layer["pred_boxes"] - their_boxes).abs().max() < TOLERANCE
    assert plain.loss is None and plain.decoder_hidden_states is None and plain.logits.equal(output.logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_detections_losses_and_gradients(model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: the detections in their order, every term of every layer, and what the sum does to the weights."""
    case = RECORDED.case(name)
    monkeypatch.setattr(torch, "ones", partial(torch.ones, dtype=torch.float64))  # Transformers' weights of the labels
    with in_float64(model):
        output = model(case.pixel_values.double(), case.pixel_mask, labels=labels_of(case, torch.float64))
        check_detections(output, case)
        total = RECORDED.tensor(f"{name}/loss/total").item()
        assert abs(output.loss.item() - total) < EXACT * total
        seen = 0
        for layer in range(6):
            for ours, (theirs, weight) in TERMS.items():
                value = output.loss_dict[ours if layer == 5 else f"{ours}_{layer}"] * weight
                expected = RECORDED.tensor(f"{name}/loss/{theirs if layer == 5 else f'd{layer}.{theirs}'}")
                assert abs(value.item() - expected.item()) < EXACT * total, (ours, layer)
                seen += 1
        assert seen == len({term for term in RECORDED.names(f"{name}/loss/") if "loss_" in term})
        output.loss.backward()
        check_gradient_norms(gradients(model, RECORDED), RECORDED, f"{name}/loss/grad")


def check_detections(output: Any, case: Case) -> None:
    processor = transformers.DetrImageProcessor()
    found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=case.original)
    for image, detections in enumerate(found):
        order = detections["scores"].argsort(descending=True)
        height, width = case.original[image]
        clipped = detections["boxes"][order].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        scores, labels, boxes = (
            RECORDED.tensor(f"{case.name}/detections/{image}/{part}") for part in ("scores", "labels", "boxes")
        )
        assert (detections["scores"][order] - scores).abs().max() <= 1e-5
        assert detections["labels"][order].equal(labels)
        assert (clipped - boxes).abs().max() <= 1e-5 * width


# Tiny ones


def tiny(**fields: Any) -> Any:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone_config=PVT.tiny_config(out_features=["stage4"]), d_model=32, num_queries=7, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=24, decoder_ffn_dim=40, num_labels=5, **fields,
    )  # fmt: skip
    model = hf_pvt.DetrForObjectDetection(config).eval()
    perturb(model, 0.3)
    return model


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = [
    {"class_labels": torch.tensor([0, 3]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.6], [0.3, 0.3, 0.2, 0.3]])},
    {"class_labels": torch.tensor([], dtype=torch.long), "boxes": torch.zeros(0, 4)},
]


def test_transformers_opens_what_is_saved(tmp_path: Path) -> None:
    """As its own class, with the same detections; ours opens it for more training."""
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(loaded) is transformers.DetrForObjectDetection
    ours, report = hf_pvt.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        expected = model(IMAGES, labels=LABELS)
        assert loaded(IMAGES).logits.equal(expected.logits)
        assert ours(IMAGES, labels=LABELS).loss.equal(expected.loss)
        # The last layer's terms are Transformers' own.
        theirs = loaded(IMAGES, labels=LABELS).loss_dict
    torch.testing.assert_close({term: expected.loss_dict[term] for term in theirs}, theirs)
    assert {f"{term}_0" for term in TERMS} <= expected.loss_dict.keys()


def test_tuples_and_hidden_states() -> None:
    model = tiny()
    with torch.no_grad():
        output = model(IMAGES, labels=LABELS, output_hidden_states=True)
        loss, *_ = model(IMAGES, labels=LABELS, return_dict=False)
    assert len(output.decoder_hidden_states) >= 2 and output.encoder_hidden_states is not None
    assert loss.equal(output.loss)


def test_half_precision() -> None:
    """Matching and losses are computed in float32."""
    expected = tiny()(IMAGES, labels=LABELS).loss
    loss = tiny().bfloat16()(IMAGES.bfloat16(), labels=LABELS).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


def test_every_parameter_learns() -> None:
    """Also with gradient checkpointing, whose gradients are the same; the encoder's input is not dropped."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model(IMAGES, labels=LABELS).loss.backward()
        unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert not {name for name in unused if not name.startswith("model.backbone.")}, unused
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert tiny(dropout=0.3).model.encoder.dropout == 0 and tiny(dropout=0.3).model.encoder.layers[0].dropout == 0.3


def test_sizes_are_read_of_a_checkpoint(tmp_path: Path) -> None:
    """Widths, depths, queries and labels; the heads of the attentions are eight."""
    model = tiny()
    torch.save({"state_dict": to_original(model, RECORDED.layout)}, tmp_path / "detr.pth")
    heads = model.config.backbone_config.num_attention_heads
    names = ("d_model", "num_queries", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
    loaded = hf_pvt.load_original(tmp_path / "detr.pth", num_attention_heads=heads)
    assert [getattr(loaded.config, name) for name in names] == [32, 7, 1, 2, 24, 40]
    assert loaded.config.num_labels == 5
    with torch.no_grad():
        assert loaded(IMAGES).logits.equal(model(IMAGES).logits)


def test_the_way_back(tmp_path: Path) -> None:
    """A saved folder becomes the published file again, to the bit; a card is not written, and that is said."""
    source, folder, again = (tmp_path / name for name in ("source.pth", "saved", "again.pth"))
    names = tuple("abcde")
    expected = to_original(tiny(), RECORDED.layout)
    torch.save({"meta": {"CLASSES": names}, "state_dict": expected}, source)
    hf_pvt.load_original(source, num_attention_heads=(1, 2, 3, 4)).save_pretrained(folder)
    export(folder, again)
    content = torch.load(again, weights_only=True)
    assert content["meta"] == {"CLASSES": names} and content["state_dict"].keys() == expected.keys()
    assert all(content["state_dict"][name].equal(weight) for name, weight in expected.items())
    assert "saved is a DETR, of which there is no card; open it with" in failure(folder, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_what_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """What would be another model, images that DETR cannot take, and a checkpoint without a part."""
    with pytest.raises(
        ValueError, match=r"^auxiliary_loss=True gives each decoder layer other inputs .*; leave it out"
    ):
        hf_pvt.load_original(checkpoint, auxiliary_loss=True)
    with pytest.raises(ValueError, match=r"^DETR takes images of 3 channels, got 4\.$"):
        hf_pvt.load_original(checkpoint, num_channels=4)
    weights = to_original(tiny(), RECORDED.layout)
    gone, lost = "bbox_head.query_embedding.weight", "bbox_head.transformer.decoder.post_norm.weight"
    for key, kind in ((gone, "is incomplete; missing or misshapen"), (lost, "does not fit: missing")):
        torch.save({name: weight for name, weight in weights.items() if name != key}, tmp_path / "detr.pth")
        with pytest.raises(ValueError, match=f"recognised as MMDetection DETR on published PVT, {kind} keys: {key}"):
            hf_pvt.load_original(tmp_path / "detr.pth", num_attention_heads=(1, 2, 3, 4))
