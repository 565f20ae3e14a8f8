"""The folder of a run: settings.json, metrics.csv, tensorboard/, resume.ckpt, best.ckpt where a
model is chosen by a held-out measure, samples.png; and at the end the checkpoint in the official
layout, curves.png and report.html.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from m2kit.errors import FolderError, InputError, M2KitError
from m2kit.outputs import check_output_file, check_output_folder, held, new_file
from m2kit.records import BadRecord, JsonObject, read_json, read_record, to_json
from m2kit.training.recipes.settings import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)
SETTINGS_FILE = "settings.json"
METRICS_FILE = "metrics.csv"
RESUME_FILE = "resume.ckpt"
BEST_FILE = "best.ckpt"
CURVES_FILE = "curves.png"
SAMPLES_FILE = "samples.png"
REPORT_FILE = "report.html"
TOKENIZER_FILES = "tokenizer.pt", "tokenizer.train.pt"  # the released one, and with the losses
AR_FILE = "ar.pt"
_OUT_OF_MEMORY = ("allocate memory", "out of memory")  # in torch's errors, of a CPU and of a GPU


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a run; each recipe adds its measures.

    Attributes:
        data: What it was trained on, in words.
        settings: The run's record of settings.
    """

    data: str
    settings: Any

    def to_json(self) -> JsonObject:
        """As the checkpoint notes it: one level, the measures before the settings."""
        values = to_json(self)
        settings = values.pop("settings")
        del settings["data"]  # its name; the words are noted
        return {**values, **settings}


def check_run_folder(folder: Path, *checkpoint_files: str) -> None:
    """Refuse a run folder that cannot be written, or that has what a new run would write over,
    before any work is spent on it.

    Args:
        folder: The folder.
        checkpoint_files: Names of the files that the run leaves in the official layout.

    Raises:
        FolderError: It is no folder, what stands in the place of one of its files is no file, or
            there are files of a run and no settings.json to go on with.
    """
    check_output_folder(folder)
    own = (SETTINGS_FILE, METRICS_FILE, CURVES_FILE, SAMPLES_FILE, REPORT_FILE)
    for name in (*own, *checkpoint_files):
        check_output_file(folder / name)
    if not (folder / SETTINGS_FILE).exists():
        made = (*checkpoint_files, REPORT_FILE, CURVES_FILE, SAMPLES_FILE, RESUME_FILE, BEST_FILE)
        there = [name for name in made if os.path.lexists(folder / name)]
        if there:
            raise FolderError(
                f"{folder} holds {', '.join(there)} and no {SETTINGS_FILE}: nothing to go on with, "
                "and a run would write over it; move it away, or choose another folder",
                option="-o",
            )


def check_run(
    folder: Path, settings: Settings | None, resume: bool, *checkpoint_files: str
) -> None:
    """Refuse what `check_run_folder` and `open_run` would, and leave the folder as it is.

    Args:
        folder: The folder.
        settings: What was asked for; None is not known yet, and not compared.
        resume: Go on with the run that the folder holds.
        checkpoint_files: Names of the files that the run leaves in the official layout.

    Raises:
        InputError: The folder holds a run and `resume` was not asked for, or other settings or
            none, or another process trains in it.
        FolderError: As `check_run_folder`.
    """
    check_run_folder(folder, *checkpoint_files)
    _check_resume(folder, resume)
    if folder.exists():
        with _alone(folder):
            _check_new(folder, resume)
            if resume and settings is not None:
                _gone_on(folder / SETTINGS_FILE, settings, lambda text: None)


def _check_resume(folder: Path, resume: bool) -> None:
    if resume and not (folder / SETTINGS_FILE).is_file():
        raise InputError(f"{folder} holds no run to resume; start one without resuming")


