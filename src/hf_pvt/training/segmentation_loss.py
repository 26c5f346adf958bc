"""What segmenters learn from: cross-entropy over pixels, and beside it, where asked for, soft Dice over images."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..heads.semantic_fpn import resize, semantic_loss
from .data.samples import Sample

LossName = Literal["cross_entropy", "dice+cross_entropy"]


class SegmentationLoss:
    """The terms of a segmenter's loss, each a mean over its own `amounts` of a batch.

    Args:
        name: "dice+cross_entropy" has two terms, cross-entropy and `soft_dice_loss`.
        config: the model's; its ignored label and class weights.
    """

    def __init__(self, name: LossName, config: PreTrainedConfig) -> None:
        self.with_dice = name == "dice+cross_entropy"
        self.ignored, self.class_weights = config.semantic_loss_ignore_index, config.semantic_loss_class_weights

    def __call__(self, model: nn.Module, batch: Sample) -> Tensor:
        """The terms (T,) of images (B, C, H, W) and label maps (B, H, W)."""
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        if not self.with_dice:
            return model(pixel_values=pixel_values, labels=labels).loss[None]
        logits = model(pixel_values=pixel_values).logits.float()
        logits = resize(logits, labels.shape[-2:])  # (B, K, H, W), once for both
        cross_entropy = semantic_loss(logits, labels, self.ignored, self.class_weights)
        return torch.stack([cross_entropy, soft_dice_loss(logits, labels, self.ignored)])

    def amounts(self, batch: Sample) -> Tensor:
        """What each of the terms (T,) is the mean over: labelled pixels, and images that have one."""
        labelled = batch["labels"] != self.ignored  # (B, H, W)
        terms = [labelled.sum(), labelled.flatten(1).any(dim=1).sum()]
        return torch.stack(terms if self.with_dice else terms[:1]).float()


def soft_dice_loss(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """1 - Dice of softmax probabilities, the mean over the images that have a labelled pixel; 0 where none has.

    Dice of an image is the mean over the labels that it has of 2 sum(p y) / (sum(p) + sum(y)), over its labelled
    pixels: V-Net's (Milletari et al., arXiv 1606.04797, section 3) with plain sums below the line, as nnU-Net has it
    (Isensee et al., arXiv 1809.10486). A label that an image lacks has no overlap to gain, and what is predicted of it
    is missing in the others'; so it has no term, and no smoothing is needed, which would decide its value. Each image
    has its own sums, so that the mean does not depend on which images make a batch.

    Args:
        logits: (B, K, H, W), at the label maps' size.
        labels: (B, H, W), in [0, K) or `ignored`.
    """
    labels = labels.flatten(1).long()  # (B, N)
    labelled = labels != ignored
    own = labels.where(labelled, 0)
    labelled = labelled.to(logits.dtype)
    probabilities = logits.softmax(dim=1).flatten(2)  # (B, K, N)
    predicted = (probabilities @ labelled[:, :, None]).squeeze(2)  # (B, K)
    hits = probabilities.gather(1, own[:, None]).squeeze(1) * labelled  # (B, N)
    # Added up by label, without one-hot maps (B, K, N).
    nothing = torch.zeros_like(predicted)
    overlap, size = nothing.scatter_add(1, own, hits), nothing.scatter_add(1, own, labelled)
    present = size > 0
    dice = 2 * overlap / (predicted + size).where(present, 1)  # (B, K)
    image_dice = (dice * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)  # (B,)
    counted = present.any(dim=1)
    return ((1 - image_dice) * counted).sum() / counted.sum().clamp(min=1)
