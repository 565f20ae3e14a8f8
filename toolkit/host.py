"""The host: the cores this process may use, the memory the system has left, what this process freed
but kept, and which one of a run's processes it is.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import re
from pathlib import Path

from m2kit.errors import InputError
from m2kit.records import is_integer

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time in each period
_INFO = Path("/proc/cpuinfo")

_MEMORY_FILE = Path("/proc/meminfo")
_STATUS_FILE = Path("/proc/self/status")


def process_rank() -> int:
    """The number of this process among those that a launcher has started, as torchrun or Lightning
    tell it; 0 is the first, or the only one."""
    for name in ("RANK", "LOCAL_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def available_cores(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Physical cores that this process may run on, a container's quota (of control
    groups v2) counted; at least 1."""
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = {_siblings(topology / f"cpu{number}" / "topology", number) for number in processors}
    return max(1, min(len(cores), _quota(quota)))


def check_threads(threads: int | None) -> int | None:
    """The number of threads that somebody asked for; None is nothing asked.

    Raises:
        InputError: Not a number from 1 to `available_cores`: with more, each waits for the others,
            and a run may not end.
    """
    cores = available_cores()
    if threads is not None and (not is_integer(threads) or not 1 <= threads <= cores):
        raise InputError(
            f"threads must be a whole number in 1..{cores} (the cores that this process may use), "
            f"found {threads!r:.40}",
            option="--threads",
        )
    return threads


def _siblings(folder: Path, number: int) -> str:
    """What the hardware threads of one core have in common."""
    try:
        return (folder / "thread_siblings_list").read_text()
    except OSError:
        return str(number)


def _quota(path: Path) -> int:
    try:
        limit, period = path.read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no control group, or "max"
        return os.cpu_count() or 1


def model_name(path: Path = _INFO) -> str:
    """The processor's own name, "unknown" where the system does not tell."""
    return next(iter(_told(path, r"^model name\s*: (.*)$")), "unknown")


def host_name() -> str:
    """The processor's name and architecture: what a result computed here may depend on."""
    return f"{model_name()} ({platform.machine()})"


def available_bytes() -> int | None:
    """Memory and swap that a new process can have, None where the system does not tell."""
    return _bytes(_MEMORY_FILE, "MemAvailable|SwapFree")


def resident_bytes() -> int | None:
    """Memory this process has resident, None where the system does not tell."""
    return _bytes(_STATUS_FILE, "VmRSS")


def peak_bytes() -> int | None:
    """The most memory this process has had resident, None where the system does not tell."""
    return _bytes(_STATUS_FILE, "VmHWM")


def _bytes(path: Path, names: str) -> int | None:
    """The sum of these entries of a file of the system's."""
    found = _told(path, rf"^(?:{names}):\s+(\d+) kB")
    return 1024 * sum(map(int, found)) if found else None


def _told(path: Path, pattern: str) -> list[str]:
    """What a file of the system's says; nothing where there is none."""
    try:
        return re.findall(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    except OSError:
        return []


def release_freed_memory() -> None:
    """Have the C library give freed memory back: glibc keeps gigabytes of freed weights otherwise.

    Does nothing where the C library has no malloc_trim.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
