"""Configuration of P2T (arXiv 2106.12011)."""

from huggingface_hub.dataclasses import strict

from .configuration_pyramid import PyramidConfig


@strict
class P2tConfig(PyramidConfig):
    r"""
    Configuration of a P2T model, `model_type` "p2t"; the defaults give
    [org/p2t-tiny](https://huggingface.co/org/p2t-tiny).

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the image.
        num_encoder_blocks (`int`, *optional*, defaults to 4):
            Number of stages.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 6, 3]`):
            Blocks of each stage.
        hidden_sizes (`list[int]`, *optional*, defaults to `[48, 96, 240, 384]`):
            Width of each stage.
        patch_sizes (`list[int]`, *optional*, defaults to `[7, 3, 3, 3]`):
            Kernel size of each patch embedding, padded by half of it.
        strides (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`):
            Stride of each patch embedding.
        num_attention_heads (`list[int]`, *optional*, defaults to `[1, 2, 5, 8]`):
            Attention heads of each stage.
        pool_ratios (`list[list[int]]`, *optional*, defaults to `[[12, 16, 20, 24], ..., [1, 2, 3, 4]]`):
            Keys and values of a stage come from its map pooled to grids this many times coarser; halved from stage to
            stage.
        mlp_ratios (`list[int]`, *optional*, defaults to `[8, 8, 4, 4]`):
            Expansion of each stage's feed-forward.
        hidden_act (`str`, *optional*, defaults to `"hardswish"`):
            Both activations of the feed-forward.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout after projections.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal of linear weights.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last block; published: 0.1, and 0.3 for base and large.
        layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the blocks' norms.
        reduction_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the norms in patch embeddings and of the pooled keys and values.
        qkv_bias (`bool`, *optional*, defaults to `True`):
            Bias of queries, keys and values.
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

    model_type = "p2t"

    depths: list[int] | tuple[int, ...] = (2, 2, 6, 3)
    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 240, 384)
    patch_sizes: list[int] | tuple[int, ...] = (7, 3, 3, 3)
    pool_ratios: list[list[int]] | tuple[tuple[int, ...], ...] = (
        (12, 16, 20, 24),
        (6, 8, 10, 12),
        (3, 4, 5, 6),
        (1, 2, 3, 4),
    )
    hidden_act: str = "hardswish"

    def validate_pool_ratios(self) -> None:
        """A non-empty list of positive ratios for every stage."""
        if len(self.pool_ratios) != self.num_encoder_blocks:
            raise ValueError(
                f"`pool_ratios` has {len(self.pool_ratios)} lists, expected one for each of the "
                f"{self.num_encoder_blocks} stages: {self.pool_ratios}."
            )
        if not all(ratios and min(ratios) > 0 for ratios in self.pool_ratios):
            raise ValueError(f"`pool_ratios` must hold positive ratios for every stage, got {self.pool_ratios}.")
