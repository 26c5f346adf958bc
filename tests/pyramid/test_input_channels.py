"""Pretrained weights under another number of channels: against timm's, through every way to open them, and saved."""

import logging
from pathlib import Path

import pytest
import torch
from checkpoints import FIELDS, published
from families import P2T, PVT, PVT_V2, Family
from timm.models import adapt_input_conv
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)

import hf_pvt
from hf_pvt.pyramid.input_channels import for_channels

AUTO = {
    "model": AutoModel,
    "classifier": AutoModelForImageClassification,
    "segmenter": AutoModelForSemanticSegmentation,
}


def classifier(family: Family, **fields: object) -> PreTrainedModel:
    torch.manual_seed(3)
    return family.classifier(family.tiny_config(**(FIELDS | fields))).eval()


def first_convolution(model: PreTrainedModel) -> torch.Tensor:
    return model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("num_channels", "dtype"),
    [*((num_channels, torch.float32) for num_channels in (1, 2, 3, 4, 7)), (1, torch.bfloat16), (4, torch.bfloat16)],
    ids=str,
)
def test_as_timm(num_channels: int, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = adapt_input_conv(num_channels, weight)
    ours = for_channels(weight, num_channels)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        (PVT, "model"),
        (PVT, "classifier"),
        (PVT_V2, "classifier"),
        (PVT_V2, "segmenter"),
        (P2T, "backbone"),
        (P2T, "segmenter"),
    ],
    ids=str,
)
def test_from_pretrained(family: Family, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All weights but the first convolution's stay; what is saved opens under its new number without a word."""
    auto_class = AUTO.get(head, family.backbone)
    model = classifier(family)
    model.save_pretrained(tmp_path / "three")
    with caplog.at_level(logging.WARNING, "hf_pvt"):
        opened = auto_class.from_pretrained(tmp_path / "three", num_channels=5)
    assert "for 3 channels and the model for 5" in caplog.text and "times 3/5" in caplog.text
    assert opened.config.num_channels == 5
    torch.testing.assert_close(first_convolution(opened), adapt_input_conv(5, first_convolution(model).detach()))
    theirs = {name.rpartition("encoder.")[2]: weight for name, weight in model.state_dict().items()}
    for name, weight in opened.state_dict().items():
        if "encoder." in name and "layers.0.patch_embedding.proj.weight" not in name:
            assert weight.equal(theirs[name.rpartition("encoder.")[2]]), name
    opened.save_pretrained(tmp_path / "five")
    caplog.clear()
    again = auto_class.from_pretrained(tmp_path / "five").eval()
    assert not [record for record in caplog.records if "channels" in record.message]
    torch.testing.assert_close(again.state_dict(), opened.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(again(torch.ones(1, 5, 64, 64))[0], opened.eval()(torch.ones(1, 5, 64, 64))[0])


def test_equal_channels_mean_what_they_meant() -> None:
    """Six channels that hold an image twice, and one that holds a grey image, give the logits of three."""
    model = classifier(PVT_V2)
    grey = torch.rand(2, 1, 64, 64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        of_images, of_grey = model(images).logits, model(grey.repeat(1, 3, 1, 1)).logits
        model.set_num_channels(6)
        torch.testing.assert_close(model(images.repeat(1, 2, 1, 1)).logits, of_images)
        single = classifier(PVT_V2)
        single.set_num_channels(1)
        torch.testing.assert_close(single(grey).logits, of_grey)
    with pytest.raises(ValueError, match="num_channels is 0"):
        model.set_num_channels(0)


@pytest.mark.parametrize("family", [PVT, PVT_V2], ids=str)
def test_the_classes_themselves(family: Family, tmp_path: Path) -> None:
    """Not only the Auto classes; from four channels to three as well, and with a configuration that says so."""
    classifier(family, num_channels=4).save_pretrained(tmp_path)
    cls = type(classifier(family))
    assert first_convolution(cls.from_pretrained(tmp_path)).shape[1] == 4
    assert first_convolution(cls.from_pretrained(tmp_path, num_channels=3)).shape[1] == 3
    config = family.tiny_config(**(FIELDS | {"num_channels": 2}))
    model, info = cls.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert first_convolution(model).shape[1] == model.config.num_channels == config.num_channels == 2
    assert not info["mismatched_keys"]


def test_published_files(tmp_path: Path) -> None:
    model = classifier(PVT_V2)
    torch.save(published(model), tmp_path / "published.pth")
    four = hf_pvt.load_original(tmp_path / "published.pth", num_channels=4)
    assert four.config.num_channels == 4
    torch.testing.assert_close(first_convolution(four), adapt_input_conv(4, first_convolution(model).detach()))
