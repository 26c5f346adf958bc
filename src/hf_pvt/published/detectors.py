"""The published detectors: which variant in which detector, its size, and the precision that the authors report.

This table is the only place for these numbers, as `VARIANTS` is for the pyramids'. Average precisions on COCO val2017
are reported in the authors' repositories (12 or 36 epochs of training), not measured here.
"""

from dataclasses import dataclass
from typing import Any

from ..detection.configuration_detector import DetectorConfig, divided
from ..detection.detector_classes import DETECTORS
from ..pyramid.configuration_classes import CONFIG_CLASSES
from .labels import coco_id2label
from .variants import VARIANTS, variant_config


@dataclass(frozen=True)
class PublishedDetector:
    """One row: counts are exact, GMACs count convolutions, linears and attention products of one image."""

    model_type: str
    variant: str
    drop_path_rate: float
    parameters: int  # with COCO's 80 labels
    gmacs_800x1280: float  # of the R-CNNs with 1,000 proposals and 100 masks, of the sparse one with its 300
    box_ap_reported: float  # COCO val2017, %
    mask_ap_reported: float | None = None

    @property
    def schedule(self) -> str:
        """How long they were trained: "1x" are 12 epochs, "3x" are 36."""
        return "3x" if self.model_type in _FURTHER else "1x"

    @property
    def name(self) -> str:
        """What repositories are called, such as "mask-rcnn-pvt-v2-b2"."""
        return f"{self.model_type.replace('_', '-')}-{self.variant}"

    @property
    def license(self) -> str:
        """Licence of the published weights."""
        return VARIANTS[self.variant].license


# Variant: drop path; RetinaNet's parameters, GMACs and box AP; Mask R-CNN's, with its mask AP.
_ROWS: dict[str, tuple[float, tuple[int, float, float], tuple[int, float, float, float]]] = {
    "pvt-tiny": (0.1, (22_964_724, 221.01, 36.7), (32_882_160, 239.57, 36.7, 35.1)),
    "pvt-small": (0.1, (34_221_300, 285.66, 40.4), (44_138_736, 304.22, 40.4, 37.8)),
    "pvt-medium": (0.0, (53_943_540, 372.91, 41.9), (63_860_976, 391.46, 42.0, 39.0)),
    "pvt-large": (0.0, (71_104_756, 474.78, 42.6), (81_022_192, 493.33, 42.9, 39.5)),
    "pvt-v2-b0": (0.1, (12_947_028, 177.51, 37.2), (23_446_096, 195.70, 38.2, 36.2)),
    "pvt-v2-b1": (0.1, (23_745_972, 224.72, 41.2), (33_663_408, 243.28, 41.8, 38.8)),
    "pvt-v2-b2-li": (0.1, (32_290_484, 226.65, 43.6), (42_207_920, 245.21, 44.1, 40.5)),
    "pvt-v2-b2": (0.1, (35_099_828, 290.17, 44.6), (45_017_264, 308.72, 45.3, 41.2)),
    "pvt-v2-b3": (0.1, (54_975_668, 377.97, 45.9), (64_893_104, 396.52, 47.0, 42.5)),
    "pvt-v2-b4": (0.1, (72_293_044, 480.84, 46.1), (82_210_480, 499.40, 47.5, 42.7)),
    "pvt-v2-b5": (0.1, (91_692_980, 537.68, 46.2), (101_610_416, 556.24, 47.4, 42.5)),
    "p2t-tiny": (0.1, (21_099_460, 217.81, 41.3), (31_307_712, 236.18, 43.3, 39.6)),
    "p2t-small": (0.1, (33_816_820, 275.48, 44.4), (43_734_256, 294.04, 45.5, 41.4)),
    "p2t-base": (0.3, (45_803_380, 367.35, 46.1), (55_720_816, 385.90, 47.2, 42.7)),
    "p2t-large": (0.3, (64_413_748, 471.23, 47.2), (74_036_272, 489.70, 48.3, 43.5)),
}

# Detector: variant: parameters, GMACs, box AP, and mask AP where there are masks.
_FURTHER: dict[str, dict[str, tuple[int, float, float] | tuple[int, float, float, float]]] = {
    "atss": {"pvt-v2-b2-li": (30_156_058, 193.52, 48.9), "pvt-v2-b2": (32_965_402, 257.04, 49.9)},
    "gfl": {"pvt-v2-b2-li": (30_301_273, 196.62, 49.2), "pvt-v2-b2": (33_110_617, 260.13, 50.2)},
    "cascade_mask_rcnn": {
        "pvt-v2-b2-li": (80_043_122, 723.46, 50.9, 44.0),
        "pvt-v2-b2": (82_852_466, 786.97, 51.1, 44.4),
    },
    "sparse_rcnn": {"pvt-v2-b2-li": (104_154_472, 154.22, 48.9), "pvt-v2-b2": (106_963_816, 217.73, 50.1)},
}


def drop_path_rate(variant: str) -> float:
    """With which the authors train detectors on a variant, whichever they are."""
    return _ROWS[variant][0]


PUBLISHED_DETECTORS: dict[str, PublishedDetector] = {
    row.name: row
    for row in (
        *(PublishedDetector("retinanet", variant, rate, *facts) for variant, (rate, facts, _) in _ROWS.items()),
        *(PublishedDetector("mask_rcnn", variant, rate, *facts) for variant, (rate, _, facts) in _ROWS.items()),
        *(
            PublishedDetector(detector, variant, drop_path_rate(variant), *facts)
            for detector, variants in _FURTHER.items()
            for variant, facts in variants.items()
        ),
    )
}


def detector_config(detector: str, variant: str, **overrides: Any) -> DetectorConfig:
    """The configuration of a detector on a variant as published, or as it would be, with COCO's 80 labels.

    Args:
        detector: a model type, such as "retinanet".
        variant: such as "pvt-v2-b2".
        overrides: fields to set, of the detector, such as `num_labels=3` or `with_masks=False`, or, where only that has
            them, of the backbone, such as `drop_path_rate=0.2`.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if detector not in DETECTORS:
        raise ValueError(f"unknown detector {detector!r}, expected one of: {', '.join(DETECTORS)}.")
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}, expected one of: {', '.join(VARIANTS)}.")
    config_class: Any = DETECTORS[detector].config_class
    own, of_backbone = divided(overrides, config_class, CONFIG_CLASSES[VARIANTS[variant].model_type])
    if not {"id2label", "label2id", "num_labels"} & own.keys():
        own = coco_fields() | own
    backbone = variant_config(variant, **{"drop_path_rate": drop_path_rate(variant)} | of_backbone)
    config: DetectorConfig = config_class(**{"backbone_config": backbone} | own)
    return config


def coco_fields() -> dict[str, Any]:
    """COCO's labels in both directions."""
    id2label = coco_id2label()
    return {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
