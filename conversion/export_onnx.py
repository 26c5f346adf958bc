"""A model as ONNX files that are true at any batch, height and width, in the Hub's layout.

    python conversion/export_onnx.py out/pvt-v2-b2 out/pvt-v2-b2 --fp16 --int8    beside the weights
    python conversion/export_onnx.py pvt_v2_b2.pth out/pvt-v2-b2-onnx             a folder without weights

MODEL is whatever convert.py reads: a published checkpoint, a folder, or org/name on the Hub. OUT gets
onnx/model.onnx (and onnx/model_fp16.onnx, onnx/model_quantized.onnx) beside config.json and preprocessor_config.json.
Every file is compared with the model before any is kept: ONNX Runtime at three sizes that it was not traced at, 8 bits
on the example photographs. --pt2 and --aoti add PyTorch's own formats, checked in the same way.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import exported_programs
import onnx_files
from exported_file import ExportedFile
from hub_errors import HubRefusal
from label_names import name_labels
from repository import image_processor
from sources import Source, fetched, read_source
from tasks import task_of
from transformers.utils import logging

from hf_pvt.atomic_files import written_whole


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        path = fetched(arguments.model)
        files = write(read_source(path), path, arguments)
    except (ValueError, OSError, NotImplementedError, HubRefusal) as error:
        sys.exit(f"error: {error}")
    for file in files:
        print(f"{arguments.output}/{file}")


def parse() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint file, folder, or org/name on the Hub")
    parser.add_argument("output", type=Path, help="MODEL's own folder, or one to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    onnx_files.add_arguments(parser)
    exported_programs.add_arguments(parser)
    return parser.parse_args()


def write(source: Source, path: Path, arguments: argparse.Namespace) -> list[ExportedFile]:
    """Into the model's own folder or a new one, all or nothing."""
    if path.is_dir() and arguments.output.resolve() == path.resolve():
        return write_exports(source, arguments.output, arguments)
    with written_whole(arguments.output, arguments.overwrite) as folder:
        files = write_exports(source, folder, arguments)
        config = source.model.config
        config.architectures = [type(source.model).__name__]  # as beside weights: clients read the task from it
        config.save_pretrained(folder)
    return files


def write_exports(source: Source, folder: Path, arguments: argparse.Namespace) -> list[ExportedFile]:
    """ONNX files and, where wanted, PyTorch's; nothing is left where one of them fails."""
    model, task = source.model, task_of(source.model)
    processor = source.processor or image_processor(source, task, name_labels(model.config, task, None))
    programs: list[ExportedFile] = []
    with contextlib.ExitStack() as kept:
        if arguments.pt2 or arguments.aoti:
            temporary = kept.enter_context(written_whole(folder / exported_programs.FOLDER, arguments.overwrite))
            programs = exported_programs.write_programs(model, temporary, arguments.pt2, arguments.aoti)
        files = onnx_files.write_files(
            model, processor, folder, arguments.fp16, arguments.int8, arguments.int8_limit, arguments.overwrite
        )
    if not (folder / "preprocessor_config.json").exists():
        processor.save_pretrained(folder)
    return files + programs


if __name__ == "__main__":
    main()
