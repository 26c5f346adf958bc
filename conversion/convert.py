"""Turn a published checkpoint into a repository for the Hub, and push it if asked to.

    python conversion/convert.py pvt_v2_b2.pth out/pvt-v2-b2 [--push-to-hub org/pvt-v2-b2]
    python conversion/convert.py --all checkpoints/ out/

The source is a published PVT, PVTv2 or P2T checkpoint, MMSegmentation's Semantic FPN, MMDetection's detectors,
timm's PVTv2 (file or folder), or a folder, or a repository on the Hub, that Transformers or hf_pvt has saved. The
result holds model.safetensors, config.json, preprocessor_config.json, the card, example images, the code where
Transformers lacks the class and, with --onnx, ONNX files (see export_onnx.py).
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx_files
import push
from card import Card
from exported_file import ExportedFile
from hub_errors import HubRefusal
from label_names import has_names
from repository import PROVENANCE, rename_repository, write_repository
from sources import SUFFIXES, Source, fetched, pyramid_of, read_source, sha256_of
from tasks import TASKS
from tqdm import tqdm
from transformers.utils import logging


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if arguments.all:
            sys.exit(convert_all(arguments))
        convert(arguments)
    except (ValueError, OSError, HubRefusal) as error:
        sys.exit(f"error: {error}")


def parse() -> argparse.Namespace:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="checkpoint file, folder, or org/name on the Hub; with --all a folder of files")
    parser.add_argument("output", type=Path, help="folder to write; with --all the folder for all of them")
    parser.add_argument("--all", action="store_true", help="convert every checkpoint in the folder SOURCE")
    parser.add_argument("--labels", type=Path, help="JSON file with the labels' names, where they are not known")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of a PVT not square")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists, here and on the Hub")
    parser.add_argument("--onnx", action="store_true", help="also write onnx/model.onnx")
    onnx_files.add_arguments(parser)
    push.add_arguments(parser)
    arguments = parser.parse_args()
    if (arguments.fp16 or arguments.int8) and not arguments.onnx:
        parser.error("--fp16 and --int8 are for ONNX files; add --onnx.")
    return arguments


def convert(arguments: argparse.Namespace) -> None:
    """One checkpoint, from the file to the Hub."""
    push.check_request(arguments)
    arguments.source = fetched(arguments.source)
    if not is_done(arguments):
        source = read_source(arguments.source, **overrides(arguments))
        if source.model.config.model_type == "detr":
            raise ValueError(
                f"{arguments.source} is a DETR, of which there is no card; open it with hf_pvt.load_original and save "
                "it with save_pretrained: Transformers opens the folder, export_original.py leads back."
            )
        push.check_license(pyramid_of(source.model.config).model_type, arguments)
        repo_id = arguments.push_to_hub or f"org/{arguments.output.name}"
        card = write_repository(
            source, arguments.output, repo_id, arguments.labels, arguments.overwrite, onnx_writer(arguments)
        )
        print(report(source, card, arguments.output))
    if arguments.push_to_hub:
        push.push(arguments.output, arguments)


def overrides(arguments: argparse.Namespace) -> dict[str, tuple[int, int]]:
    return {"image_size": tuple(arguments.image_size)} if arguments.image_size else {}


def onnx_writer(arguments: argparse.Namespace) -> Callable[..., list[ExportedFile]] | None:
    """What writes the ONNX files that are asked for."""
    if not arguments.onnx:
        return None
    wanted = {"fp16": arguments.fp16, "int8": arguments.int8, "int8_limit": arguments.int8_limit}
    return partial(onnx_files.write_files, **wanted)


def is_done(arguments: argparse.Namespace) -> bool:
    """Whether an earlier run wrote the folder from this very file, so that only the push is left."""
    if not (arguments.push_to_hub and (arguments.output / PROVENANCE).is_file() and arguments.source.is_file()):
        return False
    facts = json.loads((arguments.output / PROVENANCE).read_text(encoding="utf-8"))
    wanted = onnx_files.names(arguments.fp16, arguments.int8) if arguments.onnx else []
    if not all((arguments.output / name).is_file() for name in wanted):
        return False
    same_source = facts["source_sha256"] == sha256_of(arguments.source)
    if not same_source or facts["result_sha256"] != sha256_of(arguments.output / "model.safetensors"):
        return False
    rename_repository(arguments.output, arguments.push_to_hub)
    print(f"{arguments.output} holds the conversion of {arguments.source} already.")
    return True


def report(source: Source, card: Card, output: Path) -> str:
    """What was recognised, read and written."""
    assert card.provenance is not None
    known = f" ({TASKS[card.task].dataset.title})" if card.benchmark else ""
    labels = "" if card.task == "features" else f", {card.config.num_labels:,} labels{known}"
    lines = [
        f"{source.path}: {source.layout}, {card.variant or 'no published variant'}, {card.task}{labels}",
        f"sha256 of the source:            {source.sha256}",
        f"sha256 of model.safetensors:     {card.provenance.result_sha256}",
        f"reloaded against before saving:  {card.provenance.difference} largest difference on the photographs",
        f"written: {output}",
    ]
    lines += [f"{'beside the weights:':<32} {file}" for file in card.onnx]
    if labels and not has_names(card.config):
        lines.append("the labels have no names; give them with --labels file.json")
    if source.processor is not None and card.benchmark:
        lines.append("the image processor is the published evaluation, not the one that came with the weights")
    return "\n".join(lines)


def convert_all(arguments: argparse.Namespace) -> int:
    """Every checkpoint of a folder; one that fails does not stop the others. Returns the exit status."""
    sources = sorted(
        path for path in Path(arguments.source).glob("*") if path.suffix in SUFFIXES or (path / "config.json").is_file()
    )
    if not sources:
        raise ValueError(f"{arguments.source} holds no checkpoint ({', '.join(SUFFIXES)}).")
    rows, failed = [], 0
    namespace = arguments.push_to_hub
    for path in tqdm(sources, desc="converting", unit="checkpoint"):
        name = path.stem.replace("_", "-")
        one = argparse.Namespace(**vars(arguments) | {"source": path, "output": arguments.output / name})
        one.push_to_hub = f"{namespace}/{name}" if namespace else None
        try:
            convert(one)
            rows.append((path.name, "converted", str(one.output)))
        except (ValueError, OSError, HubRefusal) as error:
            failed += 1
            rows.append((path.name, "FAILED", str(error)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    print("\n".join(f"{name:<{widths[0]}}  {status:<{widths[1]}}  {text}" for name, status, text in rows))
    print(f"{len(rows) - failed} of {len(rows)} converted.")
    return int(failed > 0)


if __name__ == "__main__":
    main()
