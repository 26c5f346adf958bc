"""The flags of `evaluate_model.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..training.arguments import FILES, DataArguments, flag
from ..training.data.annotated_images import AnnotationArguments
from ..training.data.annotations import BoxFormat
from ..training.heap import DEFAULT_HEAP


@dataclass
class EvaluationArguments:
    """Which model, on what data, by which protocol; where the results go."""

    model_name_or_path: str | None = flag(
        "The model, which may also be the first word: a folder, a Hub id, a published .pth or .safetensors."
    )
    validation_dir: str | None = flag(
        "A folder. For classification: a folder of images for each class, or images with --validation_labels. For "
        "segmentation: images/ and masks/ with the same stems, or ADE20K's layout. For detection: the images of "
        "--validation_annotations. A file is taken for one of --validation_files."
    )
    validation_labels: str | None = flag(
        "For images that lie in --validation_dir without folders: a file with a label per line in the order of the "
        "files' names, with `file label` per line, or Kaggle's LOC_val_solution.csv. A label is a WordNet id, a name, "
        "or a number from 0 in the order of the model's labels."
    )
    validation_annotations: str | None = flag(
        "For detection, COCO's JSON; default: annotations.json or _annotations.coco.json in --validation_dir."
    )
    validation_files: list[str] | None = flag(
        "CSV files, image,label[,split] or image,mask[,split]; or parquet files. Quoted * are expanded."
    )
    dataset_name: str | None = flag("A data set of the Hub.")
    dataset_config_name: str | None = flag("Its configuration.")
    split: str | None = flag("Its split; default: validation.")
    data_name: str | None = flag("What to call the data in results and cards; default: its id, or its folder's name.")
    image_column: str | None = flag("Column of the images; default: the only one that holds images.")
    label_column: str | None = flag('Column of the labels; default: the only one of class labels, "label" or "cls".')
    mask_column: str | None = flag('Column of the label maps; default: "annotation", "mask", "label", ...')
    objects_column: str | None = flag('Column of the objects; default: "objects".')
    bbox_format: BoxFormat | None = flag("What the four numbers of a box are; default: COCO's xywh, in pixels.")
    with_masks: bool | None = flag("Whether masks are scored, too; default: where the model has them.")
    labels_by_number: bool = flag("The data's labels, in their order, are the model's under other names.", False)
    labels: str | None = flag(
        'What pixel values mean: a JSON file {"<pixel value>": name, ...}, or "ade20k"; default: labels.json beside '
        "the data."
    )
    reduce_labels: bool = flag("Pixel value 0 is no label, and labels count from 1, as in ADE20K.", False)
    multi_scale: bool = flag("Mean of the probabilities at six scales from 0.5 to 1.75, each mirrored as well.", False)
    sliding_window: int | None = flag("Images at their own size, through a window of so many pixels.")
    limit: int | None = flag("Only so many samples, at equal distances: a quick look.")
    bf16: bool = flag("Compute in bfloat16.", False)
    batch_size: int = flag("Images at once; segmentation and detection take one.", 32)
    unit_size: int = flag("Samples after which what was found is written.", 200)
    dataloader_num_workers: int | None = flag("Processes that read images; default: a share of the cores.")
    default_heap: bool = flag(DEFAULT_HEAP, False)
    on_bad_image: Literal["error", "skip"] = flag(
        "Stop at a file that is no sound image, or list and skip it.", "error"
    )
    overlays: int = flag("Pictures of predictions to write.", 0)
    output_dir: str | None = flag("Where the results go; default: out/evaluation/ and the model's name.")
    write_to_card: bool = flag("Add what was measured to the metadata of the model folder's README.md.", False)
    config: str | None = flag("A YAML file of flags; those of the command line come before it.")

    def __post_init__(self) -> None:
        """A file that is given as a folder is one of the files."""
        given = self.validation_dir
        if given and Path(given).suffix in FILES and not Path(given).is_dir():
            self.validation_dir, self.validation_files = None, [given]

    def check(self) -> None:
        """Raise ValueError for what is missing or makes no sense, by its flag."""
        if not self.model_name_or_path:
            raise ValueError("there is no model; give a folder, a Hub id or a published checkpoint as the first word.")
        given = [name for name in ("validation_dir", "validation_files", "dataset_name") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'no data'}; give one of validation_dir, validation_files, dataset_name."
            )
        for name in ("validation_labels", "validation_annotations"):
            if getattr(self, name) and not self.validation_dir:
                raise ValueError(f"--{name} needs --validation_dir, the folder of the images.")
        for name in ("dataset_config_name", "split"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(f"--{name} needs --dataset_name; files and folders are taken whole.")
        for name in ("limit", "batch_size", "unit_size", "sliding_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1.")
        if self.multi_scale and self.sliding_window:
            raise ValueError("--multi_scale and --sliding_window are two protocols; choose one.")

    def data(self) -> DataArguments:
        """The same for the sources of training: the validation share alone."""
        return DataArguments(
            dataset_name=self.dataset_name,
            dataset_config_name=self.dataset_config_name,
            validation_split=self.split or "validation",
            validation_dir=self.validation_dir,
            validation_files=self.validation_files,
            image_column=self.image_column,
            on_bad_image=self.on_bad_image,
        )

    def annotations(self) -> AnnotationArguments:
        """Where the objects are."""
        return AnnotationArguments(
            validation_annotations=self.validation_annotations,
            objects_column=self.objects_column or "objects",
            bbox_format=self.bbox_format or "xywh",
        )

    def name_of_data(self) -> str:
        """The data's id, or its folder's name, with the one above where it is but a split; no path."""
        if self.data_name or self.dataset_name:
            return str(self.data_name or self.dataset_name)
        folder = Path(self.validation_dir) if self.validation_dir else Path((self.validation_files or [""])[0]).parent
        *_, above, name = ("", *folder.absolute().parts)
        return f"{above}/{name}" if above and name in ("val", "validation", "test", "images") else name

    @property
    def output_folder(self) -> Path:
        """What was given, or a folder with the model's name."""
        return Path(self.output_dir or Path("out/evaluation") / Path(str(self.model_name_or_path)).absolute().name)


def named_model(argv: Sequence[str]) -> list[str]:
    """The command line with the model, where it is the first word, behind its flag."""
    words = list(argv)
    return ["--model_name_or_path", *words] if words and not words[0].startswith("-") else words
