"""Semantic FPN (arXiv 1901.02446, section 3), as the papers evaluate their pyramids on ADE20K: four maps become logits.

Legend: see `layers`. Level i is the map of stage i, at 1/4, 1/8, 1/16 and 1/32 of the image's size; D is the neck's
width, F the head's, K the number of labels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init

from .drawn_layers import DrawnConv2d, KaimingConv2d
from .feature_pyramid import FeaturePyramid

# As MMSegmentation draws its heads.
NormalConv2d = partial(DrawnConv2d, draw=partial(init.normal_, std=0.01))


class SemanticFpn(FeaturePyramid):
    """Feature pyramid network, then one head per level, summed: maps (B, C_i, H_i, W_i) become logits (B, K, H_0, W_0).

    Neck and head are two modules in MMSegmentation; here they are one, all of it under `decode_head`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        width, dim = config.fpn_hidden_size, config.decoder_hidden_size
        super().__init__(config.hidden_sizes, width)
        self.scale_heads = nn.ModuleList(
            ScaleHead(width, dim, doublings=level) for level in range(len(config.hidden_sizes))
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # of whole channels
        self.classifier = NormalConv2d(dim, config.num_labels or 0, kernel_size=1)

    def forward(self, feature_maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        size = feature_maps[0].shape[-2:]
        summed = None
        for level, head in zip(super().forward(feature_maps), self.scale_heads, strict=True):
            scaled = resize(head(level), size)  # (B, F, H_0, W_0)
            summed = scaled if summed is None else summed + scaled
        return self.classifier(self.dropout(summed))  # (B, K, H_0, W_0)


class ScaleHead(nn.Sequential):
    """[3x3 convolution, batch norm, ReLU, bilinear doubling] per level above 0: (B, D, H, W) -> (B, F, 2^n H, 2^n W).

    Level 0 itself is convolved once and not doubled.
    """

    def __init__(self, width: int, dim: int, doublings: int) -> None:
        layers: list[nn.Module] = [ConvNormReLU(width, dim)]
        for doubling in range(doublings):
            if doubling > 0:
                layers.append(ConvNormReLU(dim, dim))
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        super().__init__(*layers)


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = KaimingConv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.batch_norm = SynchronizedBatchNorm2d(out_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.batch_norm(self.conv(feature_map)).relu()


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

    Segmenters train with few images per process, whose own statistics would be poor. `torch.nn.SyncBatchNorm` is the
    same for GPUs alone (`SyncBatchNorm.convert_sync_batchnorm(model)` still works); this one runs wherever processes
    talk to each other.
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
        if count < 2:
            raise ValueError(
                "batch norm cannot train on a single value per channel: the batch holds one image whose coarsest map "
                "is 1x1; train with more images per batch, or with images of more than 32 pixels on a side."
            )


def resize(feature_map: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, H, W) -> (B, C, *size); the map itself where it has that size."""
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and feature_map.shape[-2:] == tuple(size):
        return feature_map  # compiled and exported code, where the comparison would pin the size, resizes always
    return F.interpolate(feature_map, size=tuple(size), mode="bilinear", align_corners=False)


def semantic_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean cross-entropy of logits (B, K, h, w), resized bilinearly to the label maps (B, H, W), over labelled pixels.

    MMSegmentation divides by all pixels, ignored ones too. A batch without a labelled pixel gives 0, not NaN.

    Raises:
        ValueError: label maps of another shape or type, or with a label that is neither in [0, K) nor `ignore_index`.
    """
    check_labels(logits, labels, ignore_index)
    weight = None if class_weights is None else logits.new_tensor(class_weights)
    labels = labels.long()
    scores = resize(logits, labels.shape[-2:])  # (B, K, H, W)
    loss = F.cross_entropy(scores, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    labelled = labels != ignore_index
    total = labelled.sum() if weight is None else weight[labels[labelled]].sum()
    return loss / torch.where(total > 0, total, 1)


def check_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    """One sentence for label maps that do not fit, before a kernel fails without one."""
    batch, classes = logits.shape[:2]
    if labels.dim() != 3 or labels.shape[0] != batch:
        raise ValueError(
            f"labels must be one label map (H, W) per image, of shape ({batch}, H, W), got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels has dtype {labels.dtype}, expected integers: the index of each pixel's label.")
    if torch.compiler.is_compiling():
        return  # looking at values would break the graph
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels holds {sorted(wrong.unique().tolist())[:8]}, expected 0 to {classes - 1} or the ignored "
            f"{ignore_index}; check num_labels, and do_reduce_labels of the image processor."
        )
