"""Measure a classifier, segmenter or detector on labelled data, exactly as the training scripts and the papers do.

    python examples/evaluate_model.py pvt_v2_b2.pth --validation_dir imagenet/val

    accelerate launch --multi_gpu examples/evaluate_model.py out/ade20k/model --validation_dir ADEChallengeData2016 \
        --labels ade20k --reduce_labels --write_to_card

The model is a folder, a Hub id or a published checkpoint, and what is measured follows from its head. Images are what
its own processor makes of them. The samples are cut into units of `--unit_size`; what was found in one is written to
`output_dir` when it is done, so a run that was killed goes on when it is started again, with any number of processes.
Out come the metrics, `output_dir/results.json`, and with `--write_to_card` an entry in the model's card.
"""

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, send_to_device
from torch.utils.data import Subset
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_pvt
from hf_pvt.evaluation.arguments import EvaluationArguments, named_model
from hf_pvt.evaluation.measured_card import measured_result, read_card, write_to_card
from hf_pvt.evaluation.tasks import EvaluatedTask, Given, Scored, card_metrics, check_flags, preprocessing, task_of
from hf_pvt.evaluation.units import Units
from hf_pvt.training.arguments import parse
from hf_pvt.training.data.loaders import Prepare
from hf_pvt.training.data.samples import EvaluationSamples, Sample, loader
from hf_pvt.training.evaluators.evaluator import Evidence, scores_of_all, together
from hf_pvt.training.heap import keep_large_blocks
from hf_pvt.training.launch import lost_processes, parent_command_lines, run_main, share_of_cores
from hf_pvt.training.loop import numbers_of
from hf_pvt.training.models import check_path
from hf_pvt.training.progress import ProgressBar
from hf_pvt.training.results import versions, write_results
from hf_pvt.training.run_fingerprint import check_same_job

logger = get_logger(__name__)

MOST_LABELS = 8  # whose scores are printed one by one


def start(arguments: EvaluationArguments) -> Accelerator:
    """This process's accelerator; processes wait for each other's last unit."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for talkative in ("httpx", "accelerate", "torch", "fsspec"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    accelerator = Accelerator(mixed_precision="bf16" if arguments.bf16 else "no", kwargs_handlers=[patience])
    if accelerator.device.type == "cpu" and not arguments.default_heap:
        keep_large_blocks()
    problem = lost_processes(accelerator.num_processes, parent_command_lines())
    if problem:
        logger.warning(problem)
    return accelerator


def open_model(path: str) -> tuple[EvaluatedTask, PreTrainedModel, BaseImageProcessor]:
    """A model in float32, the task that its head is for, and its processor; a published checkpoint has the papers'.

    Raises ValueError for a model without a head, or without some of its weights, which Transformers would draw.
    """
    check_path(path)
    if Path(path).is_file():
        model = hf_pvt.load_original(path)
        task = task_of(type(model).__name__, path)
        return task, model, task.published_processor(model)
    if Path(path, "model", "config.json").is_file() and not Path(path, "config.json").is_file():
        raise FileNotFoundError(f"{path} is a run's folder; its model is {Path(path, 'model')}.")
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    task = task_of((config.architectures or [""])[0], path)
    model, report = task.auto_class.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{path} has no weights for {', '.join(missing[:4])}; choose another model.")
    if Path(path).is_dir() and not Path(path, "preprocessor_config.json").is_file():
        raise ValueError(
            f"{path} has no preprocessor_config.json, which says how images are prepared; save the processor there."
        )
    return task, model, AutoImageProcessor.from_pretrained(path, trust_remote_code=False)


def spread_out(examples: Any, limit: int | None) -> Any:
    """So many examples at equal distances, or all."""
    if limit is None or limit >= len(examples):
        return examples
    return Subset(examples, np.linspace(0, len(examples) - 1, limit).round().astype(int).tolist())


def job_of(model: PreTrainedModel, processor: BaseImageProcessor, examples: Any, units: Units) -> dict[str, Any]:
    """What the units' files are of: the weights, the processor, and the samples, not where the model lies."""
    fields = {k: v for k, v in model.config.to_dict().items() if k[0] != "_" and k != "transformers_version"}
    weights = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    whole: Any = examples.dataset if isinstance(examples, Subset) else examples
    if hasattr(whole, "rows"):  # of a data set with columns, which has a name for what it holds
        samples = str(whole.rows._fingerprint)
    else:
        samples = hashlib.sha256("\n".join(_plain(whole[i]) for i in range(len(whole))).encode()).hexdigest()[:16]
    return {
        "weights": weights.hexdigest()[:16],
        "processor": hashlib.sha256(processor.to_json_string().encode()).hexdigest()[:16],
        "samples": samples,
        "samples_evaluated": units.samples,
        "unit_size": units.size,
    }


def _plain(example: Sequence[Any]) -> str:
    """What of an example says the same in every process."""
    return repr([part for part in example if isinstance(part, str | Path | int | list | tuple)])


def prepared(examples: Any, prepare: Prepare, index: int) -> Sample:
    return prepare(examples[index])


