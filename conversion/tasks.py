"""What the heads are for, in the Hub's words and in the papers'."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_pvt.detection.modeling_detector import Detector


@dataclass(frozen=True)
class Dataset:
    """A benchmark of the papers: its name for people, its id on the Hub, and the split that is reported."""

    title: str
    hub_id: str
    split: str = "validation"


@dataclass(frozen=True)
class Metric:
    title: str
    hub_id: str


@dataclass(frozen=True)
class Task:
    """What a head is for, in the Hub's words and in the papers'."""

    pipeline_tag: str
    auto_class: str
    script: str | None  # of examples/, for training
    size: str  # pixels, height x width, at which GMACs are counted
    dataset: Dataset
    metrics: tuple[Metric, ...]
    evaluation: str


IMAGENET = Dataset("ImageNet-1k", "ILSVRC/imagenet-1k")
ADE20K = Dataset("ADE20K", "zhoubolei/scene_parse_150")
COCO = Dataset("COCO", "detection-datasets/coco", "val2017")

COCO_EVALUATION = (
    "The image processor of this repository is the published evaluation: shorter side to 800 pixels, longer at most "
    "1333, padded to multiples of 32; single scale, no flip, 100 detections."
)

TASKS = {
    "classification": Task(
        "image-classification",
        "AutoModelForImageClassification",
        "run_image_classification.py",
        "224x224",
        IMAGENET,
        (Metric("top-1 accuracy", "accuracy"),),
        "The image processor of this repository is the published evaluation: shorter side to 256 pixels (bicubic), "
        "centre crop of 224, ImageNet's mean and standard deviation.",
    ),
    "segmentation": Task(
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        "run_semantic_segmentation.py",
        "512x512",
        ADE20K,
        (Metric("mean IoU", "mean_iou"),),
        "The image processor of this repository is the published evaluation: shorter side to 512 pixels, longer at "
        "most 2048, each a multiple of 32; single scale, no flip.",
    ),
    "detection": Task(
        "object-detection",
        "AutoModelForObjectDetection",
        None,
        "800x1280",
        COCO,
        (Metric("box AP", "mean_average_precision"),),
        COCO_EVALUATION,
    ),
    "instance-segmentation": Task(
        "image-segmentation",
        "AutoModelForInstanceSegmentation",
        None,
        "800x1280",
        COCO,
        (Metric("box AP", "mean_average_precision"), Metric("mask AP", "mean_average_precision")),
        COCO_EVALUATION,
    ),
    "features": Task(
        "image-feature-extraction",
        "AutoModel",
        "run_image_classification.py",
        "224x224",
        IMAGENET,
        (Metric("top-1 accuracy", "accuracy"),),
        "There is no head to evaluate.",
    ),
}


def task_of(model: PreTrainedModel) -> str:
    """The key in TASKS; "features" for a model without a head."""
    if isinstance(model, Detector):
        return "instance-segmentation" if model.has_masks else "detection"
    if hasattr(model, "decode_head"):
        return "segmentation"
    return "classification" if getattr(model, "num_labels", 0) and hasattr(model, "classifier") else "features"
