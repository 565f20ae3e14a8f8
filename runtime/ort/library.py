"""ONNX Runtime, loaded as m2kit wants it: silent, on the terminal and elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from m2kit.errors import FolderError, require


def load_onnxruntime(what: str = "the onnxruntime backend") -> ModuleType:
    """The module, with its telemetry off: from 1.32 on, sessions otherwise look up a host of its
    maker and write a database into the user's cache.

    It reads the switch when it is imported, so a program that imports onnxruntime before it uses
    m2kit sets ORT_DISABLE_TELEMETRY=1 itself; one that sets 0 keeps its telemetry.

    Raises:
        BackendError: Not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    ort = require("onnxruntime", extra="cpu", what=what)
    ort.set_default_logger_severity(4)  # errors come as exceptions; no second voice
    return ort


def path_text(path: Path) -> str:
    """A path as ONNX Runtime takes it: as UTF-8, whatever Python's own encoding of paths is.

    Raises:
        FolderError: It is not UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FolderError(
            f"{path}: ONNX Runtime opens no path that is not UTF-8; rename it"
        ) from error
