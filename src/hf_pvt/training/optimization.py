"""Parameter groups of AdamW, learning rates as a function of the step, and the moving average of the weights."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .arguments import UNDECAYED, OptimizationArguments


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    without_decay: Sequence[str] = UNDECAYED,
    backbone_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: each trainable parameter in exactly one, with its `weight_decay` and `lr_scale`.

    Args:
        model: a pyramid, with or without a head.
        without_decay: "vectors" by their one dimension, "norms" by their module's name, "backbone_norms" those of a
            detector's pyramid, all others by their own name.
        layer_decay: the rate falls by this factor from the head to the last block, and from each block to the one
            before it (arXiv 2106.08254). A patch embedding, and what the blocks of a stage share, have the rate of the
            stage's first block, the first patch embedding one factor less; a stage's norm has its last block's.
        backbone_rate: a factor more for what is in a detector's `backbone`.

    Raises:
        ValueError: a rate for a backbone in a model that has none of this name.
    """
    depth_of, has_backbone = _depths(model), any(_in_backbone(name) for name, _ in model.named_parameters())
    if backbone_rate != 1.0 and not has_backbone:
        raise ValueError(f"--backbone_rate is for a detector's backbone, which a {type(model).__name__} is not on.")
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds = {
                "vectors" if parameter.ndim == 1 else name.rpartition(".")[2],
                *(["norms"] if "norm" in name else []),
                *(["backbone_norms"] if "norm" in name and name.startswith("backbone.") else []),
            }
            decays = kinds.isdisjoint(without_decay)
            scale = layer_decay ** (depth_of.head - depth_of(name)) * (backbone_rate if _in_backbone(name) else 1.0)
            groups[scale, weight_decay if decays else 0.0].append(parameter)
    return [{"params": params, "lr_scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()]


def _in_backbone(name: str) -> bool:
    return "backbone" in name.split(".")


class _Depth:
    """How deep in the network a parameter is: 0 the first patch embedding, 1 to n the blocks, n + 1 the head.

    Args:
        blocks: of each stage.
        prefix: of the pyramid's names; other encoders are part of the head.
    """

    def __init__(self, blocks: list[int], prefix: str) -> None:
        self.prefix = prefix
        self.ends = [sum(blocks[: stage + 1]) for stage in range(len(blocks))]  # the depth of each stage's last block
        self.head = sum(blocks) + 1

    def __call__(self, name: str) -> int:
        match = re.search(r"encoder\.layers\.(\d+)\.(?:blocks\.(\d+)\.)?(\w+)", name)
        if match is None or not name.startswith(self.prefix):
            return self.head
        stage, block, part = int(match[1]), match[2], match[3]
        before = self.ends[stage - 1] if stage else 0
        if block is not None:
            return before + int(block) + 1
        if part == "layer_norm":
            return self.ends[stage]
        return 0 if stage == 0 and part == "patch_embedding" else before + 1


def _depths(model: nn.Module) -> _Depth:
    found = {match.groups() for name, _ in model.named_parameters() if (match := _BLOCK.search(name))}
    stages = [int(stage) for _, stage, _ in found]
    prefix = next((prefix for prefix, _, _ in found), "")
    return _Depth([stages.count(stage) for stage in range(max(stages, default=-1) + 1)], prefix)


_BLOCK = re.compile(r"^(.*)encoder\.layers\.(\d+)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Schedule:
    """The learning rate before each step: a curve from `peak` to `end`, whose beginning is a linear warm-up.

    "steps" stays at the peak, and is a tenth of what it was from each of `drops` on, which are shares of the run.

    The warm-up goes from `warmup_start` to where the curve is after `warmup_steps`. timm's, with which the papers
    trained, goes to the peak and jumps down to its curve, by 0.07% in the published recipe.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    warmup_start: float = 0.0
    end: float = 0.0
    curve: Literal["cosine", "poly", "steps"] = "cosine"
    power: float = 0.9  # of "poly"
    drops: tuple[float, ...] = ()  # of "steps"

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            target = self._on_curve(self.warmup_steps)
            return self.warmup_start + (target - self.warmup_start) * step / self.warmup_steps
        return self._on_curve(step)

    def _on_curve(self, step: int) -> float:
        done = min(step / self.total_steps, 1.0)
        if self.curve == "steps":
            return self.peak * 0.1 ** sum(step >= round(share * self.total_steps) for share in self.drops)
        left = (1 + math.cos(math.pi * done)) / 2 if self.curve == "cosine" else (1 - done) ** self.power
        return self.end + (self.peak - self.end) * left


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """The rate of each group: this one times the group's scale. There is no scheduler, so no state of one to save."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def moving_average(model: nn.Module, decay: float | None, accelerator: Accelerator) -> AveragedModel | None:
    """The average of the weights that each `update_parameters` moves, None without a decay.

    Raises:
        ValueError: the weights are sharded.
    """
    if decay is None:
        return None
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError("--ema_decay needs whole weights in every process; leave it out with FSDP or DeepSpeed.")
    average = AveragedModel(model, device=accelerator.device, multi_avg_fn=get_ema_multi_avg_fn(decay))
    # As accelerate does with the model that it prepares: logits in float32, whatever the precision of the products.
    average.module.forward = convert_outputs_to_fp32(average.module.forward)
    return average


def run_length(optimization: OptimizationArguments, steps_per_epoch: int | None) -> tuple[int, int]:
    """Steps of a run and of its warm-up, which takes at most half of the run.

    Of a stream, whose epochs have no length (None), the warm-up has the share of the steps that it has of the epochs.

    Raises:
        ValueError: a stream without --max_steps.
    """
    epochs, warmup_epochs = optimization.num_train_epochs or 1.0, optimization.warmup_epochs or 0.0
    if optimization.max_steps is None and steps_per_epoch is None:
        raise ValueError("a stream has no length; say with --max_steps how long to train.")
    total = optimization.max_steps or max(1, round(epochs * (steps_per_epoch or 0)))
    warmup = optimization.warmup_steps
    if warmup is None:
        warmup = round(warmup_epochs * (steps_per_epoch or total / epochs))
    return total, min(warmup, total // 2)
