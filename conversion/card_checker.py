"""Checks model cards without a network: the Hub's own validation needs one, and its offline classes accept anything.

    python conversion/card_checker.py model_cards/*.md

Prints one line per problem and ends with status 1 where there is one.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers.pipelines import PIPELINE_REGISTRY

# The Hub's identifiers of the licences that these weights, and what people make of them, can have.
LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "openrail", "other",
}  # fmt: skip
P2T_LICENSES = {"cc-by-nc-sa-4.0"}

PLACEHOLDERS = re.compile(
    r"\{\{|\}\}|\{%|\bNone\b|\bnan\b|(?i:\b(?:TODO|FIXME|XXX|TBD)\b|\[More Information Needed\]|lorem ipsum|<your)"
)


def check_card(path: Path) -> list[str]:
    """What is wrong with a card, a sentence each; files that it names lie beside it."""
    try:
        card = ModelCard.load(path, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        return [f"the front matter cannot be read: {error}"]
    metadata = card.data.to_dict()
    return [
        *_check_identity(metadata),
        *_check_results(metadata),
        *(problem for example in metadata.get("widget") or [] for problem in _check_widget(example, path.parent)),
        *_check_text(card.text, path.parent),
    ]


def _check_identity(metadata: dict[str, Any]) -> list[str]:
    problems = []
    if metadata.get("library_name") != "transformers":
        problems.append(f"library_name is {metadata.get('library_name')!r}, expected 'transformers'")
    license_name = metadata.get("license")
    if license_name not in LICENSES:
        problems.append(f"license {license_name!r} is not known, expected one of: {', '.join(sorted(LICENSES))}")
    if "p2t" in (metadata.get("tags") or []) and license_name not in P2T_LICENSES:
        problems.append(f"license {license_name!r} is not that of P2T's weights, cc-by-nc-sa-4.0")
    tag = metadata.get("pipeline_tag")
    if tag not in PIPELINE_REGISTRY.get_supported_tasks():
        problems.append(f"pipeline_tag {tag!r} is no task of Transformers")
    return problems


def _check_results(metadata: dict[str, Any]) -> list[str]:
    return [
        f"model-index: {metric.get('name') or metric.get('type')} is {metric.get('value')!r}, expected a finite number"
        for entry in metadata.get("model-index") or []
        for result in entry.get("results") or []
        for metric in result.get("metrics") or []
        if not _is_finite(metric.get("value"))
    ]


def _check_widget(example: dict[str, Any], folder: Path) -> list[str]:
    problems = []
    output = example.get("output")
    files = [example.get("src"), output.get("url") if isinstance(output, dict) else None]
    for file in files:
        if file and not re.match(r"https?://", file) and not (folder / file).is_file():
            problems.append(f"widget: there is no file {file}")
    for answer in output if isinstance(output, list) else []:
        if not (answer.get("label") and _is_finite(answer.get("score")) and 0 <= answer["score"] <= 1):
            problems.append(f"widget: {answer!r} of {example.get('src')} is no label with a score in [0, 1]")
    return problems


def _check_text(text: str, folder: Path) -> list[str]:
    problems = [f"a placeholder is left: {found!r}" for found in sorted(set(PLACEHOLDERS.findall(text)))]
    problems += [f"section {title!r} is empty" for title in re.findall(r"^#+ (.+)\n+(?=#+ |\Z)", text, re.MULTILINE)]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#|mailto:", target) and not (folder / target).is_file():
            problems.append(f"there is no file {target}")
    return problems


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cards", nargs="+", type=Path)
    problems = [f"{path}: {problem}" for path in parser.parse_args().cards for problem in check_card(path)]
    print("\n".join(problems) or "no problem found.")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
