"""Order: every sample once per epoch, the same for any number of processes, and from any step on."""

import pytest
import torch

from hf_pvt.training.data.sampling import (
    EpochOrder,
    EvaluationShare,
    Place,
    Purpose,
    TrainingBatches,
    derived_seed,
    seeded,
)

LENGTH, GLOBAL_BATCH, SEED = 53, 12, 7


def order(copies: int = 1, length: int = LENGTH) -> EpochOrder:
    return EpochOrder(length, GLOBAL_BATCH, SEED, copies)


def places(batch_size: int, process: int = 0, processes: int = 1, first: int = 0, copies: int = 1) -> list[list[Place]]:
    return list(TrainingBatches(order(copies), batch_size, first, 9, process, processes))


def flat(batches: list[list[Place]]) -> list[Place]:
    return [place for batch in batches for place in batch]


def test_an_epoch_takes_each_sample_once_and_drops_what_is_left_over() -> None:
    seen = flat(places(batch_size=12))
    epochs = [[place.index for place in seen if place.epoch == epoch] for epoch in (0, 1)]
    for epoch in epochs:
        assert len(epoch) == 48 and len(set(epoch)) == 48 and set(epoch) <= set(range(LENGTH))
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])  # others are left over
    assert [place.position for place in seen[:48]] == list(range(48))
    assert [place.epoch for place in seen[96:]] == [2] * 12  # the ninth step


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 3), (4, 3)])
def test_processes_share_what_one_process_takes(processes: int, batch_size: int) -> None:
    """Each step's samples, and each sample's place, are those of one process with the joint batch."""
    shares = [places(batch_size, process, processes) for process in range(processes)]
    per_step = GLOBAL_BATCH // (processes * batch_size)
    for step, joint in enumerate(places(batch_size=12)):
        dealt = [flat(share[step * per_step : (step + 1) * per_step]) for share in shares]
        assert sorted(flat(dealt)) == sorted(joint)
    assert all(len(batch) == batch_size for share in shares for batch in share)


def test_a_run_continues_in_the_middle_of_an_epoch() -> None:
    assert places(batch_size=3, process=1, processes=2, first=6) == places(batch_size=3, process=1, processes=2)[12:]


def test_repeated_augmentation_under_two_processes() -> None:
    """Three copies in a row, dealt in turn, each at its own place; as many samples as without, of a third the images.

    As DeiT's sampler: rank r takes every second of [i0, i0, i0, i1, i1, i1, ...].
    """
    permutation = order().indices(0)
    listed = [int(index) for index in permutation for _ in range(3)][:48]
    for process in (0, 1):
        share = [place for place in flat(places(6, process, processes=2, copies=3)) if place.epoch == 0]
        assert [place.index for place in share] == listed[process::2]
        assert [place.position for place in share] == list(range(process, 48, 2))
    first, second = (places(6, process, processes=2, copies=3)[0] for process in (0, 1))
    # Each image has copies in both processes.
    assert {place.index for place in first} == {place.index for place in second} and len(set(listed)) == 16
    assert len({place.position for place in first + second}) == 12


def test_what_follows_a_place() -> None:
    """What takes the place of a bad image: the next in the order, once round, itself first."""
    indices = order().indices(2).tolist()
    following = list(order().from_place(Place(2, 50, indices[50])))
    assert following == indices[50:] + indices[:50]


def test_too_little_data() -> None:
    with pytest.raises(ValueError, match=r"has 11 samples, fewer than one step takes \(12 = "):
        order(length=11)


@pytest.mark.parametrize(("length", "processes"), [(201, 2), (8, 4), (1, 3)])
def test_evaluation_counts_each_sample_once(length: int, processes: int) -> None:
    shares = [list(EvaluationShare(length, process, processes)) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1  # sharded models compute together
    assert sorted(index for share in shares for index, counts in share if counts) == list(range(length))
    assert all(0 <= index < length for share in shares for index, _ in share)


def test_seeds_belong_to_their_place() -> None:
    coordinates = [(p, e, i) for p in Purpose for e in range(5) for i in range(20)]
    seeds = {derived_seed(SEED, *place) for place in coordinates} | {derived_seed(8, *place) for place in coordinates}
    seeds |= {derived_seed(SEED, purpose) for purpose in Purpose}
    # A trailing zero coordinate is no coordinate: purposes that differ keep them apart.
    assert len(seeds) == 2 * len(coordinates)


def test_a_place_s_numbers_leave_no_trace() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    with seeded(SEED, Purpose.SAMPLE, 1, 2):
        drawn = torch.rand(3)
    torch.testing.assert_close(torch.cat((first, torch.rand(1))), expected, rtol=0, atol=0)
    with seeded(SEED, Purpose.SAMPLE, 1, 2):
        assert torch.rand(3).equal(drawn)
    with seeded(SEED, Purpose.SAMPLE, 1, 3):
        assert not torch.rand(3).equal(drawn)
