"""The segmenters: loss, batch norm across processes, any size, labels, checkpoints of classifiers, remote code."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, P2T, PVT, PVT_V2, Family, perturb
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel, pipeline

import hf_pvt
from hf_pvt.heads.semantic_fpn import SemanticFpn, semantic_loss
from hf_pvt.heads.synchronized_batch_norm import SynchronizedBatchNorm2d

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(family: Family, **overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = family.segmenter(family.tiny_config(**overrides)).eval()
    perturb(model)
    return model


# The decoder


def test_decoder_in_its_own_words() -> None:
    """Against the paper's figure written out in float64, at sizes where no level is twice the next."""
    torch.manual_seed(0)
    config = hf_pvt.PvtV2Config(hidden_sizes=[4, 6, 8, 10], num_attention_heads=[1, 1, 1, 1], num_labels=3)
    decoder = SemanticFpn(config).double().eval()
    perturb(decoder)
    maps = [torch.randn(2, c, h, w).double() for c, h, w in ((4, 25, 31), (6, 13, 16), (8, 7, 8), (10, 3, 4))]
    tops = [F.conv2d(x, conv.weight, conv.bias) for x, conv in zip(maps, decoder.lateral_convs, strict=True)]
    for fine, coarse in ((2, 3), (1, 2), (0, 1)):
        height, width = tops[fine].shape[-2:]
        rows = torch.arange(height) * tops[coarse].shape[2] // height
        columns = torch.arange(width) * tops[coarse].shape[3] // width
        tops[fine] = tops[fine] + tops[coarse][:, :, rows[:, None], columns]
    total = torch.zeros(2, 128, 25, 31).double()
    for level, (top, conv) in enumerate(zip(tops, decoder.fpn_convs, strict=True)):
        x = F.conv2d(top, conv.weight, conv.bias, padding=1)
        for module in decoder.scale_heads[level]:
            if isinstance(module, nn.Upsample):
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            else:
                norm = module.batch_norm
                x = F.conv2d(x, module.conv.weight, padding=1)
                x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
                x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        assert len(decoder.scale_heads[level]) == (1, 2, 4, 6)[level]
        total = total + F.interpolate(x, (25, 31), mode="bilinear", align_corners=False)
    expected = F.conv2d(total, decoder.classifier.weight, decoder.classifier.bias)
    torch.testing.assert_close(decoder(maps), expected)


@pytest.mark.parametrize(
    ("family", "size"),
    [
        (PVT, (33, 47)),
        (PVT, (97, 131)),
        (PVT_V2, (32, 32)),
        (PVT_V2, (97, 131)),
        (P2T, (33, 47)),
        (P2T, (64, 160)),
    ],
    ids=str,
)
def test_every_size(family: Family, size: tuple[int, int]) -> None:
    """Logits at the first map's size; one image gives what it gives in a batch; every parameter learns."""
    model = build(family)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = model(image, output_hidden_states=True)
        alone = model(image[1:]).logits
    assert output.logits.shape == (2, 5, *output.hidden_states[0].shape[-2:])
    torch.testing.assert_close(output.logits[1:], alone, rtol=1e-4, atol=1e-5 * alone.abs().max().item())
    model.train()(image, labels=torch.randint(5, (2, *size))).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_widths_and_dropout() -> None:
    model = build(PVT_V2, fpn_hidden_size=24, decoder_hidden_size=12, classifier_dropout_prob=0.3)
    assert model.decode_head.fpn_convs[0].weight.shape == (24, 24, 3, 3)
    assert model.decode_head.classifier.weight.shape == (5, 12, 1, 1)
    assert model.decode_head.dropout.p == 0.3
    assert isinstance(model.decode_head.dropout, nn.Dropout2d)


