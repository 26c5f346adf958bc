"""The loop: resumed, divided, averaged and mixed runs end where they should; what is not a number ends at once.

Kills are in runs/test_kill.py, several processes in runs/test_two_processes.py, streams in runs/test_processes.py.
"""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from classification_runs import digits, few_steps, run, too_small
from run_image_classification import Classification
from safetensors.torch import load_file
from script_runs import weights
from torch import nn

from hf_pvt.training.checkpoints import CheckpointError
from hf_pvt.training.launch import TrainingError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("small"), 48, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return too_small(tmp_path_factory.mktemp("tiny"))


@pytest.mark.processes
def test_workers_do_not_change_the_outcome(small: Path, tiny: str, tmp_path: Path) -> None:
    for name, workers in (("one", 0), ("workers", 2)):
        run(few_steps(small, tiny, tmp_path / name, dataloader_num_workers=workers))
    torch.testing.assert_close(weights(tmp_path / "workers"), weights(tmp_path / "one"), rtol=0, atol=0)


def test_accumulation_does_not_change_the_outcome(small: Path, tiny: str, tmp_path: Path) -> None:
    base = {"drop_path_rate": 0.0, "learning_rate": 1e-3}
    run(few_steps(small, tiny, tmp_path / "one", **base))
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    run(few_steps(small, tiny, tmp_path / "parts", **(base | parts)))
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "one"), rtol=0, atol=1e-5)


def test_mixed_precision(small: Path, tiny: str, tmp_path: Path) -> None:
    """Products in bfloat16 move the outcome by their rounding; what is saved is float32."""
    exact = run(few_steps(small, tiny, tmp_path / "exact"))
    mixed = run(few_steps(small, tiny, tmp_path / "mixed", mixed_precision="bf16"))
    assert exact["arguments"]["mixed_precision"] is None and mixed["arguments"]["mixed_precision"] == "bf16"
    expected, found = weights(tmp_path / "exact"), weights(tmp_path / "mixed")
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    difference = max((found[name] - expected[name]).abs().max() for name in expected)
    assert 0 < difference < 2 * 6 * 1e-3  # Adam moves each weight by the rate at most


