"""Files of others as input: regular ones alone, since a pipe or a device may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from m2kit.errors import InputError


def open_input(path: Path, what: str) -> BinaryIO:
    """The opened file, for reading; it never waits.

    Args:
        path: Of the file; a link is followed.
        what: What it should be, such as "token file".

    Raises:
        InputError: No such file, no regular one, or none that may be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such {what}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read this {what}: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise InputError(f"{path}: expected a regular file, the {what}, found {found}")
    return os.fdopen(descriptor, "rb")
