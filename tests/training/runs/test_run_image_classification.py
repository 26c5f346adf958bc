"""What the classification script learns, and what it leaves: a model, a card, results.

The loop's tests are ../test_loop.py and what stands beside it.
"""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import published
from classification_runs import configuration, digits, few_steps, flags, launch, run, too_small
from families import P2T, PVT_V2
from hub_server import TOKEN, HubServer
from PIL import Image
from run_image_classification import RECIPES
from script_runs import results, weights
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_pvt
from hf_pvt.training.evaluators.classification import ClassificationView
from hf_pvt.training.results import save_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All digits."""
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("small"), 48, 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return too_small(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on all digits."""
    root = tmp_path_factory.mktemp("learnt")
    values = {"per_device_train_batch_size": 64, "learning_rate": 2e-3, "num_train_epochs": 10, "warmup_epochs": 1}
    run(flags(data, root / "run", from_scratch=configuration(P2T, root / "configurations"), **values))
    return root / "run"


@pytest.mark.slow
def test_digits_are_learnt(learnt: Path, data: Path) -> None:
    record = results(learnt)
    assert record["metrics"]["examples"] == 360 and record["metrics"]["top1_accuracy"] >= 0.97
    assert record["steps"] == 220 and record["num_processes"] == 1 and record["bad_images"] == {}
    assert record["images_per_second"] == pytest.approx(220 * 64 / record["train_seconds"])
    assert record["arguments"]["learning_rate"] == 2e-3 and record["versions"]["torch"] == torch.__version__
    # What was measured is what anybody gets from the folder.
    folder = str(learnt / "model")
    classifier = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    files = sorted((data / "validation").glob("*/*.png"))
    found = [answer[0]["label"] for answer in classifier([str(file) for file in files], top_k=1, batch_size=60)]
    correct = sum(label == file.parent.name for label, file in zip(found, files, strict=True))
    assert correct / 360 == pytest.approx(record["metrics"]["top1_accuracy"], abs=1.1 / 360)


@pytest.mark.slow
def test_the_model_card(learnt: Path, data: Path) -> None:
    card = (learnt / "model" / "README.md").read_text()
    accuracy = results(learnt)["metrics"]["top1_accuracy"]
    for line in ("library_name: transformers", "pipeline_tag: image-classification", f"value: {accuracy}"):
        assert line in card
    assert f"trained from scratch on `{data.name}/train`" in card and f"| top1_accuracy | {accuracy:.4f} |" in card
    assert "license" not in card and str(data) not in card
    assert not {path.suffix for path in (learnt / "model").iterdir()} & {".bin", ".pt", ".pth", ".pkl"}


def test_a_model_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last rename fails, or the process dies before it, the model that was there is still on the disk."""
    model, folder = PVT_V2.classifier(PVT_V2.tiny_config()), tmp_path / "model"
    processor = hf_pvt.classification_image_processor(64)

    def save(card: str) -> None:
        save_model(model, model.state_dict(), processor, card, folder)

    save("first")
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.suffix == ".incomplete":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", dies)
        save("second")
    cards = {path.name: (path / "README.md").read_text() for path in tmp_path.iterdir()}
    assert cards == {"model.previous": "first", "model.incomplete": "second"}
    save("third")
    assert [(path.name, (path / "README.md").read_text()) for path in tmp_path.iterdir()] == [("model", "third")]


@pytest.mark.processes
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


@pytest.mark.slow
def test_a_fine_tune_beats_scratch_at_equal_steps(learnt: Path, data: Path, tmp_path: Path) -> None:
    """On nine digits under other names, so that the classifier is another; from a folder and a published file."""
    values = {"per_device_train_batch_size": 32, "max_steps": 8, "learning_rate": 1e-3, "warmup_steps": 1, "seed": 1}
    nine = tmp_path / "nine"
    for part in ("train", "validation"):
        (nine / part).mkdir(parents=True)
        for label in range(9):
            (nine / part / f"digit {label}").symlink_to(data / part / str(label))
    folder, file = learnt / "model", tmp_path / "published.pth"
    torch.save({"model": published(hf_pvt.P2tForImageClassification.from_pretrained(folder))}, file)
    scratch = run(flags(nine, tmp_path / "scratch", from_scratch=folder, **values))
    for start in (folder, file):
        output = tmp_path / f"tuned-{start.stem}"
        tuned = run(flags(nine, output, model_name_or_path=start, **values))
        assert tuned["metrics"]["top1_accuracy"] > scratch["metrics"]["top1_accuracy"] + 0.1, start.name
        model = AutoModelForImageClassification.from_pretrained(output / "model")
        assert list(model.config.id2label.values()) == [f"digit {label}" for label in range(9)]
        card = (output / "model" / "README.md").read_text()
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
    assert used["without_decay"] == ["vectors", "cls_token"]
    smaller = run(few_steps(small, tiny, tmp_path / "2", recipe="pvt-imagenet", max_steps=1))
    assert smaller["arguments"]["max_grad_norm"] is None


def test_the_recipe_of_p2t(small: Path, tmp_path: Path) -> None:
    """20 epochs of warm-up, and no clipping where drop path is 0.3 either; all else is PVT's."""
    scratch = configuration(P2T, tmp_path, hidden_sizes=(8, 16, 20, 32), mlp_ratios=(2, 2, 2, 2))
    record = run(few_steps(small, scratch, tmp_path / "out", recipe="p2t-imagenet", max_steps=1, drop_path_rate=0.3))
    assert record["arguments"]["warmup_epochs"] == 20 and record["arguments"]["max_grad_norm"] is None
    assert RECIPES["p2t-imagenet"] == RECIPES["pvt-imagenet"] | {"warmup_epochs": 20.0}


def test_configuration_from_a_file(small: Path, tiny: str, tmp_path: Path) -> None:
    argv = few_steps(small, tiny, tmp_path / "flags", seed=3, weight_decay=0.1)
    run(argv)
    pairs = dict(zip(argv[::2], argv[1::2], strict=True))
    lines = "".join(f"{name.removeprefix('--')}: {json.dumps(value)}\n" for name, value in pairs.items())
    (tmp_path / "run.yaml").write_text(lines)
    run(["--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "file")])
    torch.testing.assert_close(weights(tmp_path / "file"), weights(tmp_path / "flags"), rtol=0, atol=0)


def test_a_share_of_the_training_data_is_held_out(small: Path, tiny: str, tmp_path: Path) -> None:
    record = run(few_steps(small, tiny, tmp_path, validation_dir=None, train_val_split=0.25))
    assert record["metrics"]["examples"] == 12
    without = run(few_steps(small, tiny, tmp_path / "2", validation_dir=None, max_steps=1))
    assert without["metrics"] == {}


def test_the_published_image_is_evaluated(tmp_path: Path) -> None:
    """Shorter side 256, centre crop 224: not the squashed image of Transformers' default."""
    processor = hf_pvt.classification_image_processor(224)
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    image.save(tmp_path / "image.png")
    sample = ClassificationView(processor)((tmp_path / "image.png", "image.png", 3))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert sample["labels"] == 3 and sample["pixel_values"].shape == (3, 224, 224)
    torch.testing.assert_close(sample["pixel_values"], expected, rtol=0, atol=0)