def test_outputs_on_request(family: Family) -> None:
    """Hidden states and attentions only where asked for; tuples; the maps are the backbone's."""
    model = build(family)
    with torch.no_grad():
        plain = model(IMAGES)
        full = model(IMAGES, output_hidden_states=True, output_attentions=True)
        as_tuple = model(IMAGES, return_dict=False)
    assert plain.hidden_states is None and plain.attentions is None and plain.loss is None
    assert [state.shape[1] for state in full.hidden_states] == list(model.config.hidden_sizes)
    assert len(full.attentions) == sum(model.config.depths)
    assert len(as_tuple) == 1 and as_tuple[0].equal(plain.logits)


# The loss


def test_loss_is_that_of_float64() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 8, 9), torch.randint(4, (2, 30, 37))
    labels[0, :5] = 255
    weights = [0.5, 1.0, 0.0, 2.5]
    scores = F.interpolate(logits.double(), (30, 37), mode="bilinear").log_softmax(1)
    valid = labels != 255
    picked = -scores.gather(1, labels.where(valid, 0)[:, None])[:, 0][valid]
    torch.testing.assert_close(semantic_loss(logits, labels, 255).double(), picked.mean())
    weight = torch.tensor(weights).double()[labels[valid]]
    weighted = (picked * weight).sum() / weight.sum()
    torch.testing.assert_close(semantic_loss(logits, labels, 255, weights).double(), weighted)
    torch.testing.assert_close(semantic_loss(logits, labels.int(), 255).double(), picked.mean())


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 4.0, 5.0]], ids=["plain", "weighted"])
def test_nothing_labelled(weights: list[float] | None) -> None:
    """A batch of ignored pixels: the loss is 0, and gradients are zeros, not NaN."""
    model = build(P2T, semantic_loss_class_weights=weights).train()
    loss = model(IMAGES, labels=torch.full((2, 64, 96), 255)).loss
    assert loss.item() == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.eq(0).all(), name


def test_ignored_label_is_configured() -> None:
    labels = torch.randint(1, 5, (2, 64, 96))
    labels[:, :32] = 0
    losses = [build(PVT, semantic_loss_ignore_index=index)(IMAGES, labels=labels).loss for index in (255, 0)]
    assert losses[0] != losses[1]
    masked = labels.masked_fill(labels == 0, 255)
    torch.testing.assert_close(losses[1], build(PVT)(IMAGES, labels=masked).loss)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((2, 64, 96), 5), r"labels holds \[5\], expected 0 to 4 or the ignored 255"),
        (torch.full((2, 64, 96), -1), r"labels holds \[-1\], expected 0 to 4"),
        (torch.zeros(2, 64, 96), "dtype torch.float32, expected integers"),
        (torch.zeros(2, 1, 64, 96, dtype=torch.long), r"shape \(2, H, W\), got \(2, 1, 64, 96\)"),
        (torch.zeros(1, 64, 96, dtype=torch.long), r"shape \(2, H, W\), got \(1, 64, 96\)"),
    ],
    ids=["beyond", "negative", "floats", "channel", "batch"],
)
def test_bad_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(PVT_V2)(IMAGES, labels=labels)


@pytest.mark.parametrize(
    ("family", "weights", "message"),
    [
        (PVT, [1.0], "has 1 values, expected one for each of 5 labels"),
        (PVT_V2, [1.0, -1.0, 1.0, 1.0, 1.0], "must be finite, not negative and not all 0"),
        (P2T, [0.0] * 5, "must be finite, not negative and not all 0"),
        (PVT, [1.0, math.inf, 1.0, 1.0, 1.0], "must be finite, not negative and not all 0"),
    ],
    ids=["count", "negative", "zeros", "infinite"],
)
def test_bad_class_weights(family: Family, weights: list[float], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError) as raised:
        family.tiny_config(semantic_loss_class_weights=weights)
    assert f"`semantic_loss_class_weights` {message}" in str(raised.value.__cause__)


def test_one_label_is_not_a_segmentation() -> None:
    with pytest.raises(ValueError, match="at least 2 labels, got num_labels=1"):
        PVT_V2.segmenter(PVT_V2.tiny_config(num_labels=1))


