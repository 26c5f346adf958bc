"""Where training starts: random weights, saved folders, published files; and what becomes of their labels."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from checkpoints import FIELDS, mmsegmentation, published, segmenter
from families import P2T, PVT, PVT_V2, Family
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel

import hf_pvt
from hf_pvt.training.models import open_model

CLASSIFIER = AutoModelForImageClassification
NAMES = ["cat", "dog", "cow"]


@pytest.fixture(autouse=True)
def logging_of_accelerate() -> None:
    PartialState()


def saved(family: Family, head: str, folder: Path, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(5)
    model = getattr(family, head)(family.tiny_config(**(FIELDS | overrides))).eval()
    model.save_pretrained(folder)
    return model


def trunk(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("classifier")}


@pytest.mark.parametrize(("family", "source"), [(PVT, "folder"), (PVT_V2, "pth"), (P2T, "pth")], ids=str)
def test_the_classifier_is_replaced_where_labels_differ(family: Family, source: str, tmp_path: Path) -> None:
    model = saved(family, "classifier", tmp_path / "model")
    start = tmp_path / "model"
    if source == "pth":
        start = tmp_path / "published.pth"
        torch.save(published(model), start)
    tuned = open_model(CLASSIFIER, str(start), None, NAMES, seed=0, drop_path_rate=0.25)
    torch.testing.assert_close(trunk(tuned), trunk(model), rtol=0, atol=0)
    assert tuned.classifier.weight.shape == (3, 16) and tuned.config.label2id == {"cat": 0, "dog": 1, "cow": 2}
    assert tuned.config.drop_path_rate == 0.25
    assert tuned.base_model.encoder.layers[3].blocks[0].drop_path.rate == 0.25


@pytest.mark.parametrize("names", [[f"LABEL_{n}" for n in range(5)], [*"abcde"]], ids=["placeholders", "same"])
def test_the_classifier_stays(names: list[str], tmp_path: Path) -> None:
    """Where the labels are the same, or had no names."""
    model = saved(PVT_V2, "classifier", tmp_path, id2label=dict(enumerate(names)))
    kept = open_model(CLASSIFIER, str(tmp_path), None, [*"abcde"], seed=0)
    torch.testing.assert_close(kept.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert kept.config.id2label == dict(enumerate("abcde"))


def test_imagenets_classifier_stays(tmp_path: Path) -> None:
    """Published files do not name their 1,000 classes, and folders of ImageNet are called otherwise."""
    model = saved(PVT_V2, "classifier", tmp_path / "model", num_labels=1000)
    torch.save(published(model), tmp_path / "published.pth")
    names = [f"n{number:08}" for number in range(1000)]
    kept = open_model(CLASSIFIER, str(tmp_path / "published.pth"), None, names, seed=0)
    torch.testing.assert_close(kept.classifier.state_dict(), model.classifier.state_dict(), rtol=0, atol=0)
    assert list(kept.config.id2label.values()) == names


def test_the_classifier_is_kept_on_request(tmp_path: Path) -> None:
    model = saved(PVT_V2, "classifier", tmp_path, id2label=dict(enumerate("abcde")))
    kept = open_model(CLASSIFIER, str(tmp_path), None, [*"vwxyz"], seed=0, keep_classifier=True)
    assert kept.classifier.weight.equal(model.classifier.weight) and kept.config.id2label[4] == "z"
    fresh = open_model(CLASSIFIER, str(tmp_path), None, [*"vwxyz"], seed=0)
    assert not fresh.classifier.weight.equal(model.classifier.weight)
    with pytest.raises(ValueError, match="--keep_classifier: .* has 5 labels, the data 3"):
        open_model(CLASSIFIER, str(tmp_path), None, NAMES, seed=0, keep_classifier=True)


@pytest.mark.parametrize("family", [PVT, P2T], ids=str)
def test_a_classifier_starts_a_segmenter(family: Family, tmp_path: Path) -> None:
    model = saved(family, "classifier", tmp_path / "model")
    torch.save(published(model), tmp_path / "published.pth")
    for start in ("model", "published.pth"):
        tuned = open_model(AutoModelForSemanticSegmentation, str(tmp_path / start), None, NAMES, seed=0)
        weights = trunk(model)
        for name, weight in tuned.base_model.state_dict().items():
            assert weight.equal(weights[f"{model.base_model_prefix}.{name}"]), name
        assert tuned.config.num_labels == 3


def test_a_segmenter_keeps_its_decoder_for_other_labels(tmp_path: Path) -> None:
    model = saved(P2T, "segmenter", tmp_path)
    tuned = open_model(AutoModelForSemanticSegmentation, str(tmp_path), None, NAMES, seed=0)
    theirs, ours = model.decode_head.state_dict(), tuned.decode_head.state_dict()
    for name, weight in theirs.items():
        assert weight.equal(ours[name]) == (not name.startswith("classifier.")), name


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    """A PVT for segmentation has no norm after its last stage, which a classifier needs."""
    torch.save({"state_dict": mmsegmentation(segmenter(PVT))}, tmp_path / "fpn.pth")
    with pytest.raises(
        ValueError, match=r"fpn\.pth cannot start a PvtForImageClassification: it has no pvt\.encoder\."
    ):
        open_model(CLASSIFIER, str(tmp_path / "fpn.pth"), None, NAMES, seed=0)


@pytest.mark.parametrize(("family", "head"), [(PVT, "classifier"), (PVT_V2, "segmenter")], ids=str)
def test_fresh_layers_follow_from_the_seed(family: Family, head: str, tmp_path: Path) -> None:
    """A decoder on a classifier's folder, a classifier on a bare model's, with as many labels as Transformers' two."""
    missing = {"classifier": "model", "segmenter": "classifier"}[head]
    names = {"classifier": ["cat", "dog"], "segmenter": NAMES}[head]
    auto_class = {"classifier": CLASSIFIER, "segmenter": AutoModelForSemanticSegmentation}[head]
    config = family.tiny_config(num_labels=2)
    getattr(family, missing)(config).save_pretrained(tmp_path)
    models = []
    for process, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(process)  # what a process drew before
        models.append(open_model(auto_class, str(tmp_path), None, names, seed).state_dict())
    torch.testing.assert_close(models[0], models[1], rtol=0, atol=0)
    drawn = [name for name in models[0] if not models[0][name].equal(models[2][name])]
    assert "classifier.weight" in drawn or "decode_head.lateral_convs.0.weight" in drawn
    assert all(name.startswith(("classifier", "decode_head")) for name in drawn)


