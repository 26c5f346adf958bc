"""The committed cards are what the template renders now, and the checker finds what is wrong with a card."""

import re
import shutil
from pathlib import Path

import card
import card_checker
import pytest
from card_checker import check_card
from huggingface_hub import ModelCard

from hf_pvt import PUBLISHED_DETECTORS, VARIANTS

CARDS = card.CARDS
NAMES = [f"{variant}{suffix}.md" for suffix in ("", "-ade20k") for variant in VARIANTS]
DETECTORS = [f"{detector}.md" for detector in PUBLISHED_DETECTORS]


def test_committed_cards_are_the_rendered_ones() -> None:
    """Without a problem."""
    rendered = {name: published.render() for name, published in card.published_cards().items()}
    assert sorted(path.name for path in CARDS.glob("*.md")) == sorted(rendered) == sorted(NAMES + DETECTORS)
    assert (len(NAMES), len(DETECTORS)) == (30, 38)
    committed = {name: (CARDS / name).read_text(encoding="utf-8") for name in rendered}
    assert [name for name in rendered if committed[name] != rendered[name]] == []
    problems = {name: check_card(CARDS / name) for name in rendered}
    assert {name: found for name, found in problems.items() if found} == {}


@pytest.mark.parametrize("suffix", ["", "-ade20k"], ids=["classification", "segmentation"])
def test_numbers_of_the_variants(suffix: str) -> None:
    """The table's."""
    for name, variant in VARIANTS.items():
        text = (CARDS / f"{name}{suffix}.md").read_text(encoding="utf-8")
        data = ModelCard(text).data
        (result,) = data.eval_results
        if suffix:
            expected = ("image-segmentation", "mean_iou", variant.miou_reported)
        else:
            expected = ("image-classification", "accuracy", variant.top1_reported)
        assert (data.pipeline_tag, result.metric_type, result.metric_value) == expected, name
        assert f"| {variant.fpn_parameters if suffix else variant.parameters:,} |" in text, name
        assert "reported" in result.metric_name and result.verified is None, name
        assert (data.license, data.library_name) == (variant.license, "transformers"), name
        assert ("trust_remote_code=True" in text) == (variant.model_type == "p2t" or bool(suffix)), name


def test_numbers_of_the_detectors() -> None:
    for name, detector in PUBLISHED_DETECTORS.items():
        text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
        data = ModelCard(text).data
        expected = [("box AP, % (reported by the authors)", detector.box_ap_reported)]
        if detector.mask_ap_reported is not None:
            expected.append(("mask AP, % (reported by the authors)", detector.mask_ap_reported))
        assert [(result.metric_name, result.metric_value) for result in data.eval_results] == expected, name
        assert {result.dataset_name for result in data.eval_results} == {"COCO"}, name
        repository = "yuhuan-wu/P2T" if "p2t" in name else "whai362/PVT"
        url = f"https://github.com/{repository}"
        sources = {(result.source_name, result.source_url) for result in data.eval_results}
        assert sources == {(repository, url)}, name
        assert f"**reported** by [the authors]({url}) for" in text, name
        assert data.pipeline_tag == ("object-detection" if len(expected) == 1 else "image-segmentation"), name
        assert f"| {detector.parameters:,} | {detector.gmacs_800x1280} |" in text, name
        assert data.license == detector.license and "trust_remote_code=True" in text, name


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A card, and the images beside it, to break."""
    shutil.copytree(CARDS / "images", tmp_path / "images")
    return Path(shutil.copy(CARDS / "p2t-tiny.md", tmp_path / "README.md"))


SEGMENT_OUTPUT = "- src: images/cat.jpg\n  output:\n    url: images/cat-labels.jpg"
SCORES = "- src: images/cat.jpg\n  output:\n  - label: cat\n    score: "


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("license: cc-by-nc-sa-4.0", "license: cc-by-free", "license 'cc-by-free' is not known, expected one of: "),
        ("license: cc-by-nc-sa-4.0", "license: apache-2.0", "license 'apache-2.0' is not that of P2T's weights"),
        ("license: cc-by-nc-sa-4.0\n", "", "license None is not known"),
        ("pipeline_tag: image-classification", "pipeline_tag: image-dreaming", "'image-dreaming' is no task"),
        ("library_name: transformers", "library_name: timm", "library_name is 'timm', expected 'transformers'"),
        ("value: 79.8", "value: .nan", "is nan, expected a finite number"),
        ("value: 79.8", "value: high", "is 'high', expected a finite number"),
        ("src: images/cat.jpg", "src: images/dog.jpg", "there is no file images/dog.jpg"),
        ("- src: images/cat.jpg", SEGMENT_OUTPUT, "there is no file images/cat-labels.jpg"),
        ("- src: images/cat.jpg", f"{SCORES}.inf", "is no label with a score in [0, 1]"),
        ("- src: images/cat.jpg", f"{SCORES}1.5", "is no label with a score in [0, 1]"),
        ("# p2t-tiny", "# p2t-tiny\n\n{{ name }}", "a placeholder is left: '{{'"),
        ("# p2t-tiny", "# p2t-tiny\n\nTODO: write", "a placeholder is left: 'TODO'"),
        ("# p2t-tiny", "# p2t-tiny\n\n[More Information Needed]", "[More Information Needed]"),
        ("| 11,590,840 |", "| None |", "a placeholder is left: 'None'"),
        ("## Citation", "## Training\n\n## Citation", "section 'Training' is empty"),
        ("## Citation", "[curve](images/curve.png)\n\n## Citation", "there is no file images/curve.png"),
        ("tags:\n- vision", "tags: [vision", "the front matter cannot be read"),
    ],
)
def test_problems_are_found(old: str, new: str, problem: str, copy: Path) -> None:
    assert check_card(copy) == []
    text = copy.read_text()
    assert old in text
    copy.write_text(text.replace(old, new))
    assert any(problem in found for found in check_card(copy)), check_card(copy)


def test_command(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per problem, and an exit status."""
    monkeypatch.setattr("sys.argv", ["card_checker.py", str(copy)])
    with pytest.raises(SystemExit) as ended:
        card_checker.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, "no problem found.\n")
    copy.write_text(re.sub("license: .*\n", "", copy.read_text()))
    with pytest.raises(SystemExit) as ended:
        card_checker.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(f"{copy}: license None is not known")
