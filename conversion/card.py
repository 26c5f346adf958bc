"""Model cards, rendered from `model_cards/template.md.jinja`, the variants' table and what was converted.

    python conversion/card.py          render the committed cards: one per variant and task into model_cards/

A card is the README.md of a repository: front matter for the Hub, then text for people.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exported_file import ExportedFile
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from papers import PAPERS, Paper, Source
from photographs import PHOTOGRAPHS
from sources import pyramid_of
from tasks import TASKS, Task

import hf_pvt
from hf_pvt import PUBLISHED_DETECTORS, VARIANTS, detector_config, variant_config
from hf_pvt.detection.configuration_detector import DetectorConfig
from hf_pvt.original.detector_layouts import OwnPyramidLayout
from hf_pvt.original.load_original import LAYOUTS
from hf_pvt.published.detectors import PublishedDetector
from hf_pvt.published.variants import WEIGHTS_LICENSES
from hf_pvt.pyramid.configuration_classes import VariantConfig

CARDS = Path(__file__).parent.parent / "model_cards"
PROJECT = "https://github.com/org/hf_pvt"
FAMILIES = {"pvt": "Pvt", "pvt_v2": "PvtV2", "p2t": "P2t"}
DETECTOR_NAMES = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "atss": "ATSS",
    "gfl": "GFL",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "sparse_rcnn": "Sparse R-CNN",
}
WITHOUT_MASKS = {"mask_rcnn": "Faster R-CNN", "cascade_mask_rcnn": "Cascade R-CNN"}
FAMILY_NAMES = {"pvt": "PVT", "pvt_v2": "PVTv2", "p2t": "P2T"}


@dataclass(frozen=True)
class Provenance:
    """What a conversion read and wrote."""

    source: str
    layout: str
    source_sha256: str
    result_sha256: str
    photograph: str
    difference: float


@dataclass(frozen=True)
class Card:
    """What a card says; `render` writes it.

    Args:
        repo_id: what `from_pretrained` takes in the snippets.
        variant: the published variant that the architecture is, None for any other.
        parameters: of the model with its head.
        benchmark: whether the labels are the benchmark's (ImageNet-1k, ADE20K, COCO), so the reported figures apply.
        outputs: photograph's name -> the `output` of its widget: labels with scores, or the overlay's file.
        onnx: the ONNX files of the repository.
    """

    repo_id: str
    task: str
    config: VariantConfig | DetectorConfig
    variant: str | None
    parameters: int
    benchmark: bool
    provenance: Provenance | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    onnx: tuple[ExportedFile, ...] = ()

    @property
    def name(self) -> str:
        return self.repo_id.rpartition("/")[2]

    @property
    def native(self) -> bool:
        """Whether Transformers has the class."""
        return self.pyramid.model_type != "p2t" and self.task in ("classification", "features")

    @property
    def pyramid(self) -> VariantConfig:
        pyramid: VariantConfig = pyramid_of(self.config)
        return pyramid

    @property
    def paper(self) -> Paper:
        return PAPERS[self.pyramid.model_type]

    @property
    def detector(self) -> PublishedDetector | None:
        """The published detector that the architecture is, None for any other."""
        if self.variant is None or not isinstance(self.config, DetectorConfig):
            return None
        row = PUBLISHED_DETECTORS.get(f"{self.config.model_type.replace('_', '-')}-{self.variant}")
        if row is not None and self.task == "detection" and row.mask_ap_reported is not None:
            return None  # Faster R-CNN
        return row

    @property
    def reported(self) -> tuple[float, ...]:
        """The reported figures in percent, one for each of the task's metrics; MMDetection's own models have others."""
        own = {layout.source for layout in LAYOUTS if isinstance(layout, OwnPyramidLayout)}
        if self.variant is None or not self.benchmark or (self.provenance and self.provenance.layout in own):
            return ()
        variant, detector = VARIANTS[self.variant], self.detector
        if detector is not None:
            figures = (detector.box_ap_reported, detector.mask_ap_reported)
            return tuple(figure for figure in figures if figure is not None)
        figures_of = {"classification": (variant.top1_reported,), "segmentation": (variant.miou_reported,)}
        return figures_of.get(self.task, ())

    @property
    def reported_in(self) -> Source:
        """The paper; detectors' figures are those of its authors' repository."""
        if isinstance(self.config, DetectorConfig):
            repository = self.paper.repository
            return Source("the authors", repository, f"https://github.com/{repository}")
        return Source("the paper", self.paper.title, self.paper.url)

    def render(self) -> str:
        task = TASKS[self.task]
        environment = Environment(
            loader=FileSystemLoader(CARDS), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=False
        )
        return environment.get_template("template.md.jinja").render(
            metadata=self.metadata().to_yaml().strip(),
            name=self.name,
            repo_id=self.repo_id,
            description=self.description(),
            native=self.native,
            snippet=self.snippet(),
            family=FAMILIES[self.pyramid.model_type],
            is_detector=isinstance(self.config, DetectorConfig),
            task=self.task,
            onnx=self.onnx,
            photograph=PHOTOGRAPHS[self.task][0].name,
            feature_maps=self.feature_maps(),
            minimum_image_size=self.config.minimum_image_size,
            parameters=self.parameters,
            gmacs=self.gmacs(),
            reported=self.reported,
            reported_in=self.reported_in,
            provenance=self.provenance,
            checkpoint=self.checkpoint(),
            limitations=self.limitations(),
            license_text=LICENSE_TEXTS[self.license],
            credits="; ".join(f"{photo.title} by {photo.credit}" for photo in PHOTOGRAPHS[self.task]),
            version=hf_pvt.__version__,
            project=PROJECT,
            paper=self.paper,
            evaluation=task.evaluation if self.reported else "The image processor prepares images as the model wants.",
            **{name: getattr(task, name) for name in ("script", "size", "dataset", "metrics", "auto_class")},
        )

    def feature_maps(self) -> str:
        """What the backbone gives."""
        stages = range(len(self.pyramid.hidden_sizes))
        if isinstance(self.config, DetectorConfig):
            stages = stages[-self.config.backbone_levels :]
        channels = ", ".join(str(self.pyramid.hidden_sizes[stage]) for stage in stages)
        scales = [f"1/{4 * 2**stage}" for stage in stages]
        number = {3: "three", 4: "four"}[len(stages)]
        return f"{number} maps of {channels} channels at {', '.join(scales[:-1])} and {scales[-1]}"

    @property
    def license(self) -> str:
        return WEIGHTS_LICENSES[self.pyramid.model_type]

    def metadata(self) -> ModelCardData:
        """The front matter."""
        task = TASKS[self.task]
        results = self.results(task) if self.reported else None
        return ModelCardData(
            library_name="transformers",
            pipeline_tag=task.pipeline_tag,
            license=self.license,
            datasets=[task.dataset.hub_id] if self.benchmark else None,
            metrics=list(dict.fromkeys(metric.hub_id for metric in task.metrics)) if results else None,
            tags=[
                "vision",
                *dict.fromkeys((self.config.model_type, self.pyramid.model_type)),
                "backbone",
                *([] if self.native else ["custom_code"]),
            ],
            model_name=self.name,
            eval_results=results,
            widget=[self.widget(photo.name, photo.title) for photo in PHOTOGRAPHS[self.task]],
        )

    def results(self, task: Task) -> list[EvalResult]:
        """The reported figures in the Hub's words."""
        source = self.reported_in
        return [
            EvalResult(
                task_type=task.pipeline_tag,
                dataset_type=task.dataset.hub_id,
                dataset_name=task.dataset.title,
                dataset_split=task.dataset.split,
                metric_type=metric.hub_id,
                metric_name=f"{metric.title}, % (reported by {source.reporter})",
                metric_value=figure,
                source_name=source.name,
                source_url=source.url,
            )
            for metric, figure in zip(task.metrics, self.reported, strict=True)
        ]

    def widget(self, file: str, title: str) -> dict[str, Any]:
        example: dict[str, Any] = {"src": f"images/{file}", "example_title": title}
        if file in self.outputs:
            example["output"] = self.outputs[file]
        return example

    def description(self) -> str:
        """The first sentence."""
        variant = f"the published variant {self.variant}" if self.variant else "an architecture of its own"
        labels, model_type = self.config.num_labels, self.config.model_type
        detector = DETECTOR_NAMES.get(model_type)
        if self.task == "detection":
            detector = WITHOUT_MASKS.get(model_type, detector)
        kind = {
            "classification": f"an image classifier for {labels:,} labels",
            "segmentation": f"a semantic segmenter (Semantic FPN) for {labels:,} labels",
            "detection": f"an object detector ({detector}) for {labels:,} labels",
            "instance-segmentation": f"an instance segmenter ({detector}) for {labels:,} labels",
            "features": "a feature extractor without a head",
        }[self.task]
        trained = f", trained on {TASKS[self.task].dataset.title}" if self.benchmark else ""
        return (
            f"{FAMILY_NAMES[self.pyramid.model_type]} ([{self.paper.title}]({self.paper.url})), {variant}, as "
            f"{kind}{trained}, in Transformers' format."
        )

    def snippet(self) -> str:
        """Code that runs as it is where the repository is."""
        trust = "" if self.native else ", trust_remote_code=True"
        subtask = ', subtask="instance"' if self.task == "instance-segmentation" else ""
        photo = f'photo = hf_hub_download("{self.repo_id}", "images/{PHOTOGRAPHS[self.task][0].name}")\n'
        if self.task == "features":
            return (
                "from huggingface_hub import hf_hub_download\n"
                "from transformers import AutoImageProcessor, AutoModel\n"
                "from transformers.image_utils import load_image\n\n"
                f"{photo}"
                f'processor = AutoImageProcessor.from_pretrained("{self.repo_id}"{trust})\n'
                f'model = AutoModel.from_pretrained("{self.repo_id}"{trust})\n'
                'features = model(**processor(load_image(photo), return_tensors="pt")).last_hidden_state'
            )
        return (
            "from huggingface_hub import hf_hub_download\n"
            "from transformers import pipeline\n\n"
            f"{photo}"
            f'model = pipeline("{TASKS[self.task].pipeline_tag}", model="{self.repo_id}"{trust})\n'
            f"print(model(photo{subtask}))"
        )

    def gmacs(self) -> float | None:
        """10^9 multiply-adds of one image, of the published variants (convolutions, linears, attention products)."""
        if self.variant is None:
            return None
        if isinstance(self.config, DetectorConfig):
            return self.detector.gmacs_800x1280 if self.detector else None
        variant = VARIANTS[self.variant]
        return variant.fpn_gmacs_512 if self.task == "segmentation" else variant.gmacs_224

    def checkpoint(self) -> str:
        """The file of the published checkpoint."""
        name = (self.variant or self.name).replace("-", "_")
        if isinstance(self.config, DetectorConfig):
            schedule = self.detector.schedule if self.detector else "1x"
            return f"{self.config.model_type}_{name}_fpn_{schedule}_coco.pth"
        return f"fpn_{name}_ade20k.pth" if self.task == "segmentation" else f"{name}.pth"

    def limitations(self) -> str:
        """What a user would otherwise find out."""
        sentences = []
        if self.benchmark:
            sentences.append(
                f"It knows the {self.config.num_labels:,} labels of {TASKS[self.task].dataset.title} and carries the "
                "biases of that data; on other domains, medical images above all, fine-tune it and measure."
            )
        if self.config.model_type == "pvt":  # not on a detector's backbone, which brings its code
            sentences.append(
                "Without hf_pvt, Transformers' own PVT takes images of its `image_size` only; with it, position "
                "embeddings are resized to any size, at some cost in accuracy far from that size."
            )
        if self.task == "segmentation":
            sentences.append("Scores are not calibrated, and pixels without a label in the data get one all the same.")
        if isinstance(self.config, DetectorConfig):
            sentences.append("Scores are not calibrated; small and crowded objects are missed more often than others.")
        if self.license.startswith("cc-by-nc"):
            sentences.append("The weights are not for commercial use.")
        return (
            " ".join(sentences) or "It was not measured on any data here: evaluate it on yours before you rely on it."
        )


