"""What a run leaves: results.json, and a model folder with a card that says what was trained on what."""

import json
import os
import platform
import shutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import jinja2
import yaml
from accelerate.logging import get_logger
from huggingface_hub import HfApi
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..atomic_files import write_whole
from ..published.variants import WEIGHTS_LICENSES
from .arguments import DataArguments, data_name
from .loop import Loop, numbers_of

logger = get_logger(__name__)

LIBRARIES = ("hf_pvt", "torch", "torchvision", "transformers", "accelerate", "datasets")
TEMPLATE = Path(__file__).parent / "model_card.md.jinja"


def versions() -> dict[str, str]:
    """Python's and the libraries'."""
    return {"python": platform.python_version()} | {name: import_module(name).__version__ for name in LIBRARIES}


def finish(
    loop: Loop,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    task: str,
    start: str | None,
    data: DataArguments,
    arguments: dict[str, Any],
) -> None:
    """Write the model folder and results.json, list the bad images, upload. Every process has to call this.

    Args:
        model: the one that the loop was given.
        task, start, data: see `model_card`.
        arguments: all flags, for the record.
    """
    weights = loop.final_weights()
    if loop.accelerator.is_main_process:
        processes, steps, images = loop.accelerator.num_processes, loop.step, loop.step * loop.images_per_step
        numbers = numbers_of(loop.metrics)
        name = arguments["hub_model_id"] or loop.output_dir.absolute().name
        facts = _facts(loop.identity) | {"steps": steps, "processes": processes}
        remarks = loop.metrics.get("remarks", {})
        for change in loop.changes:
            before = ", ".join(f"{name} {was}" for name, (was, _) in change["was_and_is"].items())
            facts[f"up to step {change['after_step']}"] = before
        card = model_card(name, arguments["hub_model_id"], model, task, start, data, numbers, remarks, facts)
        folder, config = loop.output_dir / "model", cast(Any, model.config)
        save_model(model, weights, processor, card, folder)
        results = {
            "labels": [config.id2label[label] for label in range(config.num_labels)],
            "metrics": loop.metrics,
            "steps": steps,
            "num_processes": processes,
            "peak_learning_rate": loop.schedule.peak,
            "train_seconds": loop.seconds,
            "images_per_second": images / loop.seconds if loop.seconds else None,
            "peak_memory_gib": loop.memory(),
            "bad_images": loop.bad,
            "changes": loop.changes,
            "versions": versions(),
            "arguments": arguments,
        }
        write_results(loop.output_dir, results)
        if loop.bad:
            listing = "".join(f"\n  {file} {reason}" for file, reason in sorted(loop.bad.items()))
            logger.warning(f"{len(loop.bad)} bad images were skipped:{listing}")
        logger.info(f"the model is in {folder}")
        if arguments["push_to_hub"]:
            logger.info(f"uploaded to {push(folder, arguments['hub_model_id'])}")
    # All leave together. PyTorch 2.8's gloo waits forever where a process leaves just after a collective.
    loop.accelerator.wait_for_everyone()
    loop.accelerator.end_training()


def _facts(identity: dict[str, Any]) -> dict[str, Any]:
    """What of a run's arguments goes into a card: no data's place, and of a path the name only."""
    places = {field.name for field in fields(DataArguments)}
    chosen = {k: v for k, v in identity.items() if k not in places and v not in (None, False)}
    return {k: Path(v).name if isinstance(v, str) and Path(v).exists() else v for k, v in chosen.items()}


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """`results.json`, at once; a score that is not a number becomes null."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_whole(output_dir / "results.json", (json.dumps(_plain(results), indent=2, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def save_model(
    model: PreTrainedModel, weights: dict[str, Tensor], processor: BaseImageProcessor, card: str, folder: Path
) -> None:
    """The model with `weights`, its processor and its card, written aside; the folder that was there goes last."""
    aside, previous = (folder.with_name(folder.name + suffix) for suffix in (".incomplete", ".previous"))
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=weights)
    processor.save_pretrained(aside)
    (aside / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    aside.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def model_card(
    name: str,
    repository: str | None,
    model: PreTrainedModel,
    task: str,
    start: str | None,
    data: DataArguments,
    metrics: dict[str, float],
    remarks: dict[str, str],
    run: dict[str, Any],
) -> str:
    """A card in Markdown.

    Args:
        repository: where the folder is uploaded to.
        task: the pipeline's tag, such as "image-classification".
        start: the checkpoint or repository that training started from, None from scratch.
        metrics: our own measurements on the validation data, which go into the index of results.
        remarks: what has to stand beside a metric, such as the labels that it is over.
        run: facts of the run, one line each.
    """
    family = getattr(model.config, "backbone_config", model.config).model_type
    tags = [*dict.fromkeys((model.config.model_type, family)), "hf_pvt", task]
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task, "tags": tags}
    # What is trained from P2T's published weights is theirs in part. Weights from scratch are yours to license.
    licence = WEIGHTS_LICENSES[family] if start else ""
    if licence:
        header["license"] = licence
    if data.dataset_name:
        header["datasets"] = [data.dataset_name]
    if metrics:
        titles = {metric: f"{metric} ({remarks[metric]})" if metric in remarks else metric for metric in metrics}
        results = [{"type": metric, "name": titles[metric], "value": value} for metric, value in metrics.items()]
        entry = {
            "task": {"type": task},
            "dataset": {"name": data_name(data), "type": data_name(data)},
            "metrics": results,
        }
        header["metrics"] = sorted(metrics)
        header["model-index"] = [{"name": name, "results": [entry]}]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        name=name,
        repository=repository,
        model=model,
        task=task,
        start=start,
        data=data_name(data),
        metrics=metrics,
        remarks=remarks,
        run=run,
        non_commercial="-nc-" in licence,
    )


def start_name(model_name_or_path: str | None) -> str | None:
    """A Hub id, or the name of a local file or folder without the path to it."""
    if model_name_or_path and Path(model_name_or_path).exists():
        return Path(model_name_or_path).absolute().name
    return model_name_or_path


def push(folder: Path, repository: str) -> str:
    """Upload the model folder in one commit; its address."""
    api = HfApi()
    repository = api.create_repo(repository, exist_ok=True).repo_id
    pickles = ["*.bin", "*.pt", "*.pth", "*.pkl"]
    commit = api.upload_folder(
        repo_id=repository, folder_path=os.fspath(folder), commit_message="Upload model", ignore_patterns=pickles
    )
    return str(commit.repo_url)
