"""The processor this process may use."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time in each period
_INFO = Path("/proc/cpuinfo")


def available_cores(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Physical cores that this process may run on, a container's quota (of control
    groups v2) counted; at least 1."""
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = {_siblings(topology / f"cpu{number}" / "topology", number) for number in processors}
    return max(1, min(len(cores), _quota(quota)))


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
    try:
        found = re.search(r"^model name\s*: (.*)$", path.read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else "unknown"
