"""Configuration of PVTv2 (arXiv 2106.13797)."""

from huggingface_hub.dataclasses import strict
from transformers import PvtV2Config as TransformersPvtV2Config

from .configuration_pyramid import PyramidConfigMixin


@strict
class PvtV2Config(TransformersPvtV2Config, PyramidConfigMixin):
    r"""
    Configuration of a PVTv2 model, `model_type` "pvt_v2"; the defaults give
    [OpenGVLab/pvt_v2_b0](https://huggingface.co/OpenGVLab/pvt_v2_b0).

    Transformers' own configuration and one more field, because the published models use two epsilons.

    Args:
        reduction_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the norms in patch embeddings and of the reduced keys and values. Transformers' own model uses
            `layer_norm_eps` (1e-6) there; that moves the logits by about 5e-6.

    Raises an error that says what is wrong when list lengths disagree, heads do not divide widths, or a number is
    negative or NaN.
    """

    reduction_field = "sr_ratios"
    per_stage_fields = (*PyramidConfigMixin.per_stage_fields, "sr_ratios")
