"""Back again: a repository in the layout of the published checkpoint, every tensor equal to the source to the bit.

    python conversion/export_original.py out/pvt-v2-b2 pvt_v2_b2.pth
    python conversion/export_original.py org/p2t-small-ade20k fpn_p2t_small.pth

The first argument is a folder, or a repository on the Hub. Classifiers and headless models become the authors' state
dict, segmenters and detectors MMSegmentation's or MMDetection's `{"meta", "state_dict"}`; a name in .safetensors gives
the bare weights.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hub_errors import HubRefusal
from repository import PROVENANCE, UNUSED_WEIGHTS
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sources import fetched, pyramid_of, read_source
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_pvt.original.detector_layouts import DETECTOR_LAYOUTS, DetectorLayout
from hf_pvt.original.detr_layout import DETR_LAYOUTS, DetrLayout
from hf_pvt.original.load_original import LAYOUTS
from hf_pvt.original.pyramid_layouts import PUBLISHED_LAYOUTS, Layout, StateDict, to_original


def main() -> None:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", help="a folder, or org/name on the Hub")
    parser.add_argument("output", type=Path, help="file to write: .pth, or .safetensors for bare weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        layout = export(fetched(arguments.repository), arguments.output, arguments.overwrite)
    except (ValueError, OSError, HubRefusal) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.output}: {layout.source}")


def export(folder: Path, output: Path, overwrite: bool = False) -> Layout:
    """Write the original layout of the model in `folder`, and return it.

    Raises:
        FileExistsError: the file exists, and `overwrite` is not set.
        ValueError: the folder holds no model of the three families.
    """
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or replace it with --overwrite.")
    model = read_source(folder).model
    layout = layout_of(folder, model)
    weights = to_original(model, layout)
    if (folder / UNUSED_WEIGHTS).is_file():
        weights |= load_file(folder / UNUSED_WEIGHTS)
    temporary = output.with_name(f".{output.name}.incomplete")
    try:
        if output.suffix == ".safetensors":
            save_file({key: weight.contiguous() for key, weight in weights.items()}, temporary)
        else:
            torch.save(content(model, layout, weights), temporary)
        temporary.rename(output)
    except (RuntimeError, SafetensorError) as error:  # what a full disk is called there
        raise OSError(f"cannot write {output}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return layout


def layout_of(folder: Path, model: PreTrainedModel) -> Layout:
    """The layout that the folder was converted from, the published one where it was not."""
    if (folder / PROVENANCE).is_file():
        named = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["layout"]
        for layout in LAYOUTS:
            if layout.source == named:
                return layout
    published: Iterable[Layout] = PUBLISHED_LAYOUTS
    if hasattr(model, "decode_head"):
        published = (layout for layout in LAYOUTS if layout.is_segmentation)
    elif pyramid_of(model.config) is not model.config:
        detectors: tuple[DetectorLayout | DetrLayout, ...] = (*DETECTOR_LAYOUTS, *DETR_LAYOUTS)
        published = (layout for layout in detectors if layout.detector == model.config.model_type)
    return next(layout for layout in published if layout.model_type == pyramid_of(model.config).model_type)


def content(model: PreTrainedModel, layout: Layout, weights: StateDict) -> dict[str, Any]:
    """What the file holds: bare weights, or with the names, and the colours, of a segmenter's or detector's labels."""
    if not (layout.is_segmentation or isinstance(layout, DetectorLayout | DetrLayout)):
        return weights
    config: Any = model.config
    meta: dict[str, Any] = {"CLASSES": tuple(config.id2label[label] for label in range(config.num_labels))}
    if getattr(config, "palette", None):
        meta["PALETTE"] = config.palette
    return {"meta": meta, "state_dict": weights}


if __name__ == "__main__":
    main()
