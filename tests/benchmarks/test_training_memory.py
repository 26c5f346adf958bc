"""The memory arithmetic of training: bytes counted by hand, and the stored results are what the script counts today."""

import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import hf_pvt
from benchmarks.results import RESULTS
from benchmarks.training_memory import COPIES, autocast, count, saved_storages

BATCH = 3


def saved(bf16: bool, *layers: nn.Module) -> list[int]:
    """The sizes that a forward of the layers saves for (3, 8) images."""
    model = nn.Sequential(*layers)
    with saved_storages(model) as sizes, autocast(model, bf16):
        output = model(torch.empty(BATCH, 8))
    assert output.requires_grad
    return sorted(sizes.values())


def test_float32_by_hand() -> None:
    """The first linear's input, and the ReLU's output once: it is the second linear's input. No weight is counted."""
    with FakeTensorMode():
        assert saved(False, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)) == [BATCH * 8 * 4, BATCH * 16 * 4]


def test_bfloat16_by_hand() -> None:
    """Activations halve; the second weight has a copy; LayerNorm keeps a float32 input, a mean and a deviation each."""
    with FakeTensorMode():
        linears = saved(True, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        assert linears == sorted([BATCH * 8 * 2, BATCH * 16 * 2, 16 * 4 * 2])
        norm = saved(True, nn.Linear(8, 16), nn.LayerNorm(16))
        assert norm == sorted([BATCH * 8 * 2, BATCH * 16 * 4, BATCH * 4, BATCH * 4])


def test_attention_saves_no_weights() -> None:
    """Queries, keys, values, the output and a logarithm per query, nothing of N x M."""
    heads, tokens, reduced, dim = 2, 64, 16, 8
    with FakeTensorMode():
        shapes = [(1, heads, length, dim) for length in (tokens, reduced, reduced)]
        query, key, value = (torch.empty(shape, requires_grad=True) for shape in shapes)
        with saved_storages(nn.Identity()) as sizes:
            output = F.scaled_dot_product_attention(query, key, value)
    assert output.requires_grad
    assert sorted(sizes.values()) == sorted([heads * tokens * 4] + [heads * n * dim * 4 for n in (64, 64, 16, 16)])


@pytest.mark.parametrize(
    ("task", "size", "parameters"),
    [("classifier", 224, 3_666_760), pytest.param("segmenter", 512, None, marks=pytest.mark.slow)],
)
def test_results_are_current(task: str, size: int, parameters: int | None) -> None:
    """The smallest variant, counted anew."""
    stored = json.loads((RESULTS / "training_memory.json").read_text())
    assert list(stored[task]) == list(hf_pvt.VARIANTS)
    labels = {"classifier": 1000, "segmenter": 150}[task]
    counted = count(task, hf_pvt.variant_config("pvt-v2-b0", num_labels=labels), (size,))
    row = stored[task]["pvt-v2-b0"]
    assert counted["states"] == row["states"]
    assert counted["activations"][str(size)] == row["activations"][str(size)]
    if parameters is not None:
        states = {name: round(copies * parameters * 4 / 2**20, 2) for name, copies in COPIES.items()}
        assert states == counted["states"]
        assert list(states.values()) == [13.99, 13.99, 27.98]