LICENSE_TEXTS = {
    "apache-2.0": "Apache-2.0, as published by the paper's authors.",
    "cc-by-nc-sa-4.0": (
        "CC BY-NC-SA 4.0, non-commercial. The authors' repository has this licence and says nothing of its weights, so "
        "they are treated alike."
    ),
}


def published_card(variant: str, task: str) -> Card:
    """The card of a published variant before it is converted."""
    facts = VARIANTS[variant]
    segmentation = task == "segmentation"
    labels = hf_pvt.ade20k_id2label() if segmentation else hf_pvt.imagenet_1k_id2label()
    config = variant_config(variant, id2label=labels, label2id={name: label for label, name in labels.items()})
    return Card(
        repo_id=f"org/{variant}-ade20k" if segmentation else f"org/{variant}",
        task=task,
        config=config,
        variant=variant,
        parameters=facts.fpn_parameters if segmentation else facts.parameters,
        benchmark=True,
    )


def published_detector_card(detector: PublishedDetector) -> Card:
    """The card of a published detector before it is converted."""
    return Card(
        repo_id=f"org/{detector.name}",
        task="detection" if detector.mask_ap_reported is None else "instance-segmentation",
        config=detector_config(detector.model_type, detector.variant),
        variant=detector.variant,
        parameters=detector.parameters,
        benchmark=True,
    )


def published_cards() -> dict[str, Card]:
    """File name -> card, for every variant and task."""
    tasks = ("classification", "segmentation")
    cards = [published_card(variant, task) for task in tasks for variant in VARIANTS]
    cards += [published_detector_card(detector) for detector in PUBLISHED_DETECTORS.values()]
    return {f"{card.name}.md": card for card in cards}


def main() -> None:
    for name, card in published_cards().items():
        (CARDS / name).write_text(card.render(), encoding="utf-8")
    print(f"rendered {len(published_cards())} cards into {CARDS.name}/")


if __name__ == "__main__":
    main()
