"""Configuration of PVT (arXiv 2102.12122)."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_pyramid import PyramidConfig


@strict
class PvtConfig(PyramidConfig):
    r"""
    Configuration of a PVT model, `model_type` "pvt"; the defaults give
    [Xrenya/pvt-tiny-224](https://huggingface.co/Xrenya/pvt-tiny-224).

    It reads and writes Transformers' own PVT files. It is not a subclass of Transformers' class, which lets
    `num_labels` contradict `id2label` and takes square images only.

    Args:
        image_size (`int` or `list[int]`, *optional*, defaults to 224):
            Image size in pixels, or `[height, width]`, whose grids the position embeddings are stored for. Images of
            any other size run too: the embeddings are resized.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the image.
        num_encoder_blocks (`int`, *optional*, defaults to 4):
            Number of stages.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 2, 2]`):
            Blocks of each stage.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`):
            Width of each stage.
        patch_sizes (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`):
            Kernel size of each patch embedding.
        strides (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`):
            Stride of each patch embedding.
        num_attention_heads (`list[int]`, *optional*, defaults to `[1, 2, 5, 8]`):
            Attention heads of each stage.
        sequence_reduction_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
            Keys and values come from a grid this many times coarser on each side. The last one has to be 1: the class
            token of the last stage has no place in a grid.
        mlp_ratios (`list[int]`, *optional*, defaults to `[8, 8, 4, 4]`):
            Expansion of each stage's feed-forward.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout after projections and position embeddings.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0):
            Dropout of attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal of linear weights, position embeddings and class token.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last block; published: 0.1, and 0.3 for medium and large.
        layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the blocks' norms and of the final one.
        reduction_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the norms in patch embeddings and of the reduced keys and values. Transformers' own model uses
            `layer_norm_eps` (1e-6) there; that moves the logits by less than 1e-4.
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

    model_type = "pvt"

    image_size: int | list[int] | tuple[int, int] = 224
    sequence_reduction_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)

    reduction_field = "sequence_reduction_ratios"
    per_stage_fields = (*PyramidConfig.per_stage_fields, "sequence_reduction_ratios")

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's grid for an image of `image_size`."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        for stride in self.strides[: stage + 1]:
            height, width = height // stride, width // stride
        return height, width

    def validate_stages(self) -> None:
        """As the pyramids'; and the class token cannot be reduced, and the smallest image has to fit."""
        super().validate_stages()
        if self.sequence_reduction_ratios[-1] != 1:
            raise ValueError(
                f"the last of `sequence_reduction_ratios` must be 1, got {list(self.sequence_reduction_ratios)}: the "
                "last stage's class token has no place in a grid that could be reduced."
            )
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
        minimum = self.minimum_image_size
        if len(sides) != 2 or min(sides) < minimum:
            raise ValueError(
                f"`image_size` must be one side or [height, width], each of {minimum} pixels or more, got "
                f"{self.image_size}."
            )

    def to_dict(self) -> dict[str, Any]:
        """As Transformers', with `num_labels` beside `id2label`, where its own PVT looks for it."""
        return super().to_dict() | {"num_labels": self.num_labels}
