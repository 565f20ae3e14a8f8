"""ONNX Runtime, loaded as m2kit wants it: silent, on the terminal and elsewhere."""

from __future__ import annotations

import os
from types import ModuleType

from m2kit.errors import require


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
