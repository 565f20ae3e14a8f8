import os
import pickle
import signal
import time

import pytest
import torch
from doubles.tiny_recipe import Numbers

from m2kit.errors import InputError, M2KitError
from m2kit.training.recipes.loading import loaded

BATCHES = [[0, 1], [2, 3], [4, 5], [6, 7]]


class Odd(Numbers):
    """Examples of which the fifth does something in the process that reads it."""

    def __init__(self, does):
        super().__init__(8)
        self.does, self.reader = does, os.getpid()

    def __getitem__(self, number):
        if number == 4:
            self.does()
        return super().__getitem__(number)


def read_all(examples, workers):
    with loaded(examples, BATCHES, workers) as batches:
        return list(batches)


def test_batches_are_the_same_whoever_reads_them():
    here, there = (read_all(Numbers(8), workers) for workers in (0, 2))
    assert len(here) == len(there) == 4
    for mine, others in zip(here, there, strict=True):
        assert all(map(torch.equal, mine, others))


def refuse():
    raise InputError("expected a picture, found none", option="--data")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_one_line_whoever_reads(workers):
    with (
        pytest.raises(InputError) as refused,
        loaded(Odd(refuse), BATCHES, workers) as batches,
    ):
        assert len([next(batches), next(batches)]) == 2
        next(batches)
    assert str(refused.value) == "expected a picture, found none"
    assert refused.value.option == "--data"


def test_an_error_of_ours_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(InputError("a", option="--b")))
    assert (type(error), str(error), error.option) == (InputError, "a", "--b")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_the_system_killed_is_one_line(workers):
    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(M2KitError, match=r"a process that reads pictures ended \(") as told:
        read_all(Odd(killed), workers)
    assert "\n" not in str(told.value)
    assert told.value.option == "--workers"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_run_and_end_with_it(number):
    def signalled():
        os.kill(os.getpid(), number)

    assert len(read_all(Odd(signalled), 2)) == 4
    began = time.monotonic()
    with loaded(Odd(signalled), BATCHES * 100, 2) as batches:
        next(batches)
    assert time.monotonic() - began < 4  # or torch waits five seconds and kills them


def test_another_error_of_a_step_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"), loaded(Numbers(8), BATCHES, 0):
        raise RuntimeError("shapes do not fit")
