"""What Transformers expects of a model: saving, initialisation, outputs, labels, checkpointing, pipelines."""

import logging
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, P2T, PVT, PVT_V2, Family, perturb
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PvtImageProcessor, pipeline

import hf_pvt
from hf_pvt.pyramid.feed_forward import ConvFeedForward, FeedForward
from hf_pvt.pyramid.layers import DropPath

ROLES = ("model", "classifier", "backbone", "segmenter")
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(family: Family, role: str = "classifier", **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(family, role)(family.tiny_config(**overrides)).eval()
    perturb(model)
    return model


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors of an output, flat."""
    flat = []
    for value in output.to_tuple():
        flat += [value] if isinstance(value, torch.Tensor) else list(value)
    return flat


def assert_same(output: Any, expected: Any, **tolerance: float) -> None:
    for ours, theirs in zip(tensors(output), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


# Saving and loading


FLOAT32 = [(family, role, torch.float32) for family in FAMILIES for role in ROLES]
BFLOAT16 = [(family, role, torch.bfloat16) for family, role in zip(cycle(FAMILIES), ROLES, strict=False)]


@pytest.mark.parametrize(("family", "role", "dtype"), FLOAT32 + BFLOAT16, ids=str)
def test_save_and_load(family: Family, role: str, dtype: torch.dtype, tmp_path: Path) -> None:
    overrides = {"out_indices": [1, 3]} if role == "backbone" else {}
    model = build(family, role, **overrides).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, info = getattr(family, role).from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    assert loaded.dtype == dtype
    assert not loaded.training
    with torch.no_grad():
        assert_same(loaded(IMAGES.to(dtype)), model(IMAGES.to(dtype)), rtol=0, atol=0)


def test_base_from_classifier_and_back(family: Family, tmp_path: Path) -> None:
    """A base model opens a classifier's folder; a classifier opens a base model's, with a fresh head that it names."""
    classifier = build(family)
    classifier.save_pretrained(tmp_path / "classifier")
    base, info = family.model.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(info.values()), info
    assert_same(base(IMAGES), classifier.base_model(IMAGES), rtol=0, atol=0)
    base.save_pretrained(tmp_path / "base")
    reopened, info = family.classifier.from_pretrained(tmp_path / "base", num_labels=7, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert_same(reopened.base_model(IMAGES), base(IMAGES), rtol=0, atol=0)
    assert reopened.classifier.bias.eq(0).all()
    assert 0.01 < reopened.classifier.weight.std() < 0.03


def test_mismatched_head(tmp_path: Path) -> None:
    """Another number of classes is an error, or a fresh head where that is asked for."""
    classifier = build(P2T)
    classifier.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        P2T.classifier.from_pretrained(tmp_path, num_labels=9)
    swapped, info = P2T.classifier.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0] for entry in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert swapped(IMAGES).logits.shape == (2, 9)
    assert_same(swapped.base_model(IMAGES), classifier.base_model(IMAGES), rtol=0, atol=0)


# Initialisation


def modules(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("empty", [False, True], ids=["built", "from an empty state dict"])
def test_initialisation(family: Family, empty: bool) -> None:
    """The published distributions, also of weights that a checkpoint lacks."""
    torch.manual_seed(0)
    config = family.config(depths=(1, 1, 1, 1), num_labels=100)
    model = (
        family.classifier.from_pretrained(None, config=config, state_dict={}) if empty else family.classifier(config)
    )
    convolutional = {
        id(linear) for ffn in modules(model, ConvFeedForward) for linear in (ffn.dense1, ffn.dense2) if family is P2T
    }
    for linear in modules(model, nn.Linear):
        if id(linear) in convolutional:
            bound = linear.in_features**-0.5
            assert 0.9 * bound < linear.weight.abs().max() <= bound
            assert 0 < linear.bias.abs().max() <= bound
        else:
            assert 0.018 < linear.weight.std() < 0.022
            assert linear.weight.abs().max() <= 2.0  # truncated at two units, not at two deviations, as published
            assert linear.bias.eq(0).all()
    for conv in modules(model, nn.Conv2d):
        if family is PVT_V2:
            fan_out = conv.weight[0, 0].numel() * conv.out_channels / conv.groups
            assert 0.8 < conv.weight.std() * (fan_out / 2) ** 0.5 < 1.2
            assert conv.bias.eq(0).all()
        else:
            bound = conv.weight[0].numel() ** -0.5
            assert 0.9 * bound < conv.weight.abs().max() <= bound
            assert 0 < conv.bias.abs().max() <= bound
    for norm in modules(model, nn.LayerNorm):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
    if family is PVT:
        for name, parameter in model.named_parameters():
            if name.endswith(("position_embeddings", "cls_token")):
                assert 0.017 < parameter.std() < 0.023, name


def test_drop_path_schedule(family: Family) -> None:
    """Linear over all blocks, from 0 to the configured rate."""
    model = build(family, "model", depths=(1, 2, 2, 1), drop_path_rate=0.5)
    assert [layer.rate for layer in modules(model, DropPath)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_drop_path() -> None:
    """Whole images are dropped, and the mean is kept."""
    drop_path, tokens = DropPath(0.25).train(), torch.ones(4000, 3, 2)
    kept = drop_path(tokens)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.amin((1, 2)).equal(kept.amax((1, 2)))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop_path.eval()(tokens) is tokens


def test_dropped_blocks_are_identities(family: Family) -> None:
    """Both branches of every block are dropped: of a stage only its patch embedding and norm are left."""
    model = build(family, "backbone", drop_path_rate=0.5, out_indices=[0, 1, 2, 3]).train()
    for drop_path in modules(model, DropPath):
        drop_path.rate = 1 - 1e-9
    maps = model(IMAGES).feature_maps
    for stage in model.encoder.layers:
        stage.blocks = nn.ModuleList()
    torch.testing.assert_close(maps, model(IMAGES).feature_maps, rtol=0, atol=0)


# Outputs


def test_hidden_states(family: Family) -> None:
    """Four maps at 1/4 to 1/32, by argument or configuration; all, one, or some by index."""
    model = build(family, "model")
    output = model(IMAGES, output_hidden_states=True)
    widths = model.config.hidden_sizes
    assert [tuple(state.shape) for state in output.hidden_states] == [
        (2, width, 16 >> stage, 24 >> stage) for stage, width in enumerate(widths)
    ]
    assert model(IMAGES).hidden_states is None
    if family is PVT:
        assert output.last_hidden_state.shape == (2, 1 + 2 * 3, widths[-1])
    else:
        assert output.hidden_states[-1].equal(output.last_hidden_state)
    model.config.output_hidden_states = True
    assert_same(model(IMAGES), output, rtol=0, atol=0)


def test_backbone_maps_are_hidden_states(family: Family) -> None:
    """The chosen stages, by index or name; the channels it announces; hidden states only where asked for."""
    backbone = build(family, "backbone", out_features=["stage2", "stage4"])
    output = backbone(IMAGES, output_hidden_states=True)
    assert [feature_map.shape[1] for feature_map in output.feature_maps] == backbone.channels
    assert output.feature_maps[0].equal(output.hidden_states[1])
    assert output.feature_maps[1].equal(output.hidden_states[3])
    assert backbone(IMAGES).hidden_states is None
    backbone.out_indices = [0]
    assert backbone(IMAGES).feature_maps[0].equal(output.hidden_states[0])


def test_attentions(family: Family) -> None:
    """One matrix (B, heads, N, M) per block, rows summing to one, whatever implementation is set."""
    model = build(family)
    config = model.config
    heads = [h for h, depth in zip(config.num_attention_heads, config.depths, strict=True) for _ in range(depth)]
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        output = model(IMAGES, output_attentions=True)
        assert [weights.shape[1] for weights in output.attentions] == heads, implementation
        for weights in output.attentions:
            assert weights.shape[0] == 2
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        torch.testing.assert_close(output.logits, model(IMAGES).logits)


def test_pooled_output(family: Family) -> None:
    """What the classifier reads: PVT's class token, of the others the mean of the last map."""
    classifier = build(family)
    output = classifier.base_model(IMAGES)
    tokens = output.last_hidden_state
    expected = tokens[:, 0] if family.name == "pvt" else tokens.flatten(2).mean(2)
    torch.testing.assert_close(output.pooler_output, expected)
    torch.testing.assert_close(classifier.classifier(expected), classifier(IMAGES).logits)


# Forward is written once for each role; PVT's bare model gives tokens.
@pytest.mark.parametrize(
    ("family", "role"), [(PVT, "model"), *zip(cycle((PVT_V2, P2T, PVT)), ROLES, strict=False)], ids=str
)
def test_tuples(family: Family, role: str) -> None:
    model = build(family, role)
    output = model(IMAGES, output_hidden_states=True, output_attentions=True)
    as_tuple = model(IMAGES, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(output.to_tuple()) == (4 if role == "model" else 3)  # with the pooled output
    for ours, theirs in zip(as_tuple, output.to_tuple(), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.equal(other)


@pytest.mark.parametrize(
    "implementation",
    ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # flex attention compiles
)
def test_attention_implementations(family: Family, implementation: str) -> None:
    model = build(family)
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        expected = model(IMAGES).logits
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(model(IMAGES).logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# Labels and losses


@pytest.mark.parametrize("family", [PVT, PVT_V2], ids=str)  # PVTv2's configuration is Transformers'
def test_labels(family: Family) -> None:
    names = {0: "cat", 1: "dog", 2: "horse"}
    assert family.tiny_config(num_labels=7).num_labels == 7
    assert family.config(id2label=names).num_labels == 3
    assert family.config(id2label={str(label): name for label, name in names.items()}).id2label == names
    assert family.tiny_config(num_labels=3, id2label=names).id2label == names
    assert build(family, num_labels=3, id2label=names)(IMAGES).logits.shape == (2, 3)
    assert build(family, num_labels=1)(IMAGES).logits.shape == (2, 1)


LOSSES = {
    "single_label_classification": (torch.tensor([1, 3]), F.cross_entropy),
    "multi_label_classification": (
        torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]),
        F.binary_cross_entropy_with_logits,
    ),
    "regression": (torch.tensor([[0.1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]), F.mse_loss),
}


@pytest.mark.parametrize(("family", "problem_type"), list(zip(FAMILIES, LOSSES, strict=True)), ids=str)
def test_losses(family: Family, problem_type: str) -> None:
    labels, loss = LOSSES[problem_type]
    model = build(family, problem_type=problem_type)
    output = model(IMAGES, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


# Training


@pytest.mark.parametrize(
    ("family", "role", "use_reentrant"),
    list(zip(sorted(FAMILIES * 3, key=str), cycle(ROLES[1:]), cycle((False, True)), strict=False)),
    ids=str,
)
def test_gradient_checkpointing(family: Family, role: str, use_reentrant: bool) -> None:
    """Every parameter gets the gradient that it gets without; the same images are dropped in the recomputation.

    In float64: without a graph other kernels run, whose rounding can turn a ReLU.
    """

    def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        output = model(IMAGES.double())
        outputs = output.feature_maps if role == "backbone" else [output.logits]
        sum(tensor.square().sum() for tensor in outputs).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    overrides = {"out_indices": [0, 1, 2, 3]} if role == "backbone" else {}
    expected = gradients(build(family, role, drop_path_rate=0.3, **overrides).double().train())
    model = build(family, role, drop_path_rate=0.3, **overrides).double().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients(model).items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)
        # A bias of the keys moves all scores of a query alike: softmax cancels it.
        assert gradient.abs().max() > 0 or "attention.key.bias" in name, name


def test_no_split_modules(family: Family) -> None:
    model = build(family)
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names


# Pipelines


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_pipelines(family: Family, caplog: pytest.LogCaptureFixture, own_warnings: pytest.WarningsRecorder) -> None:
    """Classification and features of a real photograph: what the model gives by hand, and not a word of warning."""
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    processor = PvtImageProcessor(size={"height": 64, "width": 64})
    pixel_values = processor(photo, return_tensors="pt")["pixel_values"]
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        classifier = build(family)
        results = pipeline("image-classification", model=classifier, image_processor=processor)(photo, top_k=5)
        features = pipeline("image-feature-extraction", model=classifier.base_model, image_processor=processor)(photo)
    with torch.no_grad():
        scores = classifier(pixel_values).logits.softmax(-1)[0]
        expected = classifier.base_model(pixel_values).last_hidden_state
    assert [result["score"] for result in results] == pytest.approx(scores.sort(descending=True).values.tolist())
    torch.testing.assert_close(torch.tensor(features), expected)
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in own_warnings] == []


def test_feed_forwards_differ_as_published() -> None:
    """PVT's has no convolution; the linear PVTv2 and P2T have an activation before theirs."""
    (plain, *_) = modules(build(PVT), FeedForward)
    assert not isinstance(plain, ConvFeedForward)
    assert isinstance(modules(build(PVT_V2), ConvFeedForward)[0].inner_activation, nn.Identity)
    assert isinstance(modules(build(PVT_V2, linear_attention=True), ConvFeedForward)[0].inner_activation, nn.ReLU)
    assert isinstance(modules(build(P2T), ConvFeedForward)[0].inner_activation, nn.Hardswish)
    assert hf_pvt.P2tConfig().hidden_act == "hardswish"
