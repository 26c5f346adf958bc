"""The published schedules on COCO: rates, decay, clipping and scales of each detector on each variant.

From the authors' configurations for MMDetection 2, where they are one file for each detector and variant.
"""

from dataclasses import dataclass, replace
from typing import Any

from hf_pvt.detection.configuration_detector import DetectorConfig
from hf_pvt.variants import variant_of


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

    def flags(self) -> dict[str, Any]:
        """Those of the script, but for the rate, which follows the batch."""
        others = ("weight_decay", "max_grad_norm", "scale_lowest", "random_crop")
        return {name: getattr(self, name) for name in others} | {"without_decay": list(self.without_decay)}


# With half the batch, the published rate is divided by 1.4, not by 2.
SMALL_BATCH = 1.4
RECIPES: dict[tuple[str, str], CocoRecipe] = {
    ("retinanet", "coco-1x"): CocoRecipe(1e-4),
    ("mask_rcnn", "coco-1x"): CocoRecipe(2e-4),
    ("mask_rcnn", "coco-3x"): CocoRecipe(
        1e-4, weight_decay=0.05, without_decay=("norms",), scale_lowest=480 / 800, random_crop=0.5
    ),
}
OF_VARIANTS: dict[tuple[str, str], dict[str, CocoRecipe]] = {
    ("retinanet", "coco-1x"): dict.fromkeys(("pvt-v2-b4", "pvt-v2-b5"), CocoRecipe(1e-4 / SMALL_BATCH, batch=8)),
    ("mask_rcnn", "coco-1x"): {
        **dict.fromkeys(("pvt-large", "pvt-v2-b4", "pvt-v2-b5"), CocoRecipe(2e-4 / SMALL_BATCH, batch=8)),
        **dict.fromkeys(("p2t-tiny", "p2t-small"), CocoRecipe(1e-4)),
        **dict.fromkeys(("p2t-base", "p2t-large"), CocoRecipe(1e-4, max_grad_norm=10.0)),
    },
}


def coco_recipe(config: DetectorConfig, schedule: str) -> CocoRecipe:
    """The recipe of a detector; on a backbone that is none of the published variants the detector's usual one.

    RetinaNet has no published "coco-3x"; it takes its rates of "coco-1x", on images of 640 to 800 pixels, which is
    MMDetection's usual.

    Raises:
        ValueError: a detector that has none.
    """
    detector, backbone = config.model_type, config.backbone_config
    if (detector, "coco-1x") not in RECIPES:
        raise ValueError(f"nothing is published of {detector} under {schedule}; leave --recipe out.")
    key = (detector, schedule) if (detector, schedule) in RECIPES else (detector, "coco-1x")
    variant = variant_of(backbone.model_type, backbone.to_dict())
    recipe = OF_VARIANTS.get(key, {}).get(str(variant), RECIPES[key])
    return recipe if key[1] == schedule else replace(recipe, scale_lowest=640 / 800)
