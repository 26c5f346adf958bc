"""What a conversion writes: weights, configuration, image processor, example images, provenance and the card.

A repository is written to a temporary folder beside its place, opened again, compared with the source, and renamed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from card import Card, Provenance
from card_checker import check_card
from exported_file import ExportedFile
from label_names import name_labels
from photographs import PHOTOGRAPHS
from PIL import Image
from safetensors.torch import save_file
from sources import Source, in_fresh_memory, pyramid_of, sha256_of
from tasks import TASKS, task_of
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.generic import ModelOutput

import hf_pvt
from hf_pvt.atomic_files import written_whole
from hf_pvt.detection.configuration_detector import DetectorConfig
from hf_pvt.detection.modeling_detector import Detector
from hf_pvt.published.variants import variant_of
from hf_pvt.pyramid.configuration_classes import VariantConfig

PROVENANCE = "conversion.json"
# Weights of a source that no model reads, such as the classifier inside P2T's published segmenters: kept beside the
# model's, so that the original layout comes back equal to the bit.
UNUSED_WEIGHTS = "unused_weights.safetensors"

TOP_LABELS = 5
SHOWN_SCORE = 0.3  # the least score of the detections that are drawn


def write_repository(
    source: Source,
    output: Path,
    repo_id: str,
    labels: Path | None = None,
    overwrite: bool = False,
    write_onnx: Callable[[PreTrainedModel, BaseImageProcessor, Path], list[ExportedFile]] | None = None,
) -> Card:
    """Convert `source` into the folder `output`, and return its card.

    Args:
        repo_id: what the card's snippets load.
        labels: a JSON file with the labels' names.
        write_onnx: writes ONNX files into the folder, such as `onnx_files.write_files`.

    Raises:
        FileExistsError: the folder exists, and `overwrite` is not set.
        ValueError: the labels do not fit, or what was written does not compute what the source does.
    """
    model, task = source.model, task_of(source.model)
    benchmark = name_labels(model.config, task, labels)
    processor = image_processor(source, task, benchmark)
    with written_whole(output, overwrite) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if source.unused:
            save_file({key: weight.contiguous() for key, weight in source.unused.items()}, folder / UNUSED_WEIGHTS)
        largest, outputs = verify(folder, model, processor, task)
        provenance = Provenance(
            source=source.path.name,
            layout=source.layout,
            source_sha256=source.sha256,
            result_sha256=sha256_of(folder / "model.safetensors"),
            photograph=PHOTOGRAPHS[task][0].name,
            difference=largest,
        )
        card = Card(
            repo_id=repo_id,
            task=task,
            config=cast(VariantConfig | DetectorConfig, model.config),
            variant=variant_of(pyramid_of(model.config).model_type, pyramid_of(model.config).to_dict()),
            parameters=model.num_parameters(),
            benchmark=benchmark,
            provenance=provenance,
            outputs=outputs,
            onnx=tuple(write_onnx(model, processor, folder)) if write_onnx else (),
        )
        facts = {"repo_id": repo_id, "hf_pvt": hf_pvt.__version__, **asdict(provenance)}
        (folder / PROVENANCE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card.render(), encoding="utf-8")
        problems = check_card(folder / "README.md")
        if problems:
            raise ValueError(f"the card of {output} is wrong: {'; '.join(problems)}.")
    return card


def rename_repository(folder: Path, repo_id: str) -> None:
    """Let the card of a written repository speak of another name on the Hub."""
    facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8").replace(f'"{facts["repo_id"]}"', f'"{repo_id}"')
    (folder / "README.md").write_text(card.replace(f" {facts['repo_id']} ", f" {repo_id} "), encoding="utf-8")
    (folder / PROVENANCE).write_text(json.dumps(facts | {"repo_id": repo_id}, indent=2) + "\n", encoding="utf-8")


def image_processor(source: Source, task: str, benchmark: bool) -> BaseImageProcessor:
    """The published evaluation of the benchmarks; a model of other labels keeps the processor that came with it."""
    if source.processor is not None and not benchmark:
        return source.processor
    if task == "segmentation":
        published = getattr(source.processor, "published_resampling", benchmark)
        return hf_pvt.segmentation_image_processor(do_reduce_labels=benchmark, published_resampling=published)
    if isinstance(source.model, Detector):
        category_ids = hf_pvt.coco_category_ids() if benchmark else None
        return hf_pvt.detection_image_processor(
            return_segmentation_masks=source.model.has_masks, category_ids=category_ids
        )
    size = source.model.config.image_size if source.model.config.model_type == "pvt" else 224
    return hf_pvt.classification_image_processor(size if isinstance(size, int) else min(size))


def verify(
    folder: Path, model: PreTrainedModel, processor: BaseImageProcessor, task: str
) -> tuple[float, dict[str, Any]]:
    """Open the folder as a user would, compare on the example photographs, and make the outputs of the widgets.

    Returns:
        The largest difference of the outputs before saving and after loading, which has to be 0, and photograph ->
        labels with scores, or the overlay's file; both photographs and overlays are left in the folder's images/.

    Raises:
        ValueError: keys were missing or unknown, or the outputs differ.
    """
    auto_class = getattr(transformers, TASKS[task].auto_class)
    reloaded, problems = auto_class.from_pretrained(folder, output_loading_info=True)
    if any(problems.values()):
        raise ValueError(f"what was written does not load whole: {problems}.")
    in_fresh_memory(reloaded)
    again = AutoImageProcessor.from_pretrained(folder)
    (folder / "images").mkdir()
    largest, outputs = 0.0, dict[str, Any]()
    for photograph in PHOTOGRAPHS[task]:
        shutil.copy(photograph.path, folder / "images")
        image = photograph.open()
        before, after = (
            output_of(candidate, prepare(image, return_tensors="pt"))
            for candidate, prepare in ((model, processor), (reloaded.eval(), again))
        )
        largest = max(largest, *(difference(before[name], after[name]) for name in before))
        if task == "classification":
            outputs[photograph.name] = most_likely(after.logits, cast(dict[int, str], model.config.id2label))
        elif task != "features":
            picture = draw(after, again, image, task, model.config)
            file = f"images/{Path(photograph.name).stem}-labels.jpg"
            picture.save(folder / file, quality=88)
            outputs[photograph.name] = {"url": file}
    if largest != 0:
        raise ValueError(f"the model reloaded from {folder} differs from the source by {largest}.")
    return largest, outputs


@torch.inference_mode()
def output_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Any:
    output: ModelOutput = model(**batch)
    return output


def difference(before: Tensor, after: Tensor) -> float:
    return (before - after).abs().max().item()


def most_likely(logits: Tensor, id2label: dict[int, str]) -> list[dict[str, Any]]:
    """The likeliest labels with their scores, as the Hub's widget draws them."""
    scores, labels = logits[0].softmax(-1).topk(min(TOP_LABELS, logits.shape[-1]))
    return [
        {"label": id2label[label], "score": round(score, 4)}
        for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def draw(output: Any, processor: Any, image: Image.Image, task: str, config: Any) -> Image.Image:
    """The labels over the photograph: in colours, or as boxes and masks."""
    size = (image.height, image.width)
    if task == "segmentation":
        scores = torch.nn.functional.interpolate(output.logits, size=size, mode="bilinear", align_corners=False)
        palette = getattr(config, "palette", None)
        return hf_pvt.draw_segmentation(image, scores.argmax(1)[0], config.id2label, palette)
    process = processor.post_process_object_detection
    if task == "instance-segmentation":
        process = processor.post_process_instance_segmentation
    (detections,) = process(output, threshold=SHOWN_SCORE, target_sizes=[size])
    return hf_pvt.draw_detections(image, detections, config.id2label)
