"""Batches of examples, read in this process or by worker processes, whose errors are one line here
as well: torch would put the traceback of the worker into them."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from m2kit.errors import M2KitError


class _Caught(Dataset[Any]):
    """Examples by the batch, or the error of one of them."""

    def __init__(self, examples: Any) -> None:
        self._examples = examples

    def __getitems__(self, numbers: list[int]) -> Any:
        try:
            return default_collate([self._examples[number] for number in numbers])
        except M2KitError as error:
            return error


@contextlib.contextmanager
def loaded(
    examples: Any, batches: Iterable[list[int]], workers: int
) -> Iterator[Generator[Any, None, None]]:
    """Opens the batches, in their order; leaving it ends the workers.

    Args:
        examples: A data set.
        batches: Item numbers of each batch.
        workers: Processes that read; 0 reads here.

    Raises:
        M2KitError: An example cannot be made, or a worker ended.
    """
    try:
        with contextlib.closing(_each(_Caught(examples), batches, workers)) as found:
            yield found
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _ended(error) from error


def _each(
    examples: _Caught, batches: Iterable[list[int]], workers: int
) -> Generator[Any, None, None]:
    with warnings.catch_warnings():  # torch warns where there are more workers than cores
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = iter(
            DataLoader(
                examples,
                batch_sampler=batches,
                num_workers=workers,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_signals,
                generator=torch.Generator(),  # or it would draw from the one of the steps
            )
        )
    try:
        for batch in loader:
            if isinstance(batch, M2KitError):
                raise batch
            yield batch
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # it ended as it sent a batch
        if not workers:
            raise
        raise _ended(error) from error
    finally:
        # tracebacks may keep it, and its signal handler raises wherever this process is
        if workers:
            loader._shutdown_workers()  # type: ignore[attr-defined]


def _as_it_is(batch: Any) -> Any:
    return batch


def _ended(error: Exception) -> M2KitError:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
    return M2KitError(
        f"a process that reads pictures ended ({reason}); use fewer of them, or give them more "
        "memory",
        option="--workers",
    )


def _leave_signals(_worker: int) -> None:
    """Ctrl-C and a system that shuts down signal workers, too, when the run they read for wants to
    end its step; they end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