@torch.inference_mode()
def measure(scored: Scored, units: Units, model: PreTrainedModel, arguments: Any, accelerator: Accelerator) -> None:
    """This process's part of the units that are missing."""
    missing = units.missing()
    accelerator.wait_for_everyone()  # all have seen the same
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    plans = {unit: units.batches(unit, scored.batch_size) for unit in mine}
    load = partial(prepared, scored.examples, scored.evaluation.view)
    samples = EvaluationSamples(load, len(scored.examples), arguments.on_bad_image)
    workers = arguments.dataloader_num_workers
    workers = share_of_cores() if workers is None else workers
    planned = [batch for plan in plans.values() for batch in plan]
    batches = iter(loader(samples, workers, scored.merge, batch_sampler=planned))
    with ProgressBar(total=sum(map(len, planned)), unit="image", disable=not accelerator.is_local_main_process) as bar:
        for unit, plan in plans.items():
            evidence: Evidence | None = None
            examples, bad = 0, dict[str, str]()
            for _ in plan:
                batch = next(batches)
                bad |= batch.pop("bad")
                examples += int(batch["counted"].sum())
                batch = send_to_device(batch, accelerator.device, non_blocking=True)
                with accelerator.autocast():
                    evidence = together(evidence, scored.evaluation.count(model, batch))
            assert evidence is not None  # a unit has samples
            units.write(unit, examples, bad, evidence)
            bar.update(sum(map(len, plan)))
    accelerator.wait_for_everyone()


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    (arguments,) = parse(EvaluationArguments, description=__doc__.splitlines()[0], argv=named_model(words))
    arguments.check()
    path = str(arguments.model_name_or_path)
    if arguments.write_to_card:
        read_card(path)  # what cannot be written fails before hours of measuring
    accelerator = start(arguments)
    task, model, processor = open_model(path)
    check_flags(task, arguments)
    scored = task.open(Given(arguments, model, processor, accelerator))
    total = len(scored.examples)
    scored.examples = spread_out(scored.examples, arguments.limit)
    protocol = {
        "images": preprocessing(processor, resize=not arguments.sliding_window),
        **scored.protocol,
        "precision": "bfloat16" if arguments.bf16 else "float32",
    }
    units = Units(arguments.output_folder, len(scored.examples), arguments.unit_size)
    job = {"task": task.name, "data": arguments.name_of_data(), **protocol}
    check_same_job(units.folder, job | scored.identity | job_of(model, processor, scored.examples, units))
    model = accelerator.prepare_model(model.eval(), evaluation_mode=True)
    measure(scored, units, model, arguments, accelerator)
    scored.evaluation.save_pictures(units.folder / "overlays")
    if accelerator.is_main_process:
        report(task, scored, units, arguments, protocol, total, words)
    # All leave together: PyTorch 2.8's gloo waits forever where a process leaves just after a collective.
    accelerator.wait_for_everyone()
    accelerator.end_training()


def report(
    task: EvaluatedTask,
    scored: Scored,
    units: Units,
    arguments: EvaluationArguments,
    protocol: dict[str, str],
    total: int,
    words: Sequence[str],
) -> None:
    """Add up, print, and write results.json and the card's entry."""
    examples, bad, evidence = units.total()
    units.tidy()
    metrics = scores_of_all(scored.evaluation, evidence, examples)
    data, model = arguments.name_of_data(), str(arguments.model_name_or_path)
    measured_on = f"{examples:,} of {total:,} images" if examples != total else f"{examples:,} images"
    settings = "; ".join(f"{key}: {value}" for key, value in protocol.items())
    print(f"{task.name}, {path_name(model)}, on {measured_on} of {data}:", *lines_of(metrics, scored), sep="\n  ")
    print(f"protocol: {settings}")
    if bad:
        print(
            f"{len(bad):,} bad images were skipped:", *(f"{file} {reason}" for file, reason in bad.items()), sep="\n  "
        )
    results = {
        "task": task.name,
        "model": model,
        "data": data,
        "measured_on": measured_on,
        "metrics": metrics,
        "protocol": protocol,
        "bad_images": bad,
        "command": shlex.join(["examples/evaluate_model.py", *words]),
        "versions": versions(),
        "arguments": asdict(arguments),
    }
    write_results(units.folder, results)
    print(f"written to {units.folder / 'results.json'}")
    if arguments.write_to_card:
        place = {"name": data, "config": arguments.dataset_config_name}
        place["split"] = arguments.data().validation_split if arguments.dataset_name else None
        found = card_metrics(task, metrics)
        entry = measured_result(scored.pipeline_tag, place, found, measured_on, settings, without_paths(words))
        print(f"written to {write_to_card(model, entry, scored.pipeline_tag)}")


def lines_of(metrics: dict[str, Any], scored: Scored) -> Iterator[str]:
    """The scores, and of a few labels those of each."""
    remarks = metrics["remarks"]
    for name, value in numbers_of(metrics).items():
        yield f"{name} {value:.4f}{f' ({remarks[name]})' if name in remarks else ''}"
    for name, values in metrics.items():
        if isinstance(values, list) and len(values) <= MOST_LABELS:
            labels = zip(cast(Any, scored.evaluation).names, values, strict=True)
            yield f"{name}: {', '.join(f'{label} {value:.4f}' for label, value in labels)}"


def path_name(word: str) -> str:
    """Of a path the name only; a Hub id as it is."""
    is_path = Path(word).exists() or word[:1] in ("/", "~", ".") or "*" in word
    return Path(word).absolute().name if is_path else word


def without_paths(words: Sequence[str]) -> str:
    """A command's words for others to read."""
    parts = [word.partition("=") if word.startswith("--") else ("", "", word) for word in words]
    return shlex.join(f"{flag}{equals}{path_name(value) if value else ''}" for flag, equals, value in parts)


if __name__ == "__main__":
    run_main(main)
