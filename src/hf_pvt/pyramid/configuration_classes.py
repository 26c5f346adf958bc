"""The configuration of each family, by its model type."""

from .configuration_p2t import P2tConfig
from .configuration_pvt import PvtConfig
from .configuration_pvt_v2 import PvtV2Config

VariantConfig = PvtConfig | PvtV2Config | P2tConfig

CONFIG_CLASSES: dict[str, type[VariantConfig]] = {"pvt": PvtConfig, "pvt_v2": PvtV2Config, "p2t": P2tConfig}
