"""Export a published size with random weights; report time, peak memory and disk. With --plans,
build the half-precision TensorRT-RTX plans of its bundle too.

    python examples/sizes/measure.py ar-b build/sizes [--plans]

Peak memory is the largest sum of PSS (proportional set size) over the process tree of the command,
sampled every 0.2 s; pages of mapped files count. Export's parity check is part of it; plans are
built for two compute capabilities and not run. The last line is one JSON object. All files are
removed at the end: a size takes twice its checkpoint, and its plans half of it more.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from m2kit.manifest import BUNDLE
from m2kit.manifest_file import read_manifest
from m2kit.parity_report import DIFFERENCE

_INTERVAL_S = 0.2
_M2KIT = [sys.executable, "-m", "m2kit"]


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


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak PSS in bytes of a command that must succeed."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a process ended between listing and reading
            peak = max(peak, sum(map(pss_bytes, tree(process.pid))))
        time.sleep(_INTERVAL_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.monotonic() - started, peak


def measured_plans(bundle: Path, engine: Path) -> dict[str, float]:
    """Build the plans of a bundle; seconds, peak memory, and size for each 2 bytes of a weight."""
    command = [*_M2KIT, "build-engine", str(bundle), "-o", str(engine), "--backend"]
    seconds, peak = measured([*command, "tensorrt-rtx"])
    weights = sum(read_manifest(bundle, BUNDLE).spec.parameter_counts().values())
    plans = sum(path.stat().st_size for path in engine.glob("*.plan"))
    shutil.rmtree(engine)
    return {
        "plans_seconds": round(seconds, 1),
        "plans_peak_pss_bytes": peak,
        "plans_bytes": plans,
        "plans_over_2_bytes_a_weight": round(plans / (2 * weights), 4),
    }


def main(preset: str, folder: Path, *, plans: bool) -> None:
    """Measure one preset."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = folder / f"{preset}.pt", folder / f"{preset}.bundle"
    checkpoint.unlink(missing_ok=True)
    subprocess.run([*_M2KIT, "init-checkpoint", "--preset", preset, "-o", checkpoint], check=True)
    seconds, peak = measured([*_M2KIT, "export", "--ckpt", str(checkpoint), "-o", str(bundle)])
    size = checkpoint.stat().st_size
    disk = sum(path.stat().st_size for path in bundle.iterdir())
    checks = read_manifest(bundle, BUNDLE).parity.checks.values()
    result = {
        "preset": preset,
        "checkpoint_bytes": size,
        "seconds": round(seconds, 1),
        "peak_pss_bytes": peak,
        "peak_pss_over_checkpoint": round(peak / size, 3),
        "bundle_bytes": disk,
        "bundle_over_checkpoint": round(disk / size, 4),
        "largest_difference": max(check.found.get(DIFFERENCE) or 0.0 for check in checks),
    }
    if plans:
        result |= measured_plans(bundle, folder / f"{preset}.engine")
    print(json.dumps(result))
    checkpoint.unlink()
    shutil.rmtree(bundle)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), plans="--plans" in sys.argv)
