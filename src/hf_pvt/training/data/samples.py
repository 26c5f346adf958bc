"""From an order, or a stream, to batches: bad images are an error, or replaced and listed.

A sample is a dictionary of tensors and numbers that become the batch's tensors. Here come beside it `bad` (file names
and reasons, for every batch) and, in evaluation, `counted` (B,): false where a sample only fills a place.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count, islice, repeat
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .decoding import BadImageError
from .sampling import EpochOrder, Place, Purpose, seeded

Sample = dict[str, Any]
Merge = Callable[[list[Sample]], Sample]  # samples -> one batch
OnBadImage = Literal["error", "skip"]

# So many unreadable files in a row are no accident.
TRIES = 100


class TrainingSamples(Dataset[Sample]):
    """The sample at a place of the order; `load(index)` draws its augmentation from PyTorch's CPU generator."""

    def __init__(self, load: Callable[[int], Sample], order: EpochOrder, on_bad_image: OnBadImage) -> None:
        self.load, self.order, self.on_bad_image = load, order, on_bad_image

    def __getitem__(self, place: Place) -> Sample:
        with seeded(self.order.seed, Purpose.SAMPLE, place.epoch, place.position):
            return first_readable(self.load, self.order.from_place(place), self.on_bad_image)


class EvaluationSamples(Dataset[Sample]):
    """The sample of an `EvaluationShare`; for a bad one the next stands in and does not count."""

    def __init__(self, load: Callable[[int], Sample], length: int, on_bad_image: OnBadImage) -> None:
        self.load, self.length, self.on_bad_image = load, length, on_bad_image

    def __getitem__(self, share: tuple[int, bool]) -> Sample:
        index, counts = share
        indices = ((index + further) % self.length for further in range(self.length))
        sample = first_readable(self.load, indices, self.on_bad_image)
        return sample | {"counted": counts and not sample["bad"]}


def first_readable(load: Callable[[int], Sample], indices: Iterable[int], on_bad_image: OnBadImage) -> Sample:
    """The first of `indices` that is no bad image, and the bad ones before it under `bad`."""
    bad: dict[str, str] = {}
    for index in islice(indices, TRIES):
        try:
            return load(index) | {"bad": bad}
        except BadImageError as error:
            if on_bad_image == "error":
                raise
            bad[error.file] = error.reason
    raise too_many(bad)


def too_many(bad: dict[str, str]) -> ValueError:
    return ValueError(f"{len(bad)} images in a row are bad, the first: {' '.join(next(iter(bad.items())))}.")


class StreamedSamples(IterableDataset[Sample]):
    """One process's part of a stream, split further over the workers.

    Args:
        stream: a `datasets.IterableDataset` that was split by process and, for training, shuffled.
        load: makes a sample of a row and of its number, which is for messages.
        forever: in training, epoch after epoch; in evaluation once, with `counted`.
    """

    def __init__(
        self,
        stream: Any,
        load: Callable[[dict[str, Any], int], Sample],
        on_bad_image: OnBadImage,
        seed: int = 0,
        process: int = 0,
        forever: bool = False,
    ) -> None:
        self.stream, self.load, self.on_bad_image = stream, load, on_bad_image
        self.seed, self.process, self.forever = seed, process, forever

    def __iter__(self) -> Iterator[Sample]:
        """Samples with `bad`, those before them; what remains at the end comes with a copy that does not count."""
        bad: dict[str, str] = {}
        last: Sample | None = None
        for epoch in count() if self.forever else range(1):
            self.stream.set_epoch(epoch)
            for item in self.epoch(epoch):
                if isinstance(item, BadImageError):
                    bad[item.file] = item.reason
                    continue
                last = item
                yield last | {"bad": bad, "counted": True}
                bad = {}
            if last is None:
                break  # nothing for this worker, and there never will be
        if bad and last is None:
            raise too_many(bad)
        if bad:
            yield last | {"bad": bad, "counted": False}  # type: ignore[operator]

    def epoch(self, epoch: int) -> Iterator[Sample | BadImageError]:
        """All rows once."""
        worker = get_worker_info()
        for number, row in enumerate(self.stream):
            try:
                with seeded(self.seed, Purpose.SAMPLE, epoch, self.process, worker.id if worker else 0, number):
                    sample = self.load(row, number)
            except BadImageError as error:
                if self.on_bad_image == "error":
                    raise
                yield error
            else:
                yield sample


def loader(samples: Dataset[Sample], workers: int, merge: Merge, **settings: Any) -> DataLoader:
    """Batches of samples; `settings` are those of PyTorch's DataLoader."""
    together = partial(collate, merge)
    return DataLoader(
        samples, num_workers=workers, collate_fn=together, pin_memory=torch.cuda.is_available(), **settings
    )


def collate(merge: Merge, samples: list[Sample]) -> Sample:
    """One batch; `bad` is the list of all."""
    bad = {file: reason for sample in samples for file, reason in sample["bad"].items()}
    return merge([{k: v for k, v in sample.items() if k != "bad"} for sample in samples]) | {"bad": bad}


def in_step(batches: Iterable[Sample], accelerator: Accelerator) -> Iterator[Sample]:
    """As many batches for every process: those whose stream has ended repeat their last, which does not count."""
    last: Sample | None = None
    for batch in chain(batches, repeat(None)):
        have_more = accelerator.reduce(torch.tensor(float(batch is not None), device=accelerator.device), "sum")
        if not have_more:
            return
        if batch is None and last is None:
            raise ValueError(f"the stream has no sample for process {accelerator.process_index}; use fewer processes.")
        if batch is None:
            batch = last | {"counted": torch.zeros_like(last["counted"]), "bad": {}}  # type: ignore[operator, index]
        last = batch
        yield batch