# Batch norm


def test_batch_norm_of_one_value() -> None:
    """One image of 32x32 has a single value per channel at stride 32: said in a sentence; two images train."""
    model = build(PVT_V2).train()
    with pytest.raises(ValueError, match="single value per channel.*more images per batch, or with images of more"):
        model(torch.randn(1, 3, 32, 32))
    assert model(torch.randn(2, 3, 32, 32)).logits.isfinite().all()
    assert model.eval()(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


PROCESS = """
import sys, torch
from torch import distributed as dist
from hf_pvt.heads.synchronized_batch_norm import ConvNormReLU
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
assert dist.get_world_size() == 2
job = torch.load(f"{folder}/job.pt", weights_only=True)
module = ConvNormReLU(3, 4).train()
module.load_state_dict(job["weights"])
images = (job["images"][:1], job["images"][1:])[rank].requires_grad_()
output = module(images)
(output * (job["factors"][:1], job["factors"][1:])[rank]).sum().backward()
gradients = [parameter.grad for parameter in module.parameters()]
for gradient in gradients:
    dist.all_reduce(gradient)
result = {"output": output.detach(), "input": images.grad, "gradients": gradients, "state": module.state_dict()}
torch.save(result, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.processes
def test_batch_norm_across_processes(tmp_path: Path) -> None:
    """Two gloo processes with one and two images: statistics, outputs and gradients of the joint batch of three."""
    from hf_pvt.heads.semantic_fpn import ConvNormReLU

    torch.manual_seed(0)
    module = ConvNormReLU(3, 4).train()
    perturb(module)
    images, factors = 3 + torch.randn(3, 3, 6, 5), torch.randn(3, 4, 6, 5)
    torch.save({"weights": module.state_dict(), "images": images, "factors": factors}, tmp_path / "job.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(rank)], env={**os.environ})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    images.requires_grad_()
    output = module(images)
    (output * factors).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([result["output"] for result in results]), output.detach(), **close)
    torch.testing.assert_close(torch.cat([result["input"] for result in results]), images.grad, **close)
    for result in results:
        for gradient, parameter in zip(result["gradients"], module.parameters(), strict=True):
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=2e-6 * scale)
        torch.testing.assert_close(result["state"], module.state_dict(), **close)


def test_batch_norm_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at no value: on the meta device there is none."""
    distributed = {"is_initialized": True, "get_world_size": 2, "all_reduce": None}
    for name, value in distributed.items():
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value: value)
    norm = SynchronizedBatchNorm2d(3, device="meta")
    assert norm(torch.empty(2, 3, 4, 5, device="meta")).shape == (2, 3, 4, 5)


def test_batch_norm_alone_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = SynchronizedBatchNorm2d(3), nn.BatchNorm2d(3)
    images = torch.randn(2, 3, 4, 5)
    assert ours(images).equal(theirs(images))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


# Saving, loading, the Auto class


def test_save_and_load_150_labels(family: Family, tmp_path: Path) -> None:
    names = {label: f"thing {label}" for label in range(150)}
    model = build(family, id2label=names, label2id={name: label for label, name in names.items()}, num_labels=150)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is family.segmenter
    assert loaded.config.id2label == names
    with torch.no_grad():
        assert loaded(IMAGES).logits.equal(model(IMAGES).logits)


