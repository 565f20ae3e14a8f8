"""Loss curves as a PNG."""

from __future__ import annotations

from pathlib import Path

from m2kit.atomic import new_file
from m2kit.training.recipes.metrics import EPOCH, read_metrics


def plot_curves(metrics: Path, path: Path, panels: dict[str, list[str]]) -> None:
    """Plot columns of a metrics.csv over the epochs, one panel per entry.

    Args:
        metrics: A metrics.csv.
        path: The PNG to write.
        panels: Title of the y axis -> columns drawn in that panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics, [column for columns in panels.values() for column in columns])
    epochs = [row[EPOCH] + 1 for row in rows]
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, columns) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for column in columns:
            axes.plot(epochs, [row[column] for row in rows], label=column)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.legend()
        axes.grid(alpha=0.3)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
