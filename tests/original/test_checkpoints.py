"""Published checkpoints: containers, layouts and architectures that are read, and one clear sentence for all others."""

import argparse
import io
import os
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import timm
import torch
from checkpoints import (
    FIELDS,
    PUBLISHED,
    StateDict,
    assert_same_weights,
    message_of,
    mmsegmentation,
    published,
    saved,
    segmenter,
)
from detector_keys import without_values
from families import FAMILIES, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

import hf_pvt
from hf_pvt import VARIANTS, load_original, variant_config
from hf_pvt.original.load_original import read_config, recognise_layout
from hf_pvt.pyramid.model_classes import AUTO_CLASSES

ALL = (*FAMILIES, PVT_V2_LINEAR)


def tiny(family: Family, **overrides: Any) -> PreTrainedModel:
    """A tiny classifier with weights that are nowhere zero or one."""
    torch.manual_seed(0)
    model = family.classifier(family.tiny_config(**(FIELDS | overrides))).eval()
    perturb(model)
    return model


def test_the_helper_agrees_with_the_recorded_keys() -> None:
    """Our idea of the published layouts is the published one, so that the tests below mean something."""
    for variant in ("pvt-tiny", "pvt-v2-b0", "pvt-v2-b2-li", "p2t-tiny"):
        with torch.device("meta"):
            config = variant_config(variant, num_labels=1000)
            model = AUTO_CLASSES[type(config)][AutoModelForImageClassification](config)
        shapes = {key: list(weight.shape) for key, weight in published(model).items()}
        assert shapes == reference.published_keys()[variant]


CONTAINERS: dict[str, Callable[[StateDict], Any]] = {
    "bare": lambda weights: weights,
    "ordered": OrderedDict,
    "model": lambda weights: {"model": weights},
    "state_dict": lambda weights: {"state_dict": weights, "meta": {"epoch": 3}},
    "module": lambda weights: {f"module.{key}": weight for key, weight in weights.items()},
    "model_module": lambda weights: {"model": {f"module.{key}": weight for key, weight in weights.items()}},
    "parameters": lambda weights: {key: nn.Parameter(weight) for key, weight in weights.items()},
    "training": lambda weights: {
        "model": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 7},
        "epoch": 7,
        "args": argparse.Namespace(model="pvt_v2_b2", lr=1e-3, drop_path=None, layers=[1, 2]),
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container: str, tmp_path: Path) -> None:
    model = tiny(PVT_V2)
    path = saved(CONTAINERS[container](published(model)), tmp_path / "checkpoint.pth")
    assert_same_weights(load_original(path), model)


@pytest.mark.parametrize(
    ("family", "suffix"), [*zip(ALL, (".pth", ".pt", ".bin", ".safetensors"), strict=True)], ids=str
)
def test_every_family_and_every_file_type(family: Family, suffix: str, tmp_path: Path) -> None:
    """What is read computes the same, in evaluation mode, with trainable parameters that share no memory."""
    model = tiny(family)
    loaded = load_original(saved(published(model), tmp_path / f"checkpoint{suffix}"))
    assert_same_weights(loaded, model)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=0, atol=0)
    assert not any(module.training for module in loaded.modules())
    parameters = list(loaded.parameters())
    assert all(type(parameter) is nn.Parameter for parameter in parameters)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in parameters)
    assert all(parameter.is_contiguous() for parameter in parameters)
    storages = [parameter.untyped_storage() for parameter in parameters]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    assert [storage.nbytes() for storage in storages] == [parameter.nbytes for parameter in parameters]


