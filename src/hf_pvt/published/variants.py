"""The published variants: architecture, size, and the accuracies that the papers report.

This table is the only place for these numbers; README, model cards and tests are rendered from it or checked against
it. Accuracies are reported by the papers (PVT 2102.12122, PVTv2 2106.13797, P2T 2106.12011), not measured here.
"""

from dataclasses import dataclass
from typing import Any

from ..pyramid.configuration_classes import CONFIG_CLASSES, VariantConfig

# Code is Apache-2.0; these are the licences of the published weights. P2T's repository is CC BY-NC-SA 4.0 and says
# nothing of its weights, so they are treated as non-commercial.
WEIGHTS_LICENSES = {"pvt": "apache-2.0", "pvt_v2": "apache-2.0", "p2t": "cc-by-nc-sa-4.0"}


@dataclass(frozen=True)
class Variant:
    """One row: counts are exact, GMACs count convolutions, linears and attention products of one image."""

    model_type: str
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    drop_path_rate: float
    parameters: int  # with 1,000 classes
    gmacs_224: float
    top1_reported: float  # ImageNet-1k validation, %
    fpn_parameters: int  # Semantic FPN, 150 classes, without the classifier
    fpn_gmacs_512: float
    miou_reported: float  # ADE20K validation, %, single scale
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    linear_attention: bool = False

    @property
    def license(self) -> str:
        """Licence of the published weights."""
        return WEIGHTS_LICENSES[self.model_type]

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration fields in which the variants of a family differ."""
        fields: dict[str, Any] = {
            "hidden_sizes": self.hidden_sizes,
            "depths": self.depths,
            "mlp_ratios": self.mlp_ratios,
            "drop_path_rate": self.drop_path_rate,
        }
        if self.model_type == "pvt_v2":
            fields["linear_attention"] = self.linear_attention
        return fields


_SMALL = (32, 64, 160, 256)
_TINY = (48, 96, 240, 384)
_BASE = (64, 128, 320, 512)
_WIDE = (64, 128, 320, 640)

VARIANTS: dict[str, Variant] = {
    "pvt-tiny": Variant("pvt", _BASE, (2, 2, 2, 2), 0.1, 13_229_288, 1.933, 75.1, 16_981_398, 33.19, 35.7),
    "pvt-small": Variant("pvt", _BASE, (3, 4, 6, 3), 0.1, 24_485_864, 3.816, 79.8, 28_237_974, 44.47, 39.8),
    "pvt-medium": Variant("pvt", _BASE, (3, 4, 18, 3), 0.3, 44_208_104, 6.659, 81.2, 47_960_214, 60.96, 41.6),
    "pvt-large": Variant("pvt", _BASE, (3, 8, 27, 3), 0.3, 61_369_320, 9.814, 81.7, 65_121_430, 79.53, 42.1),
    "pvt-v2-b0": Variant("pvt_v2", _SMALL, (2, 2, 2, 2), 0.1, 3_666_760, 0.566, 70.5, 7_545_334, 24.98, 37.2),
    "pvt-v2-b1": Variant("pvt_v2", _BASE, (2, 2, 2, 2), 0.1, 14_009_000, 2.108, 78.7, 17_762_646, 34.14, 42.5),
    "pvt-v2-b2-li": Variant(
        "pvt_v2", _BASE, (3, 4, 6, 3), 0.1, 22_553_512, 3.889, 82.1, 26_307_158, 40.84, 45.1, linear_attention=True
    ),
    "pvt-v2-b2": Variant("pvt_v2", _BASE, (3, 4, 6, 3), 0.1, 25_362_856, 4.027, 82.0, 29_116_502, 45.63, 45.2),
    "pvt-v2-b3": Variant("pvt_v2", _BASE, (3, 4, 18, 3), 0.3, 45_238_696, 6.897, 83.1, 48_992_342, 62.25, 47.3),
    "pvt-v2-b4": Variant("pvt_v2", _BASE, (3, 8, 27, 3), 0.3, 62_556_072, 10.101, 83.6, 66_309_718, 81.08, 47.9),
    "pvt-v2-b5": Variant(
        "pvt_v2", _BASE, (3, 6, 40, 3), 0.3, 81_956_008, 11.717, 83.8, 85_709_654, 90.85, 48.7, mlp_ratios=(4, 4, 4, 4)
    ),
    "p2t-tiny": Variant("p2t", _TINY, (2, 2, 6, 3), 0.1, 11_590_840, 1.789, 79.8, 15_406_950, 32.26, 43.4),
    "p2t-small": Variant("p2t", _BASE, (2, 2, 9, 3), 0.1, 24_079_848, 3.774, 82.4, 27_833_494, 43.62, 46.7),
    "p2t-base": Variant("p2t", _BASE, (3, 4, 18, 3), 0.3, 36_066_408, 6.532, 83.5, 39_820_054, 59.90, 48.7),
    "p2t-large": Variant("p2t", _WIDE, (3, 8, 27, 3), 0.3, 54_477_096, 9.828, 83.9, 58_135_510, 79.03, 49.4),
}


def variant_config(name: str, **overrides: Any) -> VariantConfig:
    """The configuration of a published variant, such as "pvt-v2-b2"; `overrides` replace or add fields.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}, expected one of: {', '.join(VARIANTS)}.")
    variant = VARIANTS[name]
    return CONFIG_CLASSES[variant.model_type](**(variant.architecture | overrides))


def variant_of(model_type: str, fields: dict[str, Any]) -> str | None:
    """The published variant that has these widths, depths and ratios (whatever its drop path), None where none has."""
    for name, variant in VARIANTS.items():
        architecture = {key: value for key, value in variant.architecture.items() if key != "drop_path_rate"}
        if variant.model_type == model_type and all(_plain(fields.get(k)) == v for k, v in architecture.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
