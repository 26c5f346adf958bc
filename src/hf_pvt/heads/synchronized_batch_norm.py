"""Batch norm over the images of all processes, and the convolution that heads put in front of it.

Legend: see `layers`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .initialized_layers import KaimingConv2d


class SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' tensors; every process' loss depends on each of them, so gradients are summed as well.

    PyTorch's own is deprecated in 2.15, and what it recommends instead is private.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradients[0].contiguous())


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics, in training, are those of all processes' images together.

    Segmenters and detectors train with few images per process, whose own statistics would be poor.
    `torch.nn.SyncBatchNorm` is the same for GPUs alone (`SyncBatchNorm.convert_sync_batchnorm(model)` still works);
    this one runs wherever processes talk to each other.
    """

    def forward(self, feature_map: Tensor) -> Tensor:
        if not self.training:
            return super().forward(feature_map)
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            self.check_count(feature_map.numel() // feature_map.shape[1])
            return super().forward(feature_map)
        values = feature_map.float()
        channels = values.sum((0, 2, 3))  # (C,)
        count = channels.new_full((1,), values.numel() // values.shape[1])
        # Not checked, which would wait for the device: of two processes each has a value.
        total = SumOverProcesses.apply(torch.cat((channels, count)))  # (C + 1,)
        mean = total[:-1] / total[-1]
        centred = values - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / total[-1]
        self.update(mean.detach(), (variance * (total[-1] / (total[-1] - 1))).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(feature_map.dtype)

    @torch.no_grad()
    def update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics by `momentum`."""
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)

    def check_count(self, count: int) -> None:
        if count == 1:  # of no box at all nothing is learnt
            raise ValueError(
                "batch norm cannot train on a single value per channel: the batch holds one image whose coarsest map "
                "is 1x1; train with more images per batch, or with images of more than 32 pixels on a side."
            )


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = KaimingConv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.batch_norm = SynchronizedBatchNorm2d(out_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.batch_norm(self.conv(feature_map)).relu()
