"""What `embed_images.py` is told."""

from dataclasses import dataclass
from typing import Literal

from ..training.arguments import flag
from ..training.heap import DEFAULT_HEAP


@dataclass
class Arguments:
    """What to read, what to compute, where to write."""

    model_name_or_path: str | None = flag("A Hub id, a folder, or a published .pth or .safetensors file.")
    output: Literal["embeddings", "predictions", "masks", "detections"] = flag("What to compute.", "embeddings")
    masks_as_files: bool = flag("Label maps become PNG files in _masks/, and the shards name them.", False)
    output_dir: str = flag("Shards go here.", "out/embeddings")
    input_dir: str | None = flag("A folder of images, at any depth.")
    input_files: list[str] | None = flag("Parquet files or WebDataset shards (.tar); quoted * are expanded.")
    dataset_name: str | None = flag("A data set of the Hub, which is streamed.")
    dataset_config_name: str | None = flag("Its configuration.")
    split: str = flag("Its split.", "train")
    image_column: str | None = flag("Column of the images; default: the only one that holds images.")
    unit_size: int = flag("Images of a folder that become one shard.", 10_000)
    batch_size: int = flag("Images at once.", 32)
    num_workers: int = flag("Threads that read and resize images.", 4)
    top_k: int = flag("Labels of a prediction.", 5)
    threshold: float = flag("Least score of a detection.", 0.05)
    bf16: bool = flag("Compute in bfloat16.", False)
    default_heap: bool = flag(DEFAULT_HEAP, False)
    on_bad_image: Literal["error", "skip"] = flag(
        "Stop at a file that is no sound image, or list and skip it.", "error"
    )
    config: str | None = flag("A YAML file of flags; those of the command line come before it.")
