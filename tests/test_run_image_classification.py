"""Runs of the classification script: what it learns, its recipes' elements, and what it says when something is wrong.

Kills are in test_training_kill.py, several processes and streams in test_training_processes.py.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classification_runs import configuration, digits, flags, launch, results, run, weights
from families import FAMILIES, PVT_V2, Family
from hub_server import TOKEN, HubServer
from PIL import Image
from run_image_classification import Classification, EvaluationView
from safetensors.torch import load_file
from test_original_checkpoints import published
from torch import nn
from training.checkpoints import CheckpointError
from training.images import BadImageError
from training.launch import TrainingError
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_pvt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All digits."""
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 digits to train on, 20 to validate."""
    return digits(tmp_path_factory.mktemp("small"), 48, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration of a PVTv2 that is too small to learn, and quick."""
    overrides = {"hidden_sizes": (8, 16, 20, 32), "mlp_ratios": (2, 2, 2, 2), "drop_path_rate": 0.1}
    return configuration(PVT_V2, tmp_path_factory.mktemp("tiny"), **overrides)


def few_steps(small: Path, tiny: str, output: Path, **values: Any) -> list[str]:
    """Six steps of sixteen images: two epochs."""
    defaults = {"from_scratch": tiny, "per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 1e-3}
    return flags(small, output, **(defaults | values))


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output of a run on all digits, by family."""
    root = tmp_path_factory.mktemp("learnt")
    for family in FAMILIES:
        values = {"per_device_train_batch_size": 64, "learning_rate": 2e-3, "num_train_epochs": 10, "warmup_epochs": 1}
        scratch = configuration(family, root / "configurations")
        process = launch(flags(data, root / family.name, from_scratch=scratch, **values))
        assert process.returncode == 0, process.stderr
    return {family.name: root / family.name for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_digits_are_learnt(family: Family, learnt: dict[str, Path], data: Path) -> None:
    output = learnt[family.name]
    record = results(output)
    assert record["metrics"]["examples"] == 360 and record["metrics"]["top1_accuracy"] >= 0.97
    assert record["steps"] == 220 and record["num_processes"] == 1 and record["bad_images"] == {}
    assert record["images_per_second"] == pytest.approx(220 * 64 / record["train_seconds"])
    assert record["arguments"]["learning_rate"] == 2e-3 and record["versions"]["torch"] == torch.__version__
    # What was measured is what anybody gets from the folder.
    folder = str(output / "model")
    classifier = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    files = sorted((data / "validation").glob("*/*.png"))
    found = [answer[0]["label"] for answer in classifier([str(file) for file in files], top_k=1, batch_size=60)]
    correct = sum(label == file.parent.name for label, file in zip(found, files, strict=True))
    assert correct / 360 == pytest.approx(record["metrics"]["top1_accuracy"], abs=1.1 / 360)


def test_the_model_card(learnt: dict[str, Path], data: Path) -> None:
    card = (learnt["pvt_v2"] / "model" / "README.md").read_text()
    accuracy = results(learnt["pvt_v2"])["metrics"]["top1_accuracy"]
    for line in ("library_name: transformers", "pipeline_tag: image-classification", f"value: {accuracy}"):
        assert line in card
    assert f"trained from scratch on `{data.name}/train`" in card and f"| top1_accuracy | {accuracy:.4f} |" in card
    assert "license" not in card and str(data) not in card
    assert not {path.suffix for path in (learnt["pvt_v2"] / "model").iterdir()} & {".bin", ".pt", ".pth", ".pkl"}


def test_the_model_is_pushed(hub: HubServer, small: Path, tiny: str, tmp_path: Path) -> None:
    """The model folder and nothing else, in one commit; without a token the run stops before it trains."""
    argv = few_steps(small, tiny, tmp_path / "out", max_steps=1, push_to_hub=True, hub_model_id="me/digits")
    environment = hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
    refused = launch(argv, **environment)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr and not (tmp_path / "out").exists()
    process = launch(argv, HF_TOKEN=TOKEN, **environment)
    assert process.returncode == 0, process.stderr
    pushed = hub.repos["me/digits"].files()
    folder = tmp_path / "out" / "model"
    assert pushed.keys() - {".gitattributes"} == {path.name for path in folder.iterdir()}
    assert pushed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b"# me/digits" in pushed["README.md"] and hub.count("POST", "*/commit/*") == 1


@pytest.mark.parametrize("source", ["folder", "pth"])
def test_a_fine_tune_beats_scratch_at_equal_steps(
    source: str, learnt: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """On nine of the digits under other names, so that the classifier is another."""
    values = {"per_device_train_batch_size": 32, "max_steps": 8, "learning_rate": 1e-3, "warmup_steps": 1, "seed": 1}
    nine = tmp_path / "nine"
    for part in ("train", "validation"):
        (nine / part).mkdir(parents=True)
        for label in range(9):
            (nine / part / f"digit {label}").symlink_to(data / part / str(label))
    start = learnt["p2t"] / "model"
    scratch = run(flags(nine, tmp_path / "scratch", from_scratch=start, **values))
    if source == "pth":
        model = hf_pvt.P2tForImageClassification.from_pretrained(start)
        start = tmp_path / "published.pth"
        torch.save({"model": published(model)}, start)
    tuned = run(flags(nine, tmp_path / "tuned", model_name_or_path=start, **values))
    assert tuned["metrics"]["top1_accuracy"] > scratch["metrics"]["top1_accuracy"] + 0.1
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned" / "model")
    assert list(model.config.id2label.values()) == [f"digit {label}" for label in range(9)]
    card = (tmp_path / "tuned" / "model" / "README.md").read_text()
    assert f"fine-tuned from `{start.name}`" in card and "license: cc-by-nc-sa-4.0" in card  # as P2T's weights


def test_the_published_recipe_runs(small: Path, tiny: str, tmp_path: Path) -> None:
    record = run(
        few_steps(
            small, tiny, tmp_path, recipe="pvt-imagenet", learning_rate=None, drop_path_rate=0.3, layer_decay=None
        )
    )
    used = record["arguments"]
    assert (used["mixup"], used["cutmix"], used["label_smoothing"], used["random_erasing"]) == (0.8, 1.0, 0.1, 0.25)
    assert (used["rand_augment"], used["repeated_augmentation"], used["weight_decay"]) == (9.0, 3, 0.05)
    assert used["num_train_epochs"] == 300 and used["warmup_epochs"] == 5 and used["layer_decay"] is None
    assert used["max_grad_norm"] == 1.0  # of the large ones, whose drop path is 0.3
    smaller = run(few_steps(small, tiny, tmp_path / "2", recipe="pvt-imagenet", max_steps=1))
    assert smaller["arguments"]["max_grad_norm"] is None


def test_configuration_from_a_file(small: Path, tiny: str, tmp_path: Path) -> None:
    argv = few_steps(small, tiny, tmp_path / "flags", seed=3, weight_decay=0.1)
    run(argv)
    pairs = dict(zip(argv[::2], argv[1::2], strict=True))
    lines = "".join(f"{name.removeprefix('--')}: {json.dumps(value)}\n" for name, value in pairs.items())
    (tmp_path / "run.yaml").write_text(lines)
    run(["--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "file")])
    torch.testing.assert_close(weights(tmp_path / "file"), weights(tmp_path / "flags"), rtol=0, atol=0)


def test_workers_and_accumulation_do_not_change_the_outcome(small: Path, tiny: str, tmp_path: Path) -> None:
    base = {"drop_path_rate": 0.0, "learning_rate": 1e-3}
    run(few_steps(small, tiny, tmp_path / "one", **base))
    run(few_steps(small, tiny, tmp_path / "workers", dataloader_num_workers=2, **base))
    torch.testing.assert_close(weights(tmp_path / "workers"), weights(tmp_path / "one"), rtol=0, atol=0)
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


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resume_in_the_middle_of_an_epoch(ema_decay: float | None, small: Path, tiny: str, tmp_path: Path) -> None:
    """Bit for bit, with mixing, drop path and repeated augmentation."""
    values = {"recipe": "pvt-imagenet", "max_steps": 7, "checkpointing_steps": 2, "ema_decay": ema_decay}
    run(few_steps(small, tiny, tmp_path / "whole", **values))
    for folder in ("checkpoint-6", "checkpoint-7", "model"):
        (tmp_path / "whole" / folder).rename(tmp_path / folder)
    run([*few_steps(small, tiny, tmp_path / "whole", **values), "--resume"])
    for name in ("model", "checkpoint-6"):
        again, before = (root / name / "model.safetensors" for root in (tmp_path / "whole", tmp_path))
        assert again.read_bytes() == before.read_bytes()


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
    assert sorted(tmp_path.glob("checkpoint-*")) == [last] and not (tmp_path / "model").exists()


def test_without_a_checkpoint_none_is_named(
    small: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: Classification, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return no_number(next(model.parameters()).sum(), model)

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(TrainingError, match=r"^the loss is nan in step 1, .*; there is no checkpoint\. "):
        run(few_steps(small, tiny, tmp_path, logging_steps=5))


BAD = {
    "empty.png": b"",
    "notes.txt": b"no image",
    "cut.png": None,
}


def a_class(root: Path, part: str) -> Path:
    return min((root / part).iterdir())


def spoiled(root: Path, part: str) -> dict[str, Path]:
    """Three bad files beside the digits of one class."""
    folder = a_class(root, part)
    cut = next(folder.glob("*.png")).read_bytes()[:80]
    for name, content in BAD.items():
        (folder / name).write_bytes(cut if content is None else content)
    return {name: folder / name for name in BAD}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_the_run(workers: int, tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    bad = a_class(data, "train") / "empty.png"
    bad.touch()
    with pytest.raises(BadImageError) as caught:
        run(few_steps(data, tiny, tmp_path / "out", dataloader_num_workers=workers, num_train_epochs=3, max_steps=None))
    assert f"{bad} is empty." in str(caught.value)


def test_an_expected_error_is_one_line(tiny: str, tmp_path: Path) -> None:
    """Of a worker process, too; and nothing looks as if there were a model."""
    data = digits(tmp_path / "data", 48, 20)
    bad = a_class(data, "validation") / "notes.txt"
    bad.write_text("no image")
    process = launch(few_steps(data, tiny, tmp_path / "out", max_steps=1, dataloader_num_workers=1))
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1] == f"error: {bad} is not an image."
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_counted_and_listed(
    workers: int, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = digits(tmp_path / "data", 48, 20)
    training, validation = spoiled(data, "train"), spoiled(data, "validation")
    values = {"on_bad_image": "skip", "dataloader_num_workers": workers, "max_steps": None, "num_train_epochs": 4}
    record = run(few_steps(data, tiny, tmp_path / "out", **values))
    assert record["bad_images"].keys() == {str(path) for path in (*training.values(), *validation.values())}
    assert record["bad_images"][str(training["empty.png"])] == "is empty"
    assert record["metrics"]["examples"] == 20  # those that are images
    assert "6 bad images were skipped:" in caplog.text
    assert f"{validation['notes.txt']} is not an image" in caplog.text


def test_a_class_without_images(tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    (data / "train" / "ten").mkdir()
    with pytest.raises(ValueError) as caught:
        run(few_steps(data, tiny, tmp_path / "out"))
    assert str(caught.value) == f"the class folder {data / 'train' / 'ten'} has no images; fill or remove it."


def test_a_validation_class_that_training_has_not(tiny: str, tmp_path: Path) -> None:
    data = digits(tmp_path / "data", 48, 20)
    a_class(data, "validation").rename(data / "validation" / "zero")
    with pytest.raises(ValueError, match=r"zero/\d+\.png has the label 'zero', which is none of the 10 labels\."):
        run(few_steps(data, tiny, tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_dir": "nowhere"}, "there is no folder nowhere."),
        ({"train_dir": None}, "there is no training data; give --train_dir, --train_files or --dataset_name."),
        ({"train_dir": None, "train_files": "gone*.tar"}, "no file matches gone*.tar."),
        ({"from_scratch": None}, "say where to start: either --model_name_or_path or --from_scratch."),
        ({"from_scratch": "pvt-v3"}, "unknown variant 'pvt-v3', expected one of: pvt-tiny, "),
        ({"per_device_train_batch_size": 49}, "the training data has 48 samples, fewer than one step takes (49 = "),
    ],
    ids=["folder", "no data", "no file", "no model", "no variant", "batch"],
)
def test_what_cannot_be_run(values: dict[str, Any], message: str, small: Path, tiny: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        run(few_steps(small, tiny, tmp_path, **values))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_share_of_the_training_data_is_held_out(small: Path, tiny: str, tmp_path: Path) -> None:
    record = run(few_steps(small, tiny, tmp_path, validation_dir=None, train_val_split=0.25))
    assert record["metrics"]["examples"] == 12
    without = run(few_steps(small, tiny, tmp_path / "2", validation_dir=None, max_steps=1))
    assert without["metrics"] == {}


def test_evaluation_and_checkpoints_by_epochs(
    small: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run(few_steps(small, tiny, tmp_path, eval_steps="epoch", checkpointing_steps="epoch"))
    assert re.findall(r"step (\d+): top1_accuracy", caplog.text) == ["3", "6"]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


def test_the_published_image_is_evaluated(tmp_path: Path) -> None:
    """Shorter side 256, centre crop 224: not the squashed image of Transformers' default."""
    processor = hf_pvt.classification_image_processor(224)
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    sample = EvaluationView(processor)((tmp_path / "image.png", "image.png", 3))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert sample["labels"] == 3 and sample["pixel_values"].shape == (3, 224, 224)
    torch.testing.assert_close(sample["pixel_values"], expected, rtol=0, atol=0)
