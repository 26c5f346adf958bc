"""CITATION.cff says what the cards' BibTeX says, and which version this is."""

import re

import yaml
from papers import PAPERS
from paths import ROOT

import hf_pvt


def field(bibtex: str, name: str) -> str:
    found = re.search(rf"^ +{name}={{(.*?)}},?$", bibtex, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\s+", " ", found[1]) if found else ""


def test_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hf_pvt.__version__
    for reference, paper in zip(citation["references"], PAPERS.values(), strict=True):
        names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in reference["authors"])
        assert (reference["title"], reference["url"]) == (paper.title, paper.url)
        assert names == field(paper.bibtex, "author")
        assert str(reference["year"]) == field(paper.bibtex, "year")
        where = reference.get("journal") or reference.get("collection-title")
        assert where == field(paper.bibtex, "journal") or where == field(paper.bibtex, "booktitle")