def _check_new(folder: Path, resume: bool) -> None:
    if not resume and (folder / SETTINGS_FILE).is_file():
        raise InputError(
            f"{folder} already holds a training run; resume it, or choose another folder",
            option="--resume, -o",
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a run folder."""
    with held(folder) as free:
        if not free:
            raise InputError(
                f"another process trains in {folder}; wait until it ends, or choose another folder",
                option="-o",
            )
        yield


@contextlib.contextmanager
def open_run(
    folder: Path, settings: Settings, resume: bool, tell: Callable[[str], None], *, first: bool
) -> Iterator[tuple[Settings, Path | None]]:
    """Holds a run folder, so that no other run trains in it.

    Args:
        folder: The folder.
        settings: What was asked for.
        resume: Go on with the run that the folder holds; it may be given more epochs or steps.
        tell: Called with what more of them change.
        first: This is the run's first process, which holds the folder for all of them; the others
            leave it alone.

    Yields:
        The run's settings, and the file to resume from, if any: in the first process.

    Raises:
        InputError: The folder holds a run and `resume` was not asked for, or other settings, or
            another process trains in it.
        FolderError: The folder cannot be written.
        M2KitError: The block ran out of memory.
    """
    stored = folder / SETTINGS_FILE
    if not first:
        with _memory_told():
            yield settings, None
        return
    _check_resume(folder, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"cannot write {folder}: {error.strerror}; choose another folder", option="-o"
        ) from error
    with _alone(folder):
        _check_new(folder, resume)
        if resume:
            settings = _gone_on(stored, settings, tell)
        begins = not stored.is_file()
        checkpoint = folder / RESUME_FILE
        try:
            with new_file(stored) as path:
                path.write_text(json.dumps(to_json(settings), indent=1) + "\n", encoding="utf-8")
            with _memory_told():
                yield settings, checkpoint if resume and checkpoint.exists() else None
        except BaseException as error:
            if begins and not checkpoint.exists():  # nothing to go on with: the folder stays free
                for name in (SETTINGS_FILE, SAMPLES_FILE, BEST_FILE):
                    (folder / name).unlink(missing_ok=True)
            if isinstance(error, FolderError) and isinstance(error.__cause__, OSError):
                raise _with_way_on(error, error.__cause__, checkpoint) from error
            raise


def _with_way_on(error: FolderError, cause: OSError, checkpoint: Path) -> FolderError:
    """The error of a file of a run that could not be written, which says where the run is now."""
    what = str(error).partition("; ")[0]  # without its advice, which is on a file alone
    space = "free some space and " if cause.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if checkpoint.exists():
        return FolderError(
            f"{what}; {checkpoint.parent} holds the run as it was last saved: {space}resume it",
            option="--resume",
        )
    return FolderError(
        f"{what}; nothing of the run was saved: {space}start again, or choose another folder",
        option="-o",
    )


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """Turns a lack of memory into a line."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise M2KitError(
            "out of memory; close other programs, or train a smaller model or with a smaller "
            "batch, in another folder",
            option="--batch, -o",
        ) from error


def _gone_on(stored: Path, wanted: Settings, tell: Callable[[str], None]) -> Settings:
    """The settings of a run that goes on: its own, but for more epochs."""
    try:
        found = read_record(type(wanted), read_json(stored))
    except (BadRecord, OSError) as error:
        raise InputError(
            f"{stored} holds no settings of such a run ({error}); choose another folder",
            option="-o",
        ) from error
    planned, more = found.planned_length, wanted.length > found.length
    if wanted.schedule_length is None and planned != wanted.length:
        wanted = replace(wanted, schedule_length=planned)
    own, asked = (
        {**to_json(settings), "schedule_length": settings.planned_length}
        for settings in (found, wanted)
    )
    grown = {"steps" if wanted.steps else "epochs"} if more else set()
    changed = {name for name in {*own, *asked} if own.get(name) != asked.get(name)} - grown
    if changed:
        raise InputError(
            f"{stored.parent} was started with other settings: "
            + ", ".join(f"{n} {own.get(n)} (now {asked.get(n)})" for n in sorted(changed))
            + "; repeat them, or choose another folder",
            option="-o",
        )
    if more:
        unit = "step" if wanted.steps else "epoch"
        tell(
            f"going on to {wanted.length} {unit}s in place of {found.length}: the learning rate "
            f"reaches its lowest in {unit} {planned}, as planned, and stays there"
        )
    return wanted