def test_recomputed_activations_give_the_same_gradients(small: Path, tiny: str, tmp_path: Path) -> None:
    run(few_steps(small, tiny, tmp_path / "plain", max_steps=3))
    run(few_steps(small, tiny, tmp_path / "less", max_steps=3, gradient_checkpointing=True, channels_last=True))
    torch.testing.assert_close(weights(tmp_path / "less"), weights(tmp_path / "plain"), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled(small: Path, tmp_path: Path) -> None:
    """Compiled code trains to the same weights, under the same names."""
    tiny = too_small(tmp_path, depths=(1, 1, 1, 1))
    # All images of the validation at once: another number would be compiled for once more.
    plain = {"drop_path_rate": 0.0, "max_steps": 2, "per_device_eval_batch_size": 20}
    run(few_steps(small, tiny, tmp_path / "eager", **plain))
    torch._dynamo.utils.counters.clear()
    run(few_steps(small, tiny, tmp_path / "compiled", compile=True, **plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    torch.testing.assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "eager"), rtol=0, atol=1e-4)


def test_the_moving_average(small: Path, tiny: str, tmp_path: Path) -> None:
    """What is saved is the average of the weights after each step: the first step's, then a fifth of each new one."""
    every = {"checkpointing_steps": 1, "max_steps": 4, "learning_rate": 1e-2}
    run(few_steps(small, tiny, tmp_path, ema_decay=0.8, **every))
    name = "pvt_v2.encoder.layers.3.blocks.0.mlp.dense1.weight"
    steps = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")[name] for step in range(1, 5)]
    average = steps[0]
    for weight in steps[1:]:
        average = 0.8 * average + 0.2 * weight
    saved = weights(tmp_path)[name]
    torch.testing.assert_close(saved, average)
    assert not torch.allclose(saved, steps[-1], atol=1e-4)


def test_resume_in_the_middle_of_an_epoch(small: Path, tiny: str, tmp_path: Path) -> None:
    """Bit for bit, with mixing, drop path, repeated augmentation and a moving average."""
    values = {"recipe": "pvt-imagenet", "max_steps": 7, "checkpointing_steps": 2, "ema_decay": 0.9}
    run(few_steps(small, tiny, tmp_path / "whole", **values))
    for folder in ("checkpoint-6", "checkpoint-7", "model"):
        (tmp_path / "whole" / folder).rename(tmp_path / folder)
    run([*few_steps(small, tiny, tmp_path / "whole", **values), "--resume"])
    for name in ("model", "checkpoint-6"):
        again, before = (root / name / "model.safetensors" for root in (tmp_path / "whole", tmp_path))
        assert again.read_bytes() == before.read_bytes()


def test_a_finished_run_is_not_replaced(small: Path, tiny: str, tmp_path: Path) -> None:
    record = run(few_steps(small, tiny, tmp_path, max_steps=1))
    assert record["peak_learning_rate"] == 1e-3
    before = weights(tmp_path)
    with pytest.raises(ValueError, match="has the model of another run; choose another folder"):
        run(few_steps(small, tiny, tmp_path, max_steps=1, seed=1))
    torch.testing.assert_close(weights(tmp_path), before, rtol=0, atol=0)


def test_resume_with_other_arguments_is_refused(small: Path, tiny: str, tmp_path: Path) -> None:
    run(few_steps(small, tiny, tmp_path, max_steps=2, checkpointing_steps=1, checkpoints_total_limit=1))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    other = few_steps(small, tiny, tmp_path, max_steps=3, seed=1, per_device_train_batch_size=8)
    with pytest.raises(CheckpointError) as caught:
        run([*other, "--resume"])
    assert (
        "belongs to another run: global_batch was 16 and is 8; max_steps was 2 and is 3; seed was 0 and is 1."
        in str(caught.value)
    )
    with pytest.raises(ValueError, match=r"has checkpoints; continue with --resume, or choose another folder\."):
        run(few_steps(small, tiny, tmp_path, max_steps=2))


def test_resume_with_another_share_of_the_same_batch(small: Path, tiny: str, tmp_path: Path) -> None:
    """What does not change the weights may change, such as how a step's images are divided."""
    values = {"max_steps": 5, "drop_path_rate": 0.0, "checkpointing_steps": 1, "learning_rate": 1e-3}
    run(few_steps(small, tiny, tmp_path / "out", **values))
    whole = weights(tmp_path / "out")
    divided = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    first = {"resume_from_checkpoint": tmp_path / "out" / "checkpoint-1", "checkpointing_steps": None}
    assert run(few_steps(small, tiny, tmp_path / "out", **(values | divided | first)))["steps"] == 5
    torch.testing.assert_close(weights(tmp_path / "out"), whole, rtol=0, atol=1e-5)


def no_number(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return loss * torch.nan


def no_gradient(loss: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """The value of the loss, whose gradient is not a number: the root's slope at zero."""
    weight = next(model.parameters())
    return loss + (weight - weight.detach()).square().sum().sqrt()


def test_weights_that_are_no_numbers_are_no_model(
    small: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step, without a checkpoint that would have looked at them."""
    healthy = Classification.loss
    spoilt = lambda self, model, batch: no_gradient(healthy(self, model, batch), model)  # noqa: E731
    monkeypatch.setattr(Classification, "loss", spoilt)
    with pytest.raises(TrainingError, match=r"^the weights are no longer finite after an update in step 1, "):
        run(few_steps(small, tiny, tmp_path, max_steps=1))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (no_number, "the loss is nan in step 4, at learning rate 0.0005"),
        (no_gradient, "the weights are no longer finite after an update in step 4, at learning rate 0.0005"),
    ],
)
def test_what_is_not_a_number_stops_the_run(
    spoil: Callable[..., torch.Tensor],
    what: str,
    small: Path,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the fourth step of six, where half of the cosine is over, before the checkpoint after it."""
    losses = []
    healthy = Classification.loss

    def loss(self: Classification, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        losses.append(healthy(self, model, batch))
        return spoil(losses[-1], model) if len(losses) == 4 else losses[-1]

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(TrainingError) as caught:
        run(few_steps(small, tiny, tmp_path, warmup_steps=0, checkpointing_steps=2))
    last = tmp_path / "checkpoint-2"
    assert str(caught.value).startswith(f"{what}; the last good checkpoint is {last}. Lower --learning_rate, ")
    assert str(caught.value).endswith("and continue from there or earlier with --resume_changed.")
    assert sorted(tmp_path.glob("checkpoint-*")) == [last] and not (tmp_path / "model").exists()
    # As the message says; what changed is in the record, after another interruption, too.
    lower = [*few_steps(small, tiny, tmp_path, warmup_steps=0, checkpointing_steps=2, learning_rate=5e-4), "--resume"]
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.001 and is 0\.0005"):
        run(lower)
    for _ in range(2):
        record = run([*lower, "--resume_changed"])
        assert record["changes"] == [{"after_step": 2, "was_and_is": {"learning_rate": [1e-3, 5e-4]}}]
        assert "* up to step 2: learning_rate 0.001\n" in (tmp_path / "model" / "README.md").read_text()
        for path in (tmp_path / "checkpoint-6", tmp_path / "model"):
            shutil.rmtree(path)


def test_without_a_checkpoint_none_is_named(
    small: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: Classification, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return no_number(next(model.parameters()).sum(), model)

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(TrainingError, match=r"^the loss is nan in step 1, .*; there is no checkpoint\. "):
        run(few_steps(small, tiny, tmp_path, logging_steps=5))


def test_evaluation_and_checkpoints_by_epochs(
    small: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run(few_steps(small, tiny, tmp_path, eval_steps="epoch", checkpointing_steps="epoch"))
    assert re.findall(r"step (\d+): top1_accuracy", caplog.text) == ["3", "6"]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_trackers_are_told(small: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every tracker of accelerate gets: the arguments first, then losses, rates and scores by their step."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config: told.append((name, config)))
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: told.append((step, values)))
    record = run(few_steps(small, tiny, tmp_path / "digits", logging_steps=2, eval_steps=3, warmup_steps=0))
    name, config = told[0]
    assert name == "digits" and config["learning_rate"] == 1e-3 and config["max_grad_norm"] == "None"
    assert [step for step, _ in told[1:]] == [2, 3, 4, 6, 6]
    assert told[1][1]["learning_rate"] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 6)) / 2)
    assert told[-1][1] == {k: v for k, v in record["metrics"].items() if k not in ("examples", "remarks")}
