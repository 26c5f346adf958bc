"""The published schedules on COCO: rates, decay, clipping and scales of each detector on each variant.

From the authors' configurations for MMDetection 2, where they are one file for each detector and variant.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..published.variants import variant_of


@dataclass(frozen=True)
class CocoRecipe:
    """`learning_rate` is for `batch` images; `max_grad_norm` None does not clip; the others are the script's flags."""

    learning_rate: float
    batch: int = 16
    weight_decay: float = 1e-4
    without_decay: tuple[str, ...] = ("none",)  # norms, biases and position embeddings decay, too
    max_grad_norm: float | None = None
    scale_lowest: float = 1.0
    random_crop: float = 0.0
    backbone_rate: float = 1.0

    def flags(self) -> dict[str, Any]:
        """Those of the script, but for the rate, which follows the batch."""
        others = ("weight_decay", "max_grad_norm", "scale_lowest", "random_crop", "backbone_rate")
        return {name: getattr(self, name) for name in others} | {"without_decay": list(self.without_decay)}


# With half the batch, the published rate is divided by 1.4, not by 2.
SMALL_BATCH = 1.4
# Of the recipes of 36 epochs: 11 scales, and crops in half of the cases.
SEVERAL_SCALES: dict[str, Any] = {"scale_lowest": 480 / 800, "random_crop": 0.5}
# Not decayed is what has "norm" in its published name, where norms of heads are called "bn" and "gn".
DECOUPLED = CocoRecipe(1e-4, weight_decay=0.05, without_decay=("backbone_norms",), **SEVERAL_SCALES)
RECIPES: dict[tuple[str, str], CocoRecipe] = {
    ("retinanet", "coco-1x"): CocoRecipe(1e-4),
    ("mask_rcnn", "coco-1x"): CocoRecipe(2e-4),
    ("retinanet", "coco-3x"): CocoRecipe(1e-4, scale_lowest=640 / 800),  # MMDetection's usual scales
    ("mask_rcnn", "coco-3x"): DECOUPLED,
    ("cascade_mask_rcnn", "coco-3x"): DECOUPLED,
    ("atss", "coco-3x"): DECOUPLED,
    ("gfl", "coco-3x"): DECOUPLED,
    ("sparse_rcnn", "coco-3x"): CocoRecipe(2.5e-5, max_grad_norm=1.0, **SEVERAL_SCALES),
    # On PVT-Small. Unlike the published run: Transformers' initial weights are normal with 0.02, not Xavier's; images
    # are evaluated as its DetrImageProcessor resizes them, not as cv2, and boxes are not clipped to them.
    ("detr", "coco-50e"): CocoRecipe(1e-4, max_grad_norm=0.1, scale_lowest=640 / 800, backbone_rate=0.1),
}
OF_VARIANTS: dict[tuple[str, str], dict[str, CocoRecipe]] = {
    ("retinanet", "coco-1x"): dict.fromkeys(("pvt-v2-b4", "pvt-v2-b5"), CocoRecipe(1e-4 / SMALL_BATCH, batch=8)),
    ("retinanet", "coco-3x"): dict.fromkeys(
        ("pvt-v2-b4", "pvt-v2-b5"), CocoRecipe(1e-4 / SMALL_BATCH, batch=8, scale_lowest=640 / 800)
    ),
    ("mask_rcnn", "coco-1x"): {
        **dict.fromkeys(("pvt-large", "pvt-v2-b4", "pvt-v2-b5"), CocoRecipe(2e-4 / SMALL_BATCH, batch=8)),
        **dict.fromkeys(("p2t-tiny", "p2t-small"), CocoRecipe(1e-4)),
        **dict.fromkeys(("p2t-base", "p2t-large"), CocoRecipe(1e-4, max_grad_norm=10.0)),
    },
    ("sparse_rcnn", "coco-3x"): {
        "pvt-v2-b2": CocoRecipe(2.5e-5 / SMALL_BATCH, batch=8, max_grad_norm=1.0, **SEVERAL_SCALES)
    },
}


def coco_recipe(config: PreTrainedConfig, schedule: str) -> CocoRecipe:
    """The recipe of a detector; on a backbone that is none of the published variants the detector's usual one.

    RetinaNet has no published "coco-3x"; it takes its rates of "coco-1x", on images of 640 to 800 pixels, which is
    MMDetection's usual. The apex O1 of the others' 36 epochs, but for Sparse R-CNN's, is `--mixed_precision fp16` here.

    Raises:
        ValueError: a detector that has none of this schedule.
    """
    detector, backbone = config.model_type, config.backbone_config
    if (detector, schedule) not in RECIPES:
        published = [of_schedule for of_detector, of_schedule in RECIPES if of_detector == detector]
        instead = f"take --recipe {published[0]}" if published else "leave --recipe out"
        raise ValueError(f"nothing is published of {detector} under {schedule}; {instead}.")
    variant = variant_of(backbone.model_type, backbone.to_dict())
    return OF_VARIANTS.get((detector, schedule), {}).get(str(variant), RECIPES[detector, schedule])
