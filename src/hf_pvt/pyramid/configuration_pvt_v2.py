"""Configuration of PVTv2 (arXiv 2106.13797)."""

from huggingface_hub.dataclasses import strict
from transformers import PvtV2Config as TransformersPvtV2Config

from .configuration_pyramid import PyramidConfigMixin


@strict
class PvtV2Config(TransformersPvtV2Config, PyramidConfigMixin):
    r"""
    Configuration of a PVTv2 model, `model_type` "pvt_v2"; the defaults give
    [OpenGVLab/pvt_v2_b0](https://huggingface.co/OpenGVLab/pvt_v2_b0).

    Transformers' own configuration, the second epsilon of the published models, and the segmenters' fields.

    Args:
        reduction_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the norms in patch embeddings and of the reduced keys and values. Transformers' own model uses
            `layer_norm_eps` (1e-6) there; that moves the logits by less than 1e-4.
        fpn_hidden_size (`int`, *optional*, defaults to 256):
            Width of the four maps in a segmenter's feature pyramid network.
        decoder_hidden_size (`int`, *optional*, defaults to 128):
            Width of a segmenter's heads, one per map, and of their sum.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout of whole channels before a segmenter's last convolution.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of the pixels that a segmenter's loss leaves out.
        semantic_loss_class_weights (`list[float]`, *optional*, defaults to `None`):
            Weight of each label in a segmenter's loss, none negative; equal unless given.

    Raises an error that says what is wrong when list lengths disagree, heads do not divide widths, or a number is
    negative or NaN.
    """

    reduction_field = "sr_ratios"
    per_stage_fields = (*PyramidConfigMixin.per_stage_fields, "sr_ratios")
