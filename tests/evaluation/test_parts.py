"""What evaluate_model.py writes into a card, and how it matches labels: the parts, without a model."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from card_checker import check_card
from huggingface_hub import ModelCard, metadata_load
from paths import ROOT
from refusals import refusal
from timm.data import ImageNetInfo

import hf_pvt
from hf_pvt.evaluation.imagenet_files import flat_files
from hf_pvt.evaluation.matched_labels import check_order, match_labels, wordnet_ids
from hf_pvt.evaluation.measured_card import measured_result, write_to_card
from hf_pvt.evaluation.units import Units

CARDS = ROOT / "model_cards"
IMAGENET = list(hf_pvt.imagenet_1k_id2label().values())


def measured(value: float = 0.8195, examples: str = "50,000 images", **data: str) -> dict[str, Any]:
    """Of the very data set and split that the card reports on."""
    place: dict[str, str | None] = {"name": "ILSVRC/imagenet-1k", "split": "validation", "config": None}
    metrics = [("accuracy", "top-1 accuracy", value), ("accuracy", "top-5 accuracy", 0.96)]
    return measured_result("image-classification", place | data, metrics, examples, "centre crop 224x224", "model")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a published card."""
    shutil.copytree(CARDS / "images", tmp_path / "pvt-v2-b2" / "images")
    shutil.copy(CARDS / "pvt-v2-b2.md", tmp_path / "pvt-v2-b2" / "README.md")
    return tmp_path / "pvt-v2-b2"


def test_beside_what_is_reported(model: Path) -> None:
    card = model / "README.md"
    before, text = metadata_load(card), ModelCard(card.read_text()).text
    write_to_card(str(model), measured(0.5), "image-classification")
    write_to_card(str(model), measured(), "image-classification")
    after = metadata_load(card)
    assert list(after) == list(before) and ModelCard(card.read_text()).text == text
    assert {k: v for k, v in after.items() if k != "model-index"} == {
        k: v for k, v in before.items() if k != "model-index"
    }
    reported, ours = after["model-index"][0].pop("results")
    assert [reported] == before["model-index"][0].pop("results") and after["model-index"] == before["model-index"]
    assert [metric["value"] for metric in ours["metrics"]] == [81.95, 96.0]
    assert ours["source"]["name"] == "measured by examples/evaluate_model.py model"
    assert check_card(card) == []
    assert [path.name for path in model.iterdir() if path.is_file()] == ["README.md"]
    values = [result.metric_value for result in ModelCard(card.read_text()).data.eval_results]
    assert values == [82.0, 81.95, 96.0]  # as the Hub reads it


def test_other_measurements_stay(model: Path) -> None:
    """A part of the data, another split, another protocol and what others measured are other results."""
    other = measured()
    other["dataset"]["args"]["protocol"] = "centre crop 384x384"
    theirs = measured(0.7) | {"source": {"name": "somebody else", "url": "https://example.org"}}
    part = measured(examples="1,000 of 50,000 images")
    for result in (theirs, part, measured(split="test"), other, measured(), measured()):
        write_to_card(str(model), result, "image-classification")
    results = metadata_load(model / "README.md")["model-index"][0]["results"]
    assert len(results) == 6 and results[1] == theirs
    assert results[2]["dataset"]["name"] == "ILSVRC/imagenet-1k (1,000 of 50,000 images)"


@pytest.mark.parametrize(
    "text",
    [None, "# My model\n\nIt is good.\n", "---\nlicense: mit\n---\n\nIt is good.\n"],
    ids=["no card", "no metadata", "no results"],
)
def test_card_without_results(text: str | None, tmp_path: Path) -> None:
    """No card, no metadata, or none about results."""
    card = tmp_path / "README.md"
    if text is not None:
        card.write_text(text)
    write_to_card(str(tmp_path), measured(), "image-classification")
    metadata = metadata_load(card)
    if text and "license" in text:
        assert list(metadata) == ["license", "model-index"] and metadata["license"] == "mit"
    else:
        assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["model-index"][0]["results"] == [measured()]
    assert ("It is good." if text else f"# {tmp_path.name}") in card.read_text()


def test_wordnet_ids() -> None:
    assert wordnet_ids() == ImageNetInfo("imagenet-1k").label_names()


