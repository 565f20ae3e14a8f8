from collections import Counter

import pytest

from m2kit.errors import InputError
from m2kit.training.recipes.batches import HeldOutBatches, TrainingBatches
from m2kit.training.recipes.division import Division, check_batch


def indices(batches, examples):
    return [number % examples for batch in batches for number in batch]


def test_every_example_is_seen_once_an_epoch_though_batches_straddle_epochs():
    numbers = [n for b in TrainingBatches(50, Division(8), range(25), seed=1) for n in b]
    epochs = [[n % 50 for n in numbers if n // 50 == epoch] for epoch in range(4)]
    assert len(numbers) == 200
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_run_goes_on_at_any_step_with_the_order_it_would_have_had():
    whole = list(TrainingBatches(50, Division(8), range(25), seed=1))
    assert list(TrainingBatches(50, Division(8), range(17, 25), seed=1)) == whole[17:]
    assert list(TrainingBatches(50, Division(8), range(25), seed=2)) != whole


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_parts_share_each_batch_without_duplicates_or_loss(processes, parts):
    whole = list(TrainingBatches(50, Division(8), range(25), seed=1))
    shares = [
        list(TrainingBatches(50, Division(8, parts, rank, processes), range(25), seed=1))
        for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        theirs = [share[step * parts + part] for share in shares for part in range(parts)]
        assert sorted(n for numbers in theirs for n in numbers) == sorted(batch)
    assert {len(share) for share in shares} == {25 * parts}


@pytest.mark.parametrize("examples", [1, 7, 16, 17])
def test_held_out_examples_are_counted_once_by_as_many_batches_in_each_process(examples):
    shares = [HeldOutBatches(examples, Division(8, 1, rank, 2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(list(shares[0]))
    counted = Counter()
    for share in shares:
        for index, batch in enumerate(share):
            assert len(batch) == 4
            counted.update(batch[: share.counted(index)])
    assert counted == dict.fromkeys(range(examples), 1)


def test_a_batch_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="a batch of 9 is more than the 8 training examples"):
        check_batch(9, 8)
    with pytest.raises(InputError, match="a batch of 9 cannot be divided among 2 processes"):
        Division(9, processes=2)
