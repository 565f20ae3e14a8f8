"""How every run begins: its processes meet, find what they train on, and open the run's folder.

They meet first, so that a mistake in the data is told once, and so that all of them train by the
settings of the first one, whatever they were called with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lightning.fabric import Fabric

from m2kit.progress import Begin, silent
from m2kit.training.recipes.loop import Tell
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.processes import in_every_process, together
from m2kit.training.recipes.run_folder import RESUME_FILE, Settings, check_run, open_run

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Begun(Generic[Settings, Found]):
    """A run that is to be trained.

    Attributes:
        settings: Of the run, which a resume may have changed.
        found: What the process trains on.
        fabric: Launched.
        first: This is the process that reads, writes and speaks for all.
        resume_from: The file to go on from, if any; in every process.
        begin: Shows how far it is, in the first process.
        tell: Called with lines, in the first process.
    """

    settings: Settings
    found: Found
    fabric: Fabric
    first: bool
    resume_from: Path | None
    begin: Begin
    tell: Tell


@contextlib.contextmanager
def begun(
    settings: Settings,
    folder: Path,
    machine: Machine,
    find: Callable[[Settings, Begin], Found],
    *,
    files: tuple[str, ...],
    resume: bool,
    begin: Begin,
    tell: Tell,
) -> Iterator[Begun[Settings, Found]]:
    """Begins a run, and holds its folder until the block ends.

    Args:
        settings: What was asked for.
        folder: The run folder.
        machine: Where to train.
        find: Gives what a process trains on; called in each.
        files: Names of the files that the run leaves in the official layout.
        resume: Go on with the run in the folder.
        begin: Shows how far it is.
        tell: Called with what resuming changes.

    Raises:
        InputError: The machine or the folder cannot be had, or the batch cannot be divided.
        FolderError: The folder cannot be written.
        M2KitError: `find` raised one, in any process; or memory or a connection is lost.
    """
    fabric = machine.fabric()
    first = fabric.is_global_zero
    if not first:
        begin, tell = silent, lambda text: None
    machine.division(settings.batch, fabric)
    if first:
        check_run(folder, settings, resume, *files)
    with (
        together(fabric, settings, folder / RESUME_FILE) as asked,
        contextlib.ExitStack() as stack,
    ):
        found = in_every_process(fabric, lambda: find(asked, begin))
        run = open_run(folder, asked, resume, tell, first=first)
        settings, resume_from = fabric.broadcast(
            in_every_process(fabric, lambda: stack.enter_context(run))
        )
        yield Begun(settings, found, fabric, first, resume_from, begin, tell)
