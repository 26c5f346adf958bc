"""ONNX files of a model where the Hub's clients look for them: the folder `onnx` beside the configuration.

Each is compared with the model in ONNX Runtime before any is kept (see `exported_outputs`).
"""

import argparse
from pathlib import Path

from exported_file import ExportedFile
from exported_outputs import change_on_photographs, check_sizes, opened
from onnx_graph import write_graph
from onnx_precision import write_half, write_quantized
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_pvt.atomic_files import written_whole

# The names that transformers.js and Optimum know.
FOLDER, PLAIN, HALF, QUANTIZED = "onnx", "model.onnx", "model_fp16.onnx", "model_quantized.onnx"

# The largest difference of float32 and float16 at any verified size, as a share of the outputs' scale.
LIMIT, HALF_LIMIT = 1e-4, 1e-2
# The largest change of the outputs on the photographs by weights of 8 bits, as a share of their deviation.
QUANTIZED_LIMIT = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fp16", action="store_true", help=f"also onnx/{HALF}, in half precision")
    parser.add_argument("--int8", action="store_true", help=f"also onnx/{QUANTIZED}, with weights of 8 bits")
    parser.add_argument(
        "--int8-limit",
        type=float,
        default=QUANTIZED_LIMIT,
        metavar="SHARE",
        help="refuse 8 bits that change the outputs on the photographs by more of their deviation (%(default)s)",
    )


def names(fp16: bool, int8: bool) -> list[str]:
    """The files inside the model's folder."""
    wanted = {PLAIN: True, HALF: fp16, QUANTIZED: int8}
    return [f"{FOLDER}/{name}" for name, is_wanted in wanted.items() if is_wanted]


def export(
    model: PreTrainedModel, processor: BaseImageProcessor, folder: Path, fp16: bool = False, int8: bool = False
) -> list[Path]:
    """`write_files` with the published limits, replacing what is there; the paths."""
    return [folder / file.name for file in write_files(model, processor, folder, fp16, int8, overwrite=True)]


def write_files(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: Path,
    fp16: bool = False,
    int8: bool = False,
    int8_limit: float = QUANTIZED_LIMIT,
    overwrite: bool = False,
) -> list[ExportedFile]:
    """Write `onnx/model.onnx`, and what else is wanted, into the folder of a saved model: all of it or nothing.

    Args:
        model: in evaluation mode and float32.
        int8_limit: how much weights of 8 bits may change the outputs on the photographs; see `relative_change`.

    Raises:
        FileExistsError: the folder has an `onnx` already, and `overwrite` is not set.
        NotImplementedError: a detector of several stages, which no file can hold.
        ValueError: a file differs from the model by more than its limit.
    """
    with written_whole(folder / FOLDER, overwrite) as temporary:
        plain = temporary / PLAIN
        write_graph(model, processor, plain)
        files = [compared(model, plain, LIMIT)]
        if fp16:
            write_half(plain, temporary / HALF)
            files.append(compared(model, temporary / HALF, HALF_LIMIT))
        if int8:
            write_quantized(plain, temporary / QUANTIZED)
            files.append(compared_on_photographs(model, processor, temporary / QUANTIZED, int8_limit))
    return files


def compared(model: PreTrainedModel, path: Path, limit: float) -> ExportedFile:
    """With the model, at sizes that the file was not traced at."""
    change = check_sizes(model, opened(path), limit, path.name)
    return ExportedFile(f"{FOLDER}/{path.name}", path.stat().st_size, change)


def compared_on_photographs(
    model: PreTrainedModel, processor: BaseImageProcessor, path: Path, limit: float
) -> ExportedFile:
    """With the model, on the example photographs of its task.

    Raises:
        ValueError: the change is above `limit`.
    """
    change = change_on_photographs(model, processor, opened(path))
    if not change <= limit:
        raise ValueError(
            f"8 bits change the outputs on the photographs by {change:.2f} of their deviation, the limit is {limit:g}; "
            "leave --int8, or raise --int8-limit; nothing was written."
        )
    of = "the outputs' deviation on the photographs"
    return ExportedFile(f"{FOLDER}/{path.name}", path.stat().st_size, change, of)
