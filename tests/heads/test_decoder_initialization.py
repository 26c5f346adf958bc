"""Fresh decoders are drawn as MMSegmentation's, whatever the family, also where from_pretrained draws what is missing.

MMSegmentation: `FPN` is Xavier uniform, `ConvModule` Kaiming normal (fan out), `conv_seg` normal with 0.01, biases 0.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import P2T, PVT, PVT_V2, Family
from torch import Tensor, nn
from transformers import PreTrainedModel

Start = Callable[[Family, Path], PreTrainedModel]

LABELS = 150
FIELDS = {"num_labels": LABELS, "fpn_hidden_size": 64, "decoder_hidden_size": 48}


def fresh(family: Family, folder: Path) -> PreTrainedModel:
    return family.segmenter(family.tiny_config(**FIELDS))


def from_a_classifier(family: Family, folder: Path) -> PreTrainedModel:
    family.classifier(family.tiny_config(**FIELDS)).save_pretrained(folder)
    return family.segmenter.from_pretrained(folder)


def assert_uniform(weights: Tensor, bound: float) -> None:
    assert 0.98 * bound < weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def assert_normal(weights: Tensor, std: float) -> None:
    assert weights.std().item() == pytest.approx(std, rel=0.05)
    assert abs(weights.mean().item()) < 0.05 * std
    assert (weights.abs() > 2 * std).float().mean().item() == pytest.approx(0.0455, abs=0.01)


@pytest.mark.parametrize("start", [fresh, from_a_classifier])
def test_statistics(family: Family, start: Start, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = start(family, tmp_path).decode_head
    for convolution in (*decoder.lateral_convs, *decoder.fpn_convs):
        fan_in, fan_out = (sides * convolution.weight[0, 0].numel() for sides in convolution.weight.shape[1::-1])
        assert_uniform(convolution.weight, math.sqrt(6 / (fan_in + fan_out)))
    for head in decoder.scale_heads:
        for block in head:
            if not isinstance(block, nn.Upsample):
                assert_normal(block.conv.weight, math.sqrt(2 / (9 * 48)))
    assert_normal(decoder.classifier.weight, 0.01)
    biases = {name: bias for name, bias in decoder.named_parameters() if name.endswith("bias")}
    assert len(biases) == 4 + 4 + 7 + 1 and not any(bias.any() for bias in biases.values())


@pytest.mark.parametrize(("family", "start"), [(PVT, fresh), (PVT_V2, from_a_classifier), (P2T, fresh)])
def test_the_first_loss_is_that_of_a_guess(family: Family, start: Start, tmp_path: Path) -> None:
    """With 150 labels ln 150 = 5.01; the backbone's rules gave 5.5 to 7.6."""
    torch.manual_seed(0)
    model = start(family, tmp_path).train()
    loss = model(torch.randn(2, 3, 64, 96), labels=torch.randint(LABELS, (2, 64, 96))).loss
    assert loss.item() == pytest.approx(math.log(LABELS), abs=0.05)
