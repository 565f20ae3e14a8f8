"""What `m2kit bench` measured, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2kit.folders import new_file


def benchmark_bars(path: Path, value: Mapping[str, Any]) -> None:
    """Bars of a position's stages beside the memory's limit, and of whole images."""
    from matplotlib.figure import Figure

    parts = [name for name in ("inter", "intra", "steps", "sampling") if name in value["stages"]]
    stages_ms = {name: value["stages"][name]["median_ms"] for name in parts}
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    below = 0.0
    for name, height in stages_ms.items():
        left.bar("one position", height, bottom=below, label=name, width=0.5)
        below += height
    if "position_limit_ms" in value:
        left.axhline(value["position_limit_ms"], color="black", ls="--", label="memory's limit")
    left.set_ylabel("ms")
    left.set_xlim(-0.5, 1.5)  # room for the legend beside the bar
    left.legend(loc="upper right")
    seconds = {"m2kit": value["image_ms"] / 1e3}
    for name in ("compiled", "eager", "official"):
        if f"{name}_image_ms" in value:
            seconds[name] = value[f"{name}_image_ms"] / 1e3
    right.bar(list(seconds), list(seconds.values()))
    right.set_ylabel(f"s an image, decoder included, {value['batch']} at once")
    figure.suptitle(
        f"{Path(value['engine']).name}, {value['precision']}, {value['machine']}", size=8
    )
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
