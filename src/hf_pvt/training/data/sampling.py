"""Which samples, in which order, for which process.

Randomness is a function of the seed and the place, never of what ran before. So a run that continues in the middle of
an epoch needs no generator's state, the number of workers does not matter, and N processes see what one process with
the joint batch sees.

Legend: a step of the optimizer takes `global_batch` = processes x per-device batch x accumulation consecutive positions
of the epoch. Each micro-batch is dealt to the processes in turn, position by position.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class Purpose(IntEnum):
    """What a seed is for, so that equal coordinates do not make equal numbers."""

    ORDER = 1
    SAMPLE = 2
    STEP = 3
    SPLIT = 4
    MODEL = 5


def derived_seed(seed: int, purpose: Purpose, *coordinates: int) -> int:
    """A seed of 64 bits for one purpose at one place, unrelated to that of its neighbours."""
    return int(np.random.SeedSequence((seed, purpose, *coordinates)).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int, purpose: Purpose, *coordinates: int) -> Iterator[None]:
    """PyTorch's CPU generator, which torchvision draws from, starts at the place's seed; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, purpose, *coordinates))
        yield


class Place(NamedTuple):
    """A sample's place: its position in the epoch is the place of its augmentation, too."""

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # which tuple has, too


class EpochOrder:
    """A permutation of the data set for every epoch.

    Args:
        length: samples of the data set.
        copies: repeated augmentation (arXiv 1901.09335) as in DeiT: every image stands in the order so many times in a
            row, so that its copies go to different processes. The epoch keeps its length, so it sees one image of
            `copies`.
        kinds: (length,), what kind each sample is of: a step takes samples of one kind, but for those that are left
            over of each. (MMDetection does so for each process alone, with upright and wide images.)

    Raises:
        ValueError: less samples than one step takes. Those that an epoch's whole steps leave over are dropped, others
            in each epoch.
    """

    def __init__(self, length: int, global_batch: int, seed: int, copies: int = 1, kinds: Tensor | None = None) -> None:
        if length < global_batch:
            raise ValueError(
                f"the training data has {length} samples, fewer than one step takes ({global_batch} = processes x "
                "per_device_train_batch_size x gradient_accumulation_steps); choose a smaller "
                "--per_device_train_batch_size."
            )
        self.length, self.global_batch, self.seed, self.copies = length, global_batch, seed, copies
        self.kinds = kinds
        self.steps_per_epoch = length // global_batch
        self._epoch, self._indices = -1, torch.empty(0)

    def indices(self, epoch: int) -> Tensor:
        """The data set's indices (length,) in the order of an epoch."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, Purpose.ORDER, epoch))
            images = -(-self.length // self.copies)
            permutation = torch.randperm(self.length, generator=generator)[:images]
            if self.kinds is not None:
                permutation = self._by_kind(permutation, generator)
            self._epoch, self._indices = epoch, permutation.repeat_interleave(self.copies)[: self.length]
        return self._indices

    def _by_kind(self, permutation: Tensor, generator: torch.Generator) -> Tensor:
        """Whole steps of one kind in a random order, then what is left over."""
        assert self.kinds is not None
        steps, left = [], []
        for kind in self.kinds.unique():
            members = permutation[self.kinds[permutation] == kind]
            whole = len(members) // self.global_batch * self.global_batch
            steps.append(members[:whole].view(-1, self.global_batch))  # (steps, samples)
            left.append(members[whole:])
        ordered = torch.cat(steps)
        rest = torch.cat(left)
        rest = rest[torch.randperm(len(rest), generator=generator)]
        return torch.cat((ordered[torch.randperm(len(ordered), generator=generator)].flatten(), rest))

    def from_place(self, place: Place) -> Iterator[int]:
        """The index of a place, then those that follow it in the order of its epoch, round to the place before it."""
        yield place.index
        indices = self.indices(place.epoch)
        for further in range(1, self.length):
            yield int(indices[(place.position + further) % self.length])


class TrainingBatches(Sampler[list[Place]]):
    """The places of one process's micro-batches, from one step of the optimizer to another, across epochs."""

    def __init__(
        self, order: EpochOrder, batch_size: int, first_step: int, last_step: int, process: int = 0, processes: int = 1
    ) -> None:
        self.order, self.batch_size = order, batch_size
        self.first_step, self.last_step = first_step, last_step
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[Place]]:
        joint = self.batch_size * self.processes
        for step in range(self.first_step, self.last_step):
            epoch, step_of_epoch = divmod(step, self.order.steps_per_epoch)
            indices = self.order.indices(epoch)
            first = step_of_epoch * self.order.global_batch
            for start in range(first, first + self.order.global_batch, joint):
                positions = range(start + self.process, start + joint, self.processes)
                yield [Place(epoch, position, int(indices[position])) for position in positions]


class EvaluationShare(Sampler[tuple[int, bool]]):
    """One process's share of the data set: index, and whether it counts.

    All processes take equally many, because sharded models compute together; what the last ones have too much does not
    count, so that each sample counts exactly once.
    """

    def __init__(self, length: int, process: int = 0, processes: int = 1) -> None:
        self.length, self.process, self.processes = length, process, processes

    def __len__(self) -> int:
        return -(-self.length // self.processes)

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        for index in range(self.process, len(self) * self.processes, self.processes):
            yield index % self.length, index < self.length
