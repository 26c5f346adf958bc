"""What was measured, in the metadata of a model folder's card: beside what is reported, never over it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, metadata_load
from huggingface_hub.repocard import metadata_save
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..atomic_files import unfinished

PROJECT = "https://github.com/org/hf_pvt"
MEASURED = "measured by examples/evaluate_model.py"


def read_card(model: str) -> tuple[Path, dict[str, Any]]:
    """A model folder's README.md and its metadata, which may be empty.

    Raises:
        ValueError: the model is no folder, or the metadata is none that can be added to.
    """
    if Path(model).is_file():
        raise ValueError(
            f"--write_to_card wants a folder with a README.md, and {model} is a file; make one with "
            "`python conversion/convert.py`."
        )
    if not Path(model).is_dir():
        raise ValueError(
            f"--write_to_card wants a local folder, and {model} is none; get it with `hf download {model} --local-dir "
            "FOLDER`, evaluate that, and upload its README.md."
        )
    card = Path(model) / "README.md"
    try:
        metadata = (metadata_load(card) if card.is_file() else None) or {}
        for entry in metadata.get("model-index") or []:
            assert isinstance(entry["results"], list)
    except Exception as error:  # whatever the YAML is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the metadata of {card} cannot be read ({reason}); repair it.") from error
    return card, metadata


def measured_result(
    pipeline_tag: str,
    data: dict[str, str | None],
    metrics: Sequence[tuple[str, str, float]],
    examples: str,
    protocol: str,
    command: str,
) -> dict[str, Any]:
    """An entry for `model-index`.

    Args:
        data: the data's name, and split or configuration where it has them.
        metrics: the Hub's id, name and value, in [0, 1], of each.
        examples: how many were measured, such as "1,000 of 50,000 images".
        command: without local paths.
    """
    results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=str(data["name"]),
            dataset_name=f"{data['name']} ({examples})" if " of " in examples else str(data["name"]),
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            dataset_args={"examples": examples, "protocol": protocol},
            metric_type=metric,
            metric_name=f"{name}, % (measured on {examples})",
            metric_value=round(100 * value, 6),
            source_name=f"{MEASURED} {command}",
            source_url=PROJECT,
        )
        for metric, name, value in metrics
    ]
    return eval_results_to_model_index("", results)[0]["results"][0]


def write_to_card(model: str, result: dict[str, Any], pipeline_tag: str) -> Path:
    """Add a measured result to the card's metadata, in the place of an earlier one of the same data and protocol.

    The rest of the metadata and the text stay as they are. The file is written aside. (`metadata_update` of
    huggingface_hub would file our numbers under the source of the reported ones, where data and split are the same.)
    """
    card, metadata = read_card(model)
    if not metadata:
        metadata = {"library_name": "transformers", "pipeline_tag": pipeline_tag}
    if not metadata.get("model-index"):
        metadata["model-index"] = [{"name": Path(model).absolute().name, "results": []}]
    results = metadata["model-index"][0]["results"]
    same = [number for number, other in enumerate(results) if _is_same(other, result)]
    if same:
        results[same[0]] = result
    else:
        results.append(result)
    aside = unfinished(card)
    if card.is_file():
        shutil.copyfile(card, aside)
    else:
        aside.write_text(f"\n# {Path(model).absolute().name}\n", encoding="utf-8")
    metadata_save(aside, metadata)
    aside.replace(card)
    return card


def _is_same(other: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether another entry is an earlier measurement of ours, of the same data by the same protocol."""

    def key(entry: dict[str, Any]) -> Any:
        data = dict(entry.get("dataset") or {})
        arguments = dict(data.pop("args", None) or {})
        return entry.get("task"), data, arguments.get("protocol")

    measured = str((other.get("source") or {}).get("name", "")).startswith(MEASURED)
    return measured and key(other) == key(result)
