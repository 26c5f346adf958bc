"""Models for another number of channels than their weights were trained with."""

import copy
import logging
import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

# What `from_pretrained` and a configuration's take alike.
WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def for_channels(weight: Tensor, num_channels: int) -> Tensor:
    """A first convolution's weight (D, C, k, k) for `num_channels`: repeated over them, times C / num_channels.

    The activations keep their scale. For one channel the weights are summed, so that a grey image means what it meant
    as one of equal channels. As timm does.
    """
    channels = weight.shape[1]
    if num_channels == channels:
        return weight
    if num_channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-num_channels // channels), 1, 1)[:, :num_channels]
    return (repeated * (channels / num_channels)).to(weight.dtype)


class InputChannelsMixin:
    """Pretrained weights under any number of channels: `from_pretrained(..., num_channels=4)`, `set_num_channels`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        config: Any = None,
        num_channels: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """As Transformers'; where the weights are for other channels than are asked for, see `set_num_channels`."""
        where = {name: kwargs[name] for name in WHERE if name in kwargs}
        wanted = num_channels or getattr(config, "num_channels", None)
        path = pretrained_model_name_or_path
        theirs = None if path is None or wanted is None else stored_channels(path, where)
        if theirs in (None, wanted):
            extra = {} if num_channels is None else {"num_channels": num_channels}
            return super().from_pretrained(path, *args, config=config, **kwargs, **extra)  # type: ignore[misc]
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            config.num_channels = theirs
        loaded = super().from_pretrained(path, *args, config=config, **kwargs)  # type: ignore[misc]
        (loaded[0] if isinstance(loaded, tuple) else loaded).set_num_channels(wanted)
        return loaded

    @torch.no_grad()
    def set_num_channels(self: Any, num_channels: int) -> None:
        """Make this a model for images (B, num_channels, H, W), with a first convolution by `for_channels`.

        Raises:
            ValueError: fewer than one channel.
        """
        if num_channels < 1:
            raise ValueError(f"num_channels is {num_channels}, expected at least 1.")
        model: PreTrainedModel = self
        convolution: Any = model.get_input_embeddings()
        before = convolution.in_channels
        if num_channels == before:
            return
        convolution.weight = nn.Parameter(for_channels(convolution.weight, num_channels))
        convolution.in_channels = model.config.num_channels = num_channels
        logger.warning(
            f"the weights are for {before} channels and the model for {num_channels}: its first convolution is theirs, "
            + ("summed over the channels." if num_channels == 1 else f"repeated, times {before}/{num_channels}.")
        )


def stored_channels(path: str | os.PathLike[str], where: dict[str, Any]) -> int | None:
    """`num_channels` of a folder's or repository's configuration; None where it has none."""
    try:
        stored, _ = PreTrainedConfig.get_config_dict(path, **where)
    except (OSError, TypeError):  # `from_pretrained` says what is wrong
        return None
    # What a configuration leaves out is its default: images of three channels.
    stored = stored.get("backbone_config", stored)  # a detector's
    return stored.get("num_channels", 3) if stored else None
