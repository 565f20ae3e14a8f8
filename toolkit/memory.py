"""Memory: what the system has left, and what this process freed but kept."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_MEMORY_FILE = Path("/proc/meminfo")
_STATUS_FILE = Path("/proc/self/status")


def available_bytes() -> int | None:
    """Memory and swap that a new process can have, None where the system does not tell."""
    try:
        text = _MEMORY_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.findall(r"^(?:MemAvailable|SwapFree): +(\d+) kB", text, flags=re.MULTILINE)
    return 1024 * sum(map(int, found)) if found else None


def resident_bytes() -> int | None:
    """Memory this process has resident, None where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """The most memory this process has had resident, None where the system does not tell."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        text = _STATUS_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", text, flags=re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None


def release_freed_memory() -> None:
    """Have the C library give freed memory back: glibc keeps gigabytes of freed weights otherwise.

    Does nothing where the C library has no malloc_trim.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
