"""Run one command and report time and peak memory: the figures of the README's table of sizes.

    python examples/sizes/measure.py m2kit export --ckpt ar_b.pt

Peak memory is the largest sum of PSS (proportional set size) over the command's process tree,
sampled every 0.2 s; pages of mapped files count. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

_INTERVAL_S = 0.2


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += tree(int(child))
    return found


def pss_bytes(pid: int) -> int:
    """PSS of one process; 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")


def main() -> int:
    """Run the command of the arguments; its exit status."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(sys.argv[1:])
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a process ended between listing and reading
            peak = max(peak, sum(map(pss_bytes, tree(process.pid))))
        time.sleep(_INTERVAL_S)
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": round(seconds, 1), "peak_pss_bytes": peak}))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