def test_labels() -> None:
    cases: dict[str, tuple[list[str], list[str], bool, dict[str, int]]] = {
        "names": (["b", "a"], ["a", "b", "c"], False, {"a": 0, "b": 1}),
        "numbers that are names": (["2", "10"], ["2", "1", "10"], False, {"2": 0, "10": 2}),
        "numbers": (["0", "2"], ["a", "b", "c"], False, {"0": 0, "2": 2}),
        "WordNet": (["n01440764", "n15075141"], IMAGENET, False, {"n01440764": 0, "n15075141": 999}),
        "order": (["y", "x"], ["a", "b"], True, {"y": 0, "x": 1}),
    }
    for case, (found, names, by_number, expected) in cases.items():
        assert match_labels(found, names, by_number)[0] == expected, case


def test_labels_that_do_not_match() -> None:
    cases: dict[str, tuple[list[str], list[str], str]] = {
        "from one": (["1", "1000"], IMAGENET, "from 1 to 1000 and seem to count from 1; expected 0 to 999"),
        "too high": (["0", "5"], ["a", "b"], "from 0 to 5; expected 0 to 1"),
        "no synset": (["n00000001"], IMAGENET, "1 of the WordNet ids are none of ImageNet-1k's 1,000: n00000001"),
        "twice": (["a"], ["a", "a"], "several labels of the name a; give --labels_by_number"),
    }
    for case, (found, names, sentence) in cases.items():
        assert sentence in refusal(case, match_labels, found, names), case


def validation_files(numbers: list[int], labels: list[str]) -> list[tuple[Path, str]]:
    return [(Path(f"val/ILSVRC2012_val_{n:08d}.JPEG"), label) for n, label in zip(numbers, labels, strict=True)]


def test_order_of_the_ground_truth() -> None:
    """The sorted order and WordNet ids pass; ILSVRC's own order, also from 0, and what may be it, do not."""
    check_order(validation_files([1, 2, 3], ["65", "970", "230"]))
    check_order(validation_files([1, 9], ["n01751748", "n03794056"]))
    check_order([(Path("my/1.png"), "489")])
    with pytest.raises(ValueError, match="00000001 has the label 489, .* from 0, it is 65: these numbers"):
        check_order(validation_files([1, 2], ["489", "360"]))
    with pytest.raises(ValueError, match="cannot be told apart without ILSVRC2012_val_00000001; give WordNet ids"):
        check_order(validation_files([77], ["65"]))


def test_flat_files(tmp_path: Path) -> None:
    """The labels may lie beside the images."""
    for number in (3, 1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    cases = {
        "in order": "c\na\nb\n",
        "files": "2.png a\nval/3.png b\n1.png c\n",
        "stems": "3 b\n\n1 c\n2 a",
        "Kaggle": "ImageId,PredictionString\n2,a 1 2 3 4\n1,c\n3,b 5\n",
    }
    for case, lines in cases.items():
        (tmp_path / "labels.txt").write_text(lines)
        found = flat_files(str(tmp_path), str(tmp_path / "labels.txt"))
        assert [(file.name, label) for file, label in found] == [("1.png", "c"), ("2.png", "a"), ("3.png", "b")], case


def test_flat_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "val" / f"{number}.png").write_bytes(b"")
    cases = {
        "fewer": ("a\nb", "has 2 labels, and "),
        "unlabelled": ("1 a\n2 b", "3.png has no label in "),
        "lost": ("1 a\n2 b\n3 c\n4 d", "has labels of 1 images that are not there, the first 4"),
        "twice": ("1 a\n1 b\n2 c\n3 d", "has two labels of 1, a and b; remove one"),
        "words": ("1 a b\n2", "has lines of 1 to 3 words; expected `label` or `file label` in each"),
        "empty": ("", "has lines of 0 to 0 words"),
    }
    table = tmp_path / "labels.txt"
    for case, (lines, sentence) in cases.items():
        table.write_text(lines)
        assert sentence in refusal(case, flat_files, str(tmp_path / "val"), str(table)), case


def test_units_hold_each_sample_once() -> None:
    units = Units(Path("out"), samples=201, size=50)
    batches = [batch for unit in range(units.count) for batch in units.batches(unit, 32)]
    assert units.count == 5 and [index for batch in batches for index, _ in batch] == list(range(201))
    assert all(counts for batch in batches for _, counts in batch) and max(map(len, batches)) == 32
