"""This process's batches, of images that are known by their number or come as a stream.

Images are a sequence of examples. Those of a stream have its `rows`, and `example(row, number)`. `prepare(example)`
makes a sample, or raises a `BadImageError`; its random numbers are PyTorch's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import datasets
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor
from torch.utils.data import default_collate

from ..arguments import DataArguments, RunArguments
from .samples import EvaluationSamples, Merge, Sample, StreamedSamples, TrainingSamples, in_step, loader
from .sampling import EpochOrder, EvaluationShare, TrainingBatches
from .sources import shuffled_share, split_dataset_by_node

logger = get_logger(__name__)

Prepare = Callable[[Any], Sample]


@dataclass(frozen=True)
class Feed:
    """What all batches of a run have in common.

    Args:
        merge: makes a batch of samples.
    """

    accelerator: Accelerator
    data: DataArguments
    run: RunArguments
    seed: int
    merge: Merge = default_collate

    @property
    def global_batch(self) -> int:
        """Images of one step of the optimizer, over all processes."""
        run = self.run
        return self.accelerator.num_processes * run.per_device_train_batch_size * run.gradient_accumulation_steps

    def order(self, images: Any, copies: int = 1, kinds: Tensor | None = None) -> EpochOrder | None:
        """The order of training; None of a stream, which has the order of its shards, shuffled."""
        if is_stream(images):
            if copies > 1:
                logger.warning("a stream has no repeated augmentation: every image comes once per epoch")
            return None
        return EpochOrder(len(images), self.global_batch, self.seed, copies, kinds)

    def identity(self) -> dict[str, Any]:
        """What makes the order of the data, beside the flags."""
        if not self.data.streaming:
            return {"global_batch": self.global_batch}
        return {
            "num_processes": self.accelerator.num_processes,
            "per_device_train_batch_size": self.run.per_device_train_batch_size,
            "gradient_accumulation_steps": self.run.gradient_accumulation_steps,
            "dataloader_num_workers": self.run.dataloader_num_workers,
        }

    def training(
        self, images: Any, prepare: Prepare, order: EpochOrder | None, total_steps: int
    ) -> Callable[[int], Iterable[Sample]]:
        """A function of the step to begin with. A stream is read again from its start, and what was seen is dropped."""
        return partial(self._stream, images, prepare) if order is None else partial(
            self._ordered, images, prepare, order, total_steps
        )  # fmt: skip

    def _ordered(
        self, images: Any, prepare: Prepare, order: EpochOrder, total_steps: int, first_step: int
    ) -> Iterable[Sample]:
        samples = TrainingSamples(partial(_by_number, images, prepare), order, self.data.on_bad_image)
        batch = self.run.per_device_train_batch_size
        share = TrainingBatches(order, batch, first_step, total_steps, *self._place())
        return loader(samples, self.workers, self.merge, batch_sampler=share)

    def _stream(self, images: Any, prepare: Prepare, first_step: int) -> Iterable[Sample]:
        process, processes = self._place()
        rows = shuffled_share(images.rows, self.seed, self.data.shuffle_buffer, process, processes)
        load = partial(_by_row, images, prepare)
        samples = StreamedSamples(rows, load, self.data.on_bad_image, self.seed, process, forever=True)
        workers = min(self.workers, rows.num_shards)
        size = self.run.per_device_train_batch_size
        batches = loader(samples, workers, self.merge, batch_size=size, drop_last=True)
        return islice(batches, first_step * self.run.gradient_accumulation_steps, None)

    def evaluation(self, images: Any, prepare: Prepare) -> Iterable[Sample] | None:
        """This process's share, each time anew; None without images."""
        if images is None:
            logger.warning(
                "there is no validation data, so nothing will be measured; for scores give --train_val_split 0.1, or "
                "validation data of its own"
            )
            return None
        batch = self.run.per_device_eval_batch_size or self.run.per_device_train_batch_size
        if is_stream(images):
            return _StreamedEvaluation(self, images, prepare, batch)
        samples = EvaluationSamples(partial(_by_number, images, prepare), len(images), self.data.on_bad_image)
        share = EvaluationShare(len(images), *self._place())
        return loader(samples, self.workers, self.merge, sampler=share, batch_size=batch)

    @property
    def workers(self) -> int:
        """Processes that read images; the launch sets the default."""
        assert self.run.dataloader_num_workers is not None
        return self.run.dataloader_num_workers

    def _place(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes


@dataclass(frozen=True)
class _StreamedEvaluation:
    feed: Feed
    images: Any
    prepare: Prepare
    batch_size: int

    def __iter__(self) -> Any:
        feed = self.feed
        rows = split_dataset_by_node(self.images.rows, *feed._place())
        samples = StreamedSamples(rows, partial(_by_row, self.images, self.prepare), feed.data.on_bad_image)
        workers = min(feed.workers, rows.num_shards)
        return in_step(loader(samples, workers, feed.merge, batch_size=self.batch_size), feed.accelerator)


def is_stream(images: Any) -> bool:
    return isinstance(getattr(images, "rows", None), datasets.IterableDataset)


def _by_number(images: Any, prepare: Prepare, number: int) -> Sample:
    return prepare(images[number])


def _by_row(images: Any, prepare: Prepare, row: dict[str, Any], number: int) -> Sample:
    return prepare(images.example(row, number))