@pytest.mark.parametrize(
    ("family", "role"),
    [*((family, "classifier") for family in FAMILIES), (PVT, "backbone"), (P2T, "model")],
    ids=str,
)
def test_starts_from_a_classifier(family: Family, role: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pyramid's weights are taken, the decoder is fresh and named as such, nothing else is said."""
    torch.manual_seed(0)
    source = getattr(family, role)(family.tiny_config()).eval()
    source.save_pretrained(tmp_path)
    names = {label: f"thing {label}" for label in range(9)}
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        model, info = AutoModelForSemanticSegmentation.from_pretrained(
            tmp_path, id2label=names, label2id={name: label for label, name in names.items()}, output_loading_info=True
        )
    assert info["missing_keys"] and all(key.startswith("decode_head.") for key in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    (notice,) = {record.getMessage() for record in caplog.records}
    assert "decode_head" in notice and "newly initialized" in notice
    backbone = family.backbone.from_pretrained(tmp_path, out_indices=[0, 1, 2, 3])
    with torch.no_grad():
        maps = model(IMAGES, output_hidden_states=True).hidden_states
        for ours, theirs in zip(maps, backbone(IMAGES).feature_maps, strict=True):
            assert ours.equal(theirs)


def test_its_pyramid_serves_others(family: Family, tmp_path: Path) -> None:
    """A backbone opens a segmenter's folder and drops the decoder without a word."""
    model = build(family)
    model.save_pretrained(tmp_path)
    backbone, info = family.backbone.from_pretrained(tmp_path, out_indices=[0], output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        expected = model(IMAGES, output_hidden_states=True).hidden_states[0]
        assert backbone(IMAGES).feature_maps[0].equal(expected)


REMOTE = """
import sys
sys.modules["hf_pvt"] = None
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    job = torch.load(folder / "job.pt", weights_only=True)
    with torch.no_grad():
        assert model(job["images"]).logits.equal(job["logits"]), folder.name
    masks = pipeline("image-segmentation", model=model, image_processor=processor)(Image.new("RGB", (90, 70), "red"))
    assert {mask["mask"].size for mask in masks} == {(90, 70)}, folder.name
    model.save_pretrained(folder / "again")
"""


@pytest.mark.processes
def test_remote_code(tmp_path: Path) -> None:
    """A saved folder works where this package is not installed, and so does what is saved from there."""
    for family in FAMILIES:
        model, folder = build(family), tmp_path / "saved" / family.name
        model.save_pretrained(folder)
        hf_pvt.segmentation_image_processor().save_pretrained(folder)
        with torch.no_grad():
            torch.save({"images": IMAGES, "logits": model(IMAGES).logits}, folder / "job.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REMOTE, str(tmp_path / "saved")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for folder in (tmp_path / "saved").iterdir():
        saved, again = (json.loads((path / "config.json").read_text()) for path in (folder, folder / "again"))
        assert saved == again
        assert not list(folder.glob("again/__pycache__"))


def test_classifiers_of_known_types_need_no_code(tmp_path: Path) -> None:
    """Not even after the configuration was a segmenter's."""
    build(PVT).save_pretrained(tmp_path / "segmenter")
    config = hf_pvt.PvtConfig.from_pretrained(tmp_path / "segmenter")
    hf_pvt.PvtForImageClassification(config).save_pretrained(tmp_path / "classifier")
    assert {file.name for file in (tmp_path / "classifier").iterdir()} == {"config.json", "model.safetensors"}
    assert "auto_map" not in json.loads((tmp_path / "classifier" / "config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_pipeline(family: Family, caplog: pytest.LogCaptureFixture, own_warnings: pytest.WarningsRecorder) -> None:
    """Masks of a real photograph at its own size, those of the model by hand, without a word of warning."""
    photo = Image.fromarray(load_sample_image("flower.jpg"))
    model, processor = build(family), hf_pvt.segmentation_image_processor(size={"shortest_edge": 96})
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        results = pipeline("image-segmentation", model=model, image_processor=processor)(photo)
    with torch.no_grad():
        logits = model(**processor(photo, return_tensors="pt")).logits
    labels = F.interpolate(logits, photo.size[::-1], mode="bilinear").argmax(1)[0]
    assert {result["label"] for result in results} == {f"LABEL_{label}" for label in labels.unique().tolist()}
    for result in results:
        mask = torch.from_numpy(np.array(result["mask"])) > 0
        assert mask.equal(labels == int(result["label"].removeprefix("LABEL_")))
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in own_warnings] == []
