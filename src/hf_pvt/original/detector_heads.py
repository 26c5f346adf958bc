"""How the heads of a published detector are told, and which of its sizes their shapes tell.

`detector_layouts` combines each of them with every pyramid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .pyramid_layouts import Layout, StateDict
from .shapes import shape_of


@dataclass(frozen=True)
class Head:
    """How the heads of a detector are told: by the weights `needed` (ours), from which `fields` reads sizes."""

    title: str
    marker: str  # with this a key of its head begins, there
    needed: tuple[str, ...]
    fields: Callable[[StateDict, Layout], dict[str, Any]]


def retinanet_fields(weights: StateDict, layout: Layout) -> dict[str, Any]:
    """The number of labels: each anchor has one output for each, and four for its box."""
    outputs, boxes = (shape_of(weights, layout, f"bbox_head.retina_{kind}.weight")[0] for kind in ("cls", "reg"))
    return {"num_labels": outputs // max(boxes // 4, 1)}


def region_fields(box_head: str, mask_head: str, weights: StateDict, layout: Layout) -> dict[str, Any]:
    """The number of labels, without the background, and whether there are masks, of heads (ours) of these names."""
    outputs, hidden = shape_of(weights, layout, f"{box_head}.fc_cls.weight")
    masks = layout.name(f"{mask_head}.")
    return {
        "num_labels": outputs - 1,
        "box_hidden_size": hidden,
        "with_masks": any(key.startswith(masks) for key in weights),
    }


def atss_fields(weights: StateDict, layout: Layout) -> dict[str, Any]:
    """The number of labels: each place has one anchor."""
    return {"num_labels": shape_of(weights, layout, "bbox_head.atss_cls.weight")[0]}


def gfl_fields(weights: StateDict, layout: Layout) -> dict[str, Any]:
    """The number of labels, and the largest distance."""
    outputs, sides = (shape_of(weights, layout, f"bbox_head.gfl_{kind}.weight")[0] for kind in ("cls", "reg"))
    return {"num_labels": outputs, "reg_max": sides // 4 - 1}


def sparse_rcnn_fields(weights: StateDict, layout: Layout) -> dict[str, Any]:
    """All sizes but for the number of the attention's heads; published are as many detections as proposals."""

    def count(ours: str, keys_of_each: int = 1) -> int:
        """How many modules a list has, whose keys are so many for each."""
        prefix = layout.name(ours)
        keys = [key.removeprefix(prefix) for key in weights if key.startswith(prefix)]
        return len({key.split(".")[0] for key in keys}) // keys_of_each

    labels, proposals, dynamic, pooled, hidden = (
        shape_of(weights, layout, ours) for ours in HEADS["sparse_rcnn"].needed
    )
    return {
        "num_labels": labels[0],
        "num_proposals": proposals[0],
        "max_detections": proposals[0],
        "num_stages": count("box_heads."),
        "box_pool_size": math.isqrt(pooled[1] // pooled[0]),
        "dynamic_hidden_size": dynamic[0] // dynamic[1] // 2,
        "feed_forward_size": hidden[0],
        "num_cls_linears": count("box_heads.0.cls_fcs.", keys_of_each=2),  # a linear and its norm
        "num_reg_linears": count("box_heads.0.reg_fcs.", keys_of_each=2),
    }


HEADS = {
    "retinanet": Head(
        "RetinaNet",
        "bbox_head.retina_cls.",
        ("bbox_head.retina_cls.weight", "bbox_head.retina_reg.weight"),
        retinanet_fields,
    ),
    "mask_rcnn": Head(
        "R-CNN",
        "roi_head.bbox_head.fc_cls.",
        ("box_head.fc_cls.weight",),
        partial(region_fields, "box_head", "mask_head"),
    ),
    "atss": Head("ATSS", "bbox_head.atss_cls.", ("bbox_head.atss_cls.weight",), atss_fields),
    "gfl": Head("GFL", "bbox_head.gfl_cls.", ("bbox_head.gfl_cls.weight", "bbox_head.gfl_reg.weight"), gfl_fields),
    "cascade_mask_rcnn": Head(
        "Cascade R-CNN",
        "roi_head.bbox_head.0.shared_convs.",
        ("box_heads.0.fc_cls.weight",),
        partial(region_fields, "box_heads.0", "mask_heads"),
    ),
    "sparse_rcnn": Head(
        "Sparse R-CNN",
        "rpn_head.init_proposal_bboxes.",
        (
            "box_heads.0.fc_cls.weight",
            "rpn_head.init_proposal_bboxes.weight",
            "box_heads.0.instance_interactive_conv.dynamic_layer.weight",
            "box_heads.0.instance_interactive_conv.fc_layer.weight",
            "box_heads.0.ffn.0.weight",
        ),
        sparse_rcnn_fields,
    ),
}
LATERAL = "neck.lateral_convs.0.weight"
