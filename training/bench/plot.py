"""What `m2kit bench` measured, as a PNG."""

from __future__ import annotations

from pathlib import Path

from m2kit.outputs import new_file
from m2kit.runtime.bench.figures import Benchmark


def benchmark_bars(path: Path, found: Benchmark, title: str) -> None:
    """Bars of a position's stages beside the memory's limit, and of whole images."""
    from matplotlib.figure import Figure

    parts = [name for name in ("inter", "intra", "steps", "sampling") if name in found.stages]
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    below = 0.0
    for name in parts:
        height = found.stages[name].median_ms
        left.bar("one position", height, bottom=below, label=name, width=0.5)
        below += height
    if found.limit is not None:
        left.axhline(found.limit.milliseconds, color="black", ls="--", label="memory's limit")
    left.set_ylabel("ms")
    left.set_xlim(-0.5, 1.5)  # room for the legend beside the bar
    left.legend(loc="upper right")
    seconds = {"m2kit": found.image_ms / 1e3}
    seconds |= {name: other.image_ms / 1e3 for name, other in found.baselines.items()}
    right.bar(list(seconds), list(seconds.values()))
    right.set_ylabel(f"s an image, decoder included, {found.batch} at once")
    figure.suptitle(title, size=8)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