def test_a_folder_without_a_norm_is_refused(tmp_path: Path) -> None:
    """Of a PVT segmenter's folder as of its file: Transformers would draw what a classifier needs."""
    saved(PVT, "segmenter", tmp_path)
    with pytest.raises(ValueError, match=r"cannot start a PvtForImageClassification: it has no pvt\.encoder\."):
        open_model(CLASSIFIER, str(tmp_path), None, NAMES, seed=0)


def test_from_scratch(tmp_path: Path) -> None:
    PVT_V2.tiny_config().save_pretrained(tmp_path)
    first, again, other = (open_model(CLASSIFIER, None, str(tmp_path), NAMES, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not first.classifier.weight.equal(other.classifier.weight)
    variant = open_model(CLASSIFIER, None, "pvt-v2-b0", NAMES, seed=0, drop_path_rate=None)
    assert variant.config.drop_path_rate == hf_pvt.VARIANTS["pvt-v2-b0"].drop_path_rate
    for start, scratch in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="either --model_name_or_path or --from_scratch"):
            open_model(CLASSIFIER, start, scratch, NAMES, seed=0)


def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at once, without asking the Hub for a repository of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for start in ("pvt_v2_b1.pth", "out/pvt-v2-b0", "./pvt-v2-b0", "/nowhere/pvt-v2-b0"):
        with pytest.raises(FileNotFoundError, match=f"there is no file or folder {re.escape(start)} to start from"):
            open_model(CLASSIFIER, start, None, NAMES, 0)
