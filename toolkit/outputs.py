"""Outputs: files and folders that appear whole or not at all, beside files of others.

What is written has a random name with a mark nobody else uses, and the writer holds a lock on it
for as long as it lives (flock, which processes of other containers and users see too). It is
flushed and renamed when complete. What has the mark and no holder was left by a killed run: the
next one in that folder removes it, where it may. Where a file system has no locks, it stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from m2kit.errors import FolderError

_MARKED = re.compile(r"\.(.*)\.m2kit-[0-9a-f]{32}(|\.[^.]+)", re.DOTALL)
_OLD = ".replaced"  # ends the name of a folder that is being replaced
_STEM_BYTES = 100  # of a destination's name that its temporary name shows
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)


def check_output(path: Path, *suffixes: str) -> None:
    """Refuse an output file before any work is spent on it: its name ends in one of the suffixes,
    in upper or lower case.

    Raises:
        FolderError: The wrong kind of name, or `check_output_file` refuses it.
    """
    if path.suffix.lower() not in suffixes:
        raise FolderError(
            f"{path}: expected an output name ending in {', '.join(suffixes)}; choose another"
        )
    check_output_file(path)


def check_output_file(path: Path) -> None:
    """Refuse an output file of any name before any work is spent on it.

    Raises:
        FolderError: A folder, no regular file, or nothing that can be written.
    """
    if os.path.isdir(path):
        raise FolderError(f"{path} is a folder, expected a file name; choose another")
    if os.path.exists(path) and not os.path.isfile(path):
        raise FolderError(f"{path} is no regular file; choose another output")
    _check_parent(Path(os.path.realpath(path)))


def check_output_folder(path: Path) -> None:
    """Refuse a folder to write files into before any work is spent on it.

    Raises:
        FolderError: No folder, or nothing that can be written.
    """
    if os.path.lexists(path) and not os.path.isdir(path):
        raise FolderError(f"{path} is no folder, expected one to write into; choose another output")
    folder = Path(os.path.realpath(path))
    _check_parent(folder / "file", told=folder)


def check_new_folder(destination: Path, check: Callable[[Path], None]) -> None:
    """Refuse what `new_folder` would, before any work is spent on it.

    Raises:
        FolderError: `destination` may not be replaced, or its parent cannot be written.
    """
    destination = Path(os.path.realpath(destination))
    if os.path.lexists(destination):
        check(destination)
    _check_parent(destination)


def _check_parent(path: Path, told: Path | None = None) -> None:
    """Whether a path can be made: in the nearest folder that is there. `told` is what a message
    calls it."""
    parent = next(p for p in path.parents if os.path.exists(p))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise FolderError(
            f"cannot write {told or path}: {parent} is not a writable folder; choose another output"
        )
    longest = max(len(os.fsencode(part)) for part in path.relative_to(parent).parts)
    most = os.pathconf(parent, "PC_NAME_MAX")
    if longest > most:
        raise FolderError(
            f"cannot write {str(path)[:100]}...: expected names of {most} bytes at most, found one "
            f"of {longest}; choose another output"
        )


@contextlib.contextmanager
def new_folder(destination: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block ends without an error.

    Args:
        destination: Where the folder shall be; a link is written through.
        check: Called with what is there already, if anything is; raises FolderError unless that
            may be replaced. It is asked again at the end.

    Raises:
        FolderError: `destination` may not be replaced, or its parent cannot be written.
    """
    destination = Path(os.path.realpath(destination))
    if os.path.lexists(destination):
        check(destination)
    with _written(destination) as stack:
        temporary = stack.enter_context(_temporary(destination, "", Path.mkdir))
        yield temporary
        _flush(temporary)
        if os.path.lexists(destination):
            check(destination)
            _exchange(temporary, destination)
        else:
            temporary.rename(destination)


@contextlib.contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """A temporary, empty file that becomes `destination` when the block ends without an error.

    Args:
        destination: Where the file shall be; a link is written through.

    Raises:
        FolderError: It cannot be written there, or is no regular file: a device, say, must not be
            replaced through a link.
    """
    suffix = destination.suffix
    destination = Path(os.path.realpath(destination))
    if os.path.lexists(destination) and not destination.is_file():
        raise FolderError(f"{destination} is no regular file; choose another output")
    with _written(destination) as stack:
        temporary = stack.enter_context(_temporary(destination, suffix, _touch))
        yield temporary
        _flush(temporary)
        temporary.replace(destination)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Holds the lock of a file or folder until the block or the process ends; False where another
    process holds it."""
    descriptor = _hold(Path(os.path.realpath(path)))
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def _written(destination: Path) -> Iterator[contextlib.ExitStack]:
    """Makes the parent; tells a failure of the system as one line."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(destination.parent)
        with contextlib.ExitStack() as stack:
            yield stack
    except OSError as error:
        cure = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise FolderError(
            f"cannot write {destination}: {error.strerror or error}; nothing was left behind; "
            f"{cure}choose another output"
        ) from error


@contextlib.contextmanager
def _temporary(destination: Path, suffix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Makes a marked path beside `destination` and holds its lock; what is left of it goes."""
    stem = os.fsdecode(os.fsencode(destination.name.removesuffix(suffix))[:_STEM_BYTES])
    path = descriptor = None
    try:  # from before it is there: a signal may end the process at any time
        while descriptor is None:  # another run's cleaning may have come in between
            path = destination.parent / f".{stem}.m2kit-{secrets.token_hex(16)}{suffix}"
            make(path)
            descriptor = _hold(path)
        assert path is not None
        yield path
    finally:
        if path is not None:
            _remove(path)
        if descriptor is not None:
            os.close(descriptor)


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


def _hold(path: Path) -> int | None:
    """A descriptor that holds the lock of a path; None where it is gone or another's.

    Where the file system has no locks it holds nothing, and nobody else can either.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor
    if not os.path.lexists(path):
        os.close(descriptor)
        return None
    return descriptor


def is_leftover(name: str) -> bool:
    """Whether a name is one that only unfinished or killed runs of m2kit use."""
    return _MARKED.fullmatch(name) is not None


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove what dead runs left in a folder, where that is possible; once, since it may hold many
    files."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = _MARKED.fullmatch(name)
            if found:
                with contextlib.suppress(OSError):
                    _remove_leftover(folder / name, found)


def _remove_leftover(path: Path, found: re.Match[str]) -> None:
    """Remove one, unless it has a holder."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        destination = path.parent / found.group(1)
        if found.group(2) == _OLD and not os.path.lexists(destination):
            path.rename(destination)  # killed between two renames: give the old one back
        else:
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or folder, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _exchange(temporary: Path, destination: Path) -> None:
    """Rename into place what replaces a folder; the old one is then `temporary`, and goes with it.

    In one step where the system can; in two where not, the old one moved aside and restored if
    the second fails.
    """
    new, old = os.fsencode(temporary), os.fsencode(destination)
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 and renameat2(_AT_FDCWD, new, _AT_FDCWD, old, _RENAME_EXCHANGE) == 0:
        return
    aside = destination.parent / f".{destination.name}.m2kit-{secrets.token_hex(16)}{_OLD}"
    holder = _hold(destination)  # so that no other run takes it for what a killed one left
    try:
        destination.rename(aside)
        try:
            temporary.rename(destination)
        except OSError:
            aside.rename(destination)
            raise
        _remove(aside)
    finally:
        if holder is not None:
            os.close(holder)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder and its files, to the disk."""
    for item in [*(path.iterdir() if path.is_dir() else ()), path]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
