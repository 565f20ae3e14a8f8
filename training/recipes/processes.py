"""The processes of a run: each computes its share of every batch, and the first one reads, writes
and speaks for all. Lightning starts the others of one machine, by running the command once more for
each; torchrun starts those of several machines.

They end together. Where the first one ends, the system ends those that it started; where another
one does, the first one loses a connection, or Lightning, which looks every five seconds, ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.parallel import ParallelStrategy
from torch import Tensor, distributed

from m2kit.errors import M2KitError

Shared = TypeVar("Shared")
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LOST = ("connection", "gloo", "nccl", "process group", "socket")  # in torch's errors, lower case


def started_by_torchrun() -> tuple[int, int] | None:
    """Machines, and processes of each one, that torchrun has started; None where it has not."""
    if not distributed.is_torchelastic_launched():
        return None
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return int(os.environ["WORLD_SIZE"]) // here, here


def end_with_starter() -> None:
    """Let the system end this process with the one that has started it as one of several."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if "LOCAL_RANK" in os.environ and prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def together(fabric: Fabric, first: Shared, saved: Path) -> Iterator[Shared]:
    """Starts the other processes of a run, which end when this one does; afterwards this process
    may start those of another run.

    Args:
        fabric: Not launched yet.
        first: What the first process has.
        saved: The file to go on from, once there is one.

    Yields:
        That, in every process.

    Raises:
        M2KitError: The processes do not find each other, or another one has ended.
    """
    processes = f"the run's {fabric.world_size} processes"
    starts = fabric.world_size > 1 and "LOCAL_RANK" not in os.environ  # which it sets, and others
    before = dict(os.environ)
    try:
        with (
            silent_lightning(),  # nor does a run of one process say that it begins
            _of_connections(
                fabric,
                f"{processes} did not find each other",
                None,
            ),
        ):
            fabric.launch()
        with _of_connections(
            fabric,
            f"one of {processes} lost another one, which mostly has ended and says why if it could",
            saved,
        ):
            yield fabric.broadcast(first)
    finally:
        if isinstance(fabric.strategy, ParallelStrategy):
            started = getattr(fabric.strategy.launcher, "procs", [])
            started.clear()  # whom Lightning watches: nobody is missed any more
        if starts:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)


def in_every_process(fabric: Fabric, make: Callable[[], Shared]) -> Shared:
    """What a process makes for itself; where one of them cannot, all end, and the first one tells
    why.

    Raises:
        M2KitError: In the first process: `make` raised one, there or in another one.
        SystemExit: In the others.
    """
    made = error = None
    try:
        made = make()
    except M2KitError as caught:
        error = caught
    errors = gathered(fabric, error)
    rank = next((rank for rank, found in enumerate(errors) if found is not None), None)
    if rank is None:
        return cast("Shared", made)
    if not fabric.is_global_zero:
        raise SystemExit(1)
    if error is not None:
        raise error
    raise M2KitError(f"process {rank} of the run: {errors[rank]}", option=errors[rank].option)


@contextlib.contextmanager
def _of_connections(fabric: Fabric, message: str, saved: Path | None) -> Iterator[None]:
    """Makes one line of what torch raises where processes are not connected, which then go on from
    what is saved, or have not met yet."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        lost = isinstance(error, distributed.DistError)
        lost = lost or any(word in said.lower() for word in _LOST)
        if fabric.world_size == 1 or not lost:
            raise
        line = said.partition("\n")[0]
        if saved is None:
            cure = "see that all have been started and that each reaches the first one's machine"
        elif saved.exists():
            raise M2KitError(
                f"{message}: {line}; resume the run to go on with it", option="--resume"
            ) from error
        else:
            cure = "nothing of the run was saved, start it again"
        raise M2KitError(f"{message}: {line}; {cure}") from error


@contextlib.contextmanager
def silent_lightning() -> Iterator[None]:
    """Lightning tells neither precision nor device: m2kit does."""
    logs = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def over_processes(fabric: Fabric, value: Tensor) -> Tensor:
    """The sum of a value over all processes of a run."""
    if fabric.world_size == 1:
        return value
    summed = fabric.all_reduce(value.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """The values that all processes of a run have, which pickle takes."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        distributed.all_gather_object(values, value)
    return values


def mean_over_processes(fabric: Fabric, values: Mapping[str, float]) -> dict[str, float]:
    """The means of numbers that every process has one of."""
    if fabric.world_size == 1:
        return dict(values)
    own = torch.tensor(list(values.values()), dtype=torch.float64)
    means = over_processes(fabric, own) / fabric.world_size
    return dict(zip(values, means.tolist(), strict=True))
