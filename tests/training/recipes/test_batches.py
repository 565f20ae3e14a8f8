import pytest
import torch

from m2kit.errors import InputError
from m2kit.training.recipes.batches import EpochShuffle, shuffled


def test_every_epoch_has_its_own_order_that_a_resume_repeats():
    order = EpochShuffle(50, seed=1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    again = EpochShuffle(50, seed=1)
    again.set_epoch(1)
    assert list(again) == second


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="a batch of 9 is more than the 8 training images"):
        shuffled(torch.zeros(8), batch=9, seed=0)