def test_a_file_of_old_pytorch(tmp_path: Path) -> None:
    model = tiny(PVT)
    torch.save({"model": published(model)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_weights(load_original(str(tmp_path / "old.pth")), model)


def test_the_permission_to_read_arguments_is_not_left_behind(tmp_path: Path) -> None:
    """Other code's `torch.load` keeps refusing what it refused before."""
    path = saved(CONTAINERS["training"](published(tiny(PVT_V2))), tmp_path / "checkpoint.pth")
    load_original(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_every_variant_is_recognised() -> None:
    """From the shapes alone, down to the stochastic depth with which it was trained."""
    for variant in VARIANTS:
        weights = without_values(reference.published_keys()[variant])
        config = read_config(weights, recognise_layout(weights, "file.pth"), {}, "file.pth")
        expected = variant_config(variant, num_labels=1000)
        assert (type(config), config.to_dict()) == (type(expected), expected.to_dict()), variant


@pytest.mark.parametrize(("family", "channels"), [*zip(ALL, (4, 1, 13, 2), strict=True)], ids=str)
def test_architecture_is_read_off_the_shapes(family: Family, channels: int, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "hidden_sizes": (16, 8, 30, 24),
        "depths": (3, 1, 2, 1),
        "mlp_ratios": (4, 3, 2, 1),
        "num_channels": channels,
        "num_labels": 7,
    }
    if family is PVT:
        fields["image_size"] = 96
    model = tiny(family, **fields)
    loaded = load_original(saved(published(model), tmp_path / "checkpoint.pth"))
    assert_same_weights(loaded, model)
    if family in (PVT_V2, PVT_V2_LINEAR):
        fields["linear_attention"] = family is PVT_V2_LINEAR
    assert {name: getattr(loaded.config, name) for name in fields} == fields


@pytest.mark.parametrize("family", ALL, ids=str)
def test_without_a_head_the_base_model_comes(family: Family, tmp_path: Path) -> None:
    model = tiny(family)
    headless = {key: weight for key, weight in published(model).items() if not key.startswith("head.")}
    assert_same_weights(load_original(saved(headless, tmp_path / "headless.pth")), model.base_model)


@pytest.mark.parametrize("linear", [False, True], ids=["b", "li"])
def test_timm(linear: bool, tmp_path: Path) -> None:
    """A timm model's own state dict gives timm's own logits."""
    torch.manual_seed(0)
    published_by_timm = timm.models.pvt_v2.PyramidVisionTransformerV2(
        depths=(2, 1, 1, 1),
        embed_dims=FIELDS["hidden_sizes"],
        num_heads=FIELDS["num_attention_heads"],
        mlp_ratios=(2, 2, 2, 2),
        num_classes=7,
        linear=linear,
    ).eval()
    perturb(published_by_timm)
    path = saved(published_by_timm.state_dict(), tmp_path / "timm.pth")
    model = load_original(path)
    assert type(model) is hf_pvt.PvtV2ForImageClassification
    assert (model.config.depths, model.config.linear_attention, model.num_labels) == ((2, 1, 1, 1), linear, 7)
    images = torch.randn(2, 3, 97, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = published_by_timm.double()(images)
        torch.testing.assert_close(model.double()(images).logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("linear", [False, True], ids=["b", "li"])
def test_timm_features(linear: bool, tmp_path: Path) -> None:
    """The state dict of timm's `features_only` model gives timm's own maps."""
    torch.manual_seed(0)
    name, depths = "pvt_v2_b2_li" if linear else "pvt_v2_b0", (1, 2, 1, 1)
    published_by_timm = timm.create_model(name, features_only=True, depths=depths, embed_dims=(8, 16, 20, 16)).eval()
    perturb(published_by_timm)
    model = load_original(saved(published_by_timm.state_dict(), tmp_path / "timm.pth"))
    assert type(model) is hf_pvt.PvtV2Model
    assert (model.config.depths, model.config.linear_attention) == (depths, linear)
    images = torch.randn(1, 3, 97, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = published_by_timm.double()(images)
        maps = model.double()(images, output_hidden_states=True).hidden_states
    assert [tuple(feature_map.shape) for feature_map in maps] == [tuple(feature_map.shape) for feature_map in expected]
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())


def test_timm_features_of_three_stages(tmp_path: Path) -> None:
    """A pyramid needs its fourth."""
    weights = timm.create_model("pvt_v2_b0", features_only=True, out_indices=(0, 1, 2)).state_dict()
    message = message_of(saved(weights, tmp_path / "timm.pth"))
    assert message == (
        ", recognised as timm PVTv2 features, is incomplete; missing or misshapen keys: "
        "stages_3.downsample.proj.weight, stages_3.blocks.0.mlp.fc1.weight."
    )


def test_a_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    """Unless the caller has names, of which one direction is enough."""
    path = saved(published(tiny(PVT_V2, num_labels=1000)), tmp_path / "checkpoint.pth")
    overrides: dict[str, tuple[dict[str, Any], str]] = {
        "nothing": ({}, "tench"),
        "count": ({"num_labels": 1000}, "tench"),
        "id2label": ({"id2label": {label: f"fish {label}" for label in range(1000)}}, "fish 0"),
        "label2id": ({"label2id": {f"fish {label}": label for label in range(1000)}}, "fish 0"),
    }
    for given, (override, name) in overrides.items():
        config = load_original(path, **override).config
        assert (config.id2label[0], config.num_labels) == (name, 1000), given
        assert config.label2id == {name: label for label, name in config.id2label.items()}, given


def test_labels_are_an_override(tmp_path: Path) -> None:
    path = saved(published(tiny(PVT_V2, num_labels=3)), tmp_path / "checkpoint.pth")
    model = load_original(path, id2label={0: "cat", 1: "dog", 2: "horse"})
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "horse"}
    assert model.config.num_labels == model.num_labels == 3
    assert_same_weights(model, tiny(PVT_V2, num_labels=3))


def test_any_field_is_an_override(tmp_path: Path) -> None:
    path = saved(published(tiny(PVT_V2)), tmp_path / "checkpoint.pth")
    model = load_original(path, drop_path_rate=0.2, num_attention_heads=(2, 2, 2, 2))
    assert model.config.drop_path_rate == 0.2
    assert [stage.blocks[0].attention.num_heads for stage in model.base_model.encoder.layers] == [2, 2, 2, 2]


def test_weights_come_in_float32(tmp_path: Path) -> None:
    model = tiny(P2T)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        weights = {key: weight.to(dtype) for key, weight in published(model).items()}
        loaded = load_original(saved(weights, tmp_path / "checkpoint.pth")).state_dict()
        expected = {key: weight.to(dtype).to(torch.float32) for key, weight in model.state_dict().items()}
        assert {weight.dtype for weight in loaded.values()} == {torch.float32}, dtype
        assert all(loaded[key].equal(weight) for key, weight in expected.items()), dtype


def test_images_that_are_not_square(tmp_path: Path) -> None:
    """The number of position embeddings does not tell the image's sides: the error asks, the override answers."""
    size = (160, 32)
    model = tiny(PVT, image_size=size)
    path = saved(published(model), tmp_path / "checkpoint.pth")
    assert re.search(r"320 tokens, .* no square; pass image_size=\(height, width\)", message_of(path))
    loaded = load_original(path, image_size=size)
    assert loaded.config.image_size == size
    assert_same_weights(loaded, model)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=rf"^there is no checkpoint file {re.escape(str(path))}\.$"):
        load_original(path)


def test_folder(tmp_path: Path) -> None:
    assert "is a folder" in message_of(tmp_path) and "`from_pretrained`" in message_of(tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    for name in ("checkpoint.pth", "checkpoint.safetensors"):
        (tmp_path / name).touch()
        assert message_of(tmp_path / name) == " is empty; download the checkpoint again."


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


# Pickle is a program: the first letter of a text is its first instruction, and each stumbles in its own way.
STRANGERS: dict[str, Callable[[], bytes]] = {
    **{text: text.encode for text in ("hello world", "Readme", "Entry not found", "K", "q", ".", "]", "I1\n.", "N.")},
    "html": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
    "lfs": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "png": lambda: b"\x89PNG\r\n\x1a\n" + bytes(64),
    "zeros": lambda: bytes(1000),
    "zip": lambda: zip_of(readme=b"hello"),
    "empty zip": zip_of,
    "zip with data.pkl": lambda: zip_of(**{"archive/data.pkl": b"hello"}),
    "tar": lambda: tar_of("readme"),
    "torchscript": torchscript,
}


def test_no_checkpoint(tmp_path: Path) -> None:
    messages = {}
    for number, (stranger, content) in enumerate(STRANGERS.items()):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content())
        messages[stranger] = message_of(path)
    expected = " is not a PyTorch checkpoint, or not a whole one; expected a .pth or .safetensors file."
    assert messages == dict.fromkeys(STRANGERS, expected)


def test_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"hello world, this is no safetensors file")
    assert re.fullmatch(r" is not a whole safetensors file \(.+\); download it again\.", message_of(path))


@pytest.mark.parametrize("file_type", ["zip", "old", "safetensors"])
def test_truncated(file_type: str, tmp_path: Path) -> None:
    whole = tmp_path / ("whole.safetensors" if file_type == "safetensors" else "whole.pth")
    weights = published(tiny(PVT_V2))
    if file_type == "old":
        torch.save(weights, whole, _use_new_zipfile_serialization=False)
    else:
        saved(weights, whole)
    content = whole.read_bytes()
    for kept in (1, 2, 10, 40, len(content) // 10, len(content) // 2, len(content) - 30, len(content) - 1):
        path = whole.with_stem(f"the first {kept} bytes")
        path.write_bytes(content[:kept])
        assert re.match(r" is not a (whole safetensors file|PyTorch checkpoint, or not a whole one)", message_of(path))


class Call:
    """A pickle of this object makes the call when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return self.function, self.arguments


CALLS: dict[str, tuple[Callable[[Path], Call], str]] = {
    "blocked module": (lambda trace: Call(os.mkdir, str(trace)), f"{os.mkdir.__module__}.mkdir"),
    "builtin": (lambda trace: Call(exec, f"open({str(trace)!r}, 'w').close()"), "exec"),
    "class": (lambda trace: Call(io.FileIO, str(trace), "w"), "_io.FileIO"),
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old"])
def test_code_is_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    weights = published(tiny(PVT_V2))
    for call, (make, name) in CALLS.items():
        trace, path = tmp_path / f"trace of {call}", tmp_path / f"{call}.pth"
        torch.save({"model": weights, "note": make(trace)}, path, _use_new_zipfile_serialization=new_format)
        assert f"is refused: it is a pickle that would run code ({name})" in message_of(path)
        assert not trace.exists()
        torch.load(path, weights_only=False)
        assert trace.exists()  # the code would have run


def test_no_weights(tmp_path: Path) -> None:
    contents: dict[str, tuple[Any, str]] = {
        "list": ([torch.ones(1)], "a list"),
        "tensor": (torch.ones(1), "a Tensor"),
        "string": ("weights", "a str"),
        "none": (None, "a NoneType"),
        "empty": ({}, "a dict"),
        "empty container": ({"model": {}}, "a dict"),
    }
    for name, (content, found) in contents.items():
        path = saved(content, tmp_path / f"{name}.pth")
        assert message_of(path) == f" holds {found} without weights, expected a state dict.", name


def test_no_named_tensors(tmp_path: Path) -> None:
    contents: dict[str, tuple[Any, str]] = {
        "list": ({"norm.weight": [1.0, 2.0], "norm.bias": torch.ones(1)}, "norm.weight"),
        "none": ({"model": {"head.weight": None}}, "head.weight"),
        "number as key": ({"model": {0: torch.ones(1)}}, "0"),
        "unknown container": ({"epoch": 3, "weights": {"norm.weight": torch.ones(1)}}, "epoch, weights"),
        "many": ({str(index): index for index in range(11)}, "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"),
    }
    for name, (content, found) in contents.items():
        path = saved(content, tmp_path / f"{name}.pth")
        assert message_of(path) == f" is not a state dict: no named tensors under {found}.", name


def test_segmentation_checkpoint_with_another_decoder(tmp_path: Path) -> None:
    weights = {f"backbone.{key}": weight for key, weight in published(tiny(P2T)).items()}
    weights |= {"decode_head.psp_modules.0.1.conv.weight": torch.ones(1), "decode_head.conv_seg.weight": torch.ones(1)}
    message = message_of(saved({"state_dict": weights, "meta": {}}, tmp_path / "upernet.pth"))
    assert message == (
        ", recognised as MMSegmentation Semantic FPN on published P2T, is incomplete; missing or misshapen keys: "
        "neck.lateral_convs.0.conv.weight, decode_head.conv_seg.weight."
    )


NO_WEIGHTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (Tensor.to_sparse, "torch.float32 in the layout torch.sparse_coo"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "torch.qint8 in the layout"),
    "int8": (Tensor.char, "torch.int8 in the layout torch.strided"),
    "boolean": (Tensor.bool, "torch.bool in the layout torch.strided"),
    "complex": (lambda x: x.to(torch.complex64), "torch.complex64 in the layout torch.strided"),
    "meta": (lambda x: x.to("meta"), "torch.float32 without values"),
}


def test_weights_that_are_no_dense_floats(tmp_path: Path) -> None:
    weights, key = published(tiny(PVT_V2)), "block2.0.attn.q.weight"
    for kind, (change, named) in NO_WEIGHTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are deprecated
            path = saved(weights | {key: change(weights[key])}, tmp_path / f"{kind}.pth")
        message = message_of(path)
        assert message.startswith(f" is refused: {key} is of the type {named}"), (kind, message)
        assert "expected dense floating" in message, (kind, message)


def test_another_model(tmp_path: Path) -> None:
    keys = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"]
    message = message_of(saved({key: torch.ones(1) for key in keys}, tmp_path / "resnet.pth"))
    published = ["published P2T", "published PVT", "published PVTv2"]
    segmentation = [f"MMSegmentation Semantic FPN on {source}" for source in published]
    on = [*published, "MMDetection PVT", "MMDetection PVTv2"]
    heads = ("RetinaNet", "R-CNN", "ATSS", "GFL", "Cascade R-CNN", "Sparse R-CNN")
    detection = [f"MMDetection {head} on {source}" for head in heads for source in on]
    detection += [f"MMDetection DETR on {source}" for source in published]
    expected = ", ".join([*published, "timm PVTv2", "timm PVTv2 features", *segmentation, *detection])
    assert message == f" is none of: {expected}; its keys are {', '.join(keys)}."


def test_a_model_saved_by_transformers(tmp_path: Path) -> None:
    """Not an original checkpoint: its names are shown, not half of it read."""
    tiny(PVT_V2).save_pretrained(tmp_path)
    assert "its keys are " in message_of(tmp_path / "model.safetensors")


def test_unknown_missing_and_misshapen_keys_are_named_at_once(tmp_path: Path) -> None:
    weights = published(tiny(P2T))
    unknown, missing, misshapen = "block5.0.norm1.weight", "block3.1.norm1.weight", "block2.0.norm2.bias"
    weights[unknown] = torch.ones(1)
    del weights[missing]
    weights[misshapen] = torch.ones(9)
    message = message_of(saved(weights, tmp_path / "checkpoint.pth"))
    assert message == (
        f", recognised as published P2T, does not fit: unknown keys: {unknown}; missing keys: {missing}; "
        f"misshapen keys: {misshapen} (9,) instead of (16,)."
    )


def test_keys_and_values_are_named_once_in_their_published_shape(tmp_path: Path) -> None:
    """They are two of our weights and one of the authors'."""
    weights = published(tiny(PVT))
    weights["block1.0.attn.kv.weight"] = torch.ones(8, 8)
    weights["block1.0.attn.kv.bias"] = torch.tensor(1.0)
    del weights["block2.0.attn.kv.weight"]
    message = message_of(saved(weights, tmp_path / "checkpoint.pth"))
    assert message.endswith(
        "missing keys: block2.0.attn.kv.weight; misshapen keys: block1.0.attn.kv.bias () instead of (16,), "
        "block1.0.attn.kv.weight (8, 8) instead of (16, 8)."
    )


def test_labels_that_the_head_does_not_have(tmp_path: Path) -> None:
    path = saved(published(tiny(PVT_V2)), tmp_path / "checkpoint.pth")
    message = message_of(path, id2label={0: "cat", 1: "dog"})
    assert message.endswith("misshapen keys: head.bias (5,) instead of (2,), head.weight (5, 16) instead of (2, 16).")


@pytest.mark.parametrize(
    ("family", "gone", "named"),
    [
        (PVT, "block3.", "block3.0.mlp.fc1.weight"),
        (PVT_V2_LINEAR, "patch_embed4.proj.", "patch_embed4.proj.weight"),
        (P2T, "block2.0.mlp.fc1.", "block2.0.mlp.fc1.weight"),
    ],
    ids=str,
)
def test_incomplete_stages(family: Family, gone: str, named: str, tmp_path: Path) -> None:
    weights = {key: weight for key, weight in published(tiny(family)).items() if not key.startswith(gone)}
    message = message_of(saved(weights, tmp_path / "checkpoint.pth"))
    source = PUBLISHED[family.config.model_type].source
    assert message == f", recognised as {source}, is incomplete; missing or misshapen keys: {named}."


def test_shapes_that_tell_nothing(tmp_path: Path) -> None:
    weights = published(tiny(P2T))
    for key in ("patch_embed2.proj.weight", "block2.0.mlp.fc1.weight"):
        for shape in ((), (16,), (0, 16, 3, 3), (16, 0, 3, 3)):
            message = message_of(saved(weights | {key: torch.ones(shape)}, tmp_path / "checkpoint.pth"))
            assert message.endswith(f"is incomplete; missing or misshapen keys: {key}."), (shape, message)


def test_position_embeddings_that_tell_nothing(tmp_path: Path) -> None:
    weights = published(tiny(PVT))
    for shape in ((), (8,), (1, 0, 8)):
        message = message_of(saved(weights | {"pos_embed1": torch.ones(shape)}, tmp_path / "checkpoint.pth"))
        assert "has no valid configuration: `image_size` must be" in message, (shape, message)


def test_widths_that_the_heads_do_not_divide(tmp_path: Path) -> None:
    path = saved(published(tiny(PVT_V2)), tmp_path / "checkpoint.pth")
    message = message_of(path, num_attention_heads=(1, 2, 3, 4))
    assert "has no valid configuration: hidden size 20 does not divide by its 3 attention heads" in message


def test_a_block_that_is_missing_in_the_middle(tmp_path: Path) -> None:
    """The last block is not thrown away because an earlier one is gone."""
    weights = published(tiny(PVT_V2, depths=(3, 1, 1, 1)))
    weights = {key: weight for key, weight in weights.items() if not key.startswith("block1.1.")}
    message = message_of(saved(weights, tmp_path / "checkpoint.pth"))
    assert "unknown keys: block1.2." in message and "missing keys: block1.1." in message


# MMSegmentation's Semantic FPN

CLASSES = ("road", "sky", "tree", "car", "person")
PALETTE = [[128, 64, 128], [70, 130, 180], [107, 142, 35], [0, 0, 142], [220, 20, 60]]


METAS: dict[str, dict[str, Any]] = {
    "0.x": {"CLASSES": CLASSES, "PALETTE": PALETTE, "config": "model = dict()", "epoch": 1},
    "1.x": {"dataset_meta": {"classes": list(CLASSES), "palette": PALETTE}},
}


@pytest.mark.parametrize(("family", "meta"), [*zip(ALL, [*METAS, *METAS], strict=True)], ids=str)
def test_semantic_fpn(family: Family, meta: str, tmp_path: Path) -> None:
    """Widths, labels and palette are read; optimizer state, auxiliary head and P2T's classifier are left."""
    model = segmenter(family)
    weights = mmsegmentation(model) | {"auxiliary_head.conv_seg.weight": torch.ones(5, 3, 1, 1)}
    if family is P2T:
        weights |= {"backbone.head.weight": torch.ones(1000, 16), "backbone.head.bias": torch.ones(1000)}
    content = {"meta": METAS[meta], "state_dict": weights, "optimizer": {"state": {}, "param_groups": []}}
    loaded = load_original(saved(content, tmp_path / "fpn.pth"))
    assert_same_weights(loaded, model)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    assert loaded.config.label2id["car"] == 3
    assert loaded.config.palette == PALETTE
    assert loaded.config.fpn_hidden_size == 24 and loaded.config.decoder_hidden_size == 12
    loaded.save_pretrained(tmp_path / "saved")
    assert type(loaded.config).from_pretrained(tmp_path / "saved").palette == PALETTE
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert loaded(image).logits.equal(model(image).logits)


def test_semantic_fpn_without_meta(tmp_path: Path) -> None:
    path = saved({"state_dict": mmsegmentation(segmenter(PVT))}, tmp_path / "fpn.pth")
    config = load_original(path).config
    assert config.num_labels == 5 and config.id2label[4] == "LABEL_4"
    assert load_original(path, id2label=dict(enumerate(CLASSES))).config.id2label[4] == "person"


def test_150_labels_are_ade20ks(tmp_path: Path) -> None:
    """With their colours, which do not stay where the labels are others."""
    weights = mmsegmentation(segmenter(PVT_V2, num_labels=150))
    path = saved({"state_dict": weights}, tmp_path / "fpn.pth")
    config = load_original(path).config
    assert (config.id2label, config.label2id["wall"]) == (hf_pvt.ade20k_id2label(), 0)
    assert config.palette == [list(colour) for colour in hf_pvt.ade20k_palette()]
    others = load_original(path, id2label={label: f"thing {label}" for label in range(150)}).config
    assert others.id2label[0] == "thing 0" and others.label2id["thing 149"] == 149
    assert getattr(others, "palette", None) is None


def test_names_override_those_of_the_file(tmp_path: Path) -> None:
    """All of them: neither its numbers nor its colours are left behind."""
    content = {"meta": METAS["0.x"], "state_dict": mmsegmentation(segmenter(PVT_V2))}
    path = saved(content, tmp_path / "fpn.pth")
    config = load_original(path, id2label=dict(enumerate("abcde"))).config
    assert config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert getattr(config, "palette", None) is None


def test_counts_of_batches_stay_integers(tmp_path: Path) -> None:
    """Also where a checkpoint was made half as large with everything in it."""
    model = segmenter(PVT_V2)
    weights = {key: weight.half() for key, weight in mmsegmentation(model).items()}
    loaded = load_original(saved({"state_dict": weights}, tmp_path / "fpn.pth"))
    assert {name: weight.dtype for name, weight in loaded.state_dict().items()} == {
        name: weight.dtype for name, weight in model.state_dict().items()
    }


def test_semantic_fpn_is_read_strictly(tmp_path: Path) -> None:
    weights = mmsegmentation(segmenter(P2T))
    bias = weights.pop("neck.fpn_convs.2.conv.bias")
    weights["decode_head.convs.0.weight"] = bias
    weights["decode_head.scale_heads.1.0.bn.weight"] = torch.ones(13)
    message = message_of(saved({"state_dict": weights}, tmp_path / "fpn.pth"))
    assert message.startswith(", recognised as MMSegmentation Semantic FPN on published P2T, ")
    assert message.endswith(
        "does not fit: unknown keys: decode_head.convs.0.weight; missing keys: neck.fpn_convs.2.conv.bias; misshapen "
        "keys: decode_head.scale_heads.1.0.bn.weight (13,) instead of (12,)."
    )


def test_labels_of_another_count(tmp_path: Path) -> None:
    """Names that do not fit the head are an error, not a silent choice."""
    content = {"meta": {"CLASSES": CLASSES[:4]}, "state_dict": mmsegmentation(segmenter(PVT_V2))}
    assert "decode_head.conv_seg.weight (5, 12, 1, 1) instead of (4, 12, 1, 1)" in message_of(
        saved(content, tmp_path / "fpn.pth")
    )
