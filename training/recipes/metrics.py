"""metrics.csv: a row an epoch, with what the module logged in it; and its curves as a PNG."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from m2kit.errors import InputError
from m2kit.outputs import new_file
from m2kit.training.recipes.averaged_module import require_finite

EPOCH = "epoch"
Row = dict[str, float]
Panels = Mapping[str, Sequence[str]]  # title of a y axis -> the measures drawn in that panel


class MetricsLog(Callback):
    """Writes metrics.csv: one row an epoch, with everything the module logged."""

    def __init__(self, path: Path, panels: Panels) -> None:
        """Log into a file; `panels` have the names that the module logs."""
        self._path, self._measures = path, _measures(panels)
        self._rows: list[Row] = []
        self.started = False  # whether all was restored and training has begun

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Take over the rows of the epochs before a resume; the first thing after restoring."""
        self.started = True
        rows = read_metrics(self._path, self._measures) if self._path.exists() else []
        self._rows = [row for row in rows if row[EPOCH] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Add the epoch's row; the last step may have left weights that are no numbers.

        Raises:
            Diverged: A measure is not finite; nothing of this epoch is kept.
        """
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        require_finite(values, f"epoch {trainer.current_epoch + 1}")
        self._rows.append({EPOCH: trainer.current_epoch, **values})
        with new_file(self._path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self._rows[-1]))
            writer.writeheader()
            writer.writerows(self._rows)


def read_metrics(path: Path, measures: Sequence[str]) -> list[Row]:
    """The rows of a metrics.csv: `epoch`, counted from 0, and each measure.

    Raises:
        InputError: Not such a file: damaged, other columns, or values that are no numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _rows(list(csv.reader(file, strict=True)), {EPOCH, *measures})
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}); start again in another folder", option="-o"
        ) from error


def _rows(lines: list[list[str]], expected: set[str]) -> list[Row]:
    names = lines[0] if lines else []
    if sorted(names) != sorted(expected):
        found = ", ".join(names)[:200] or "none"
        raise ValueError(f"expected the columns {', '.join(sorted(expected))}, found {found}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(names):
            raise ValueError(f"line {number}: expected {len(names)} values, found {len(line)}")
        values = zip(names, line, strict=True)
        rows.append({name: _number(text, f"line {number}, {name}") for name, text in values})
    epochs = [row[EPOCH] for row in rows]
    if epochs != sorted(set(epochs)) or any(e < 0 or not e.is_integer() for e in epochs):
        raise ValueError(f"expected growing whole numbers in the column {EPOCH}, found {epochs}")
    return [{**row, EPOCH: int(row[EPOCH])} for row in rows]  # as it was written


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a number, found {text[:60]!r}") from error


def _measures(panels: Panels) -> list[str]:
    return [measure for measures in panels.values() for measure in measures]


def plot_curves(metrics: Path, path: Path, panels: Panels) -> None:
    """Plot the measures of a metrics.csv over the epochs, and write the PNG `path`."""
    from matplotlib.figure import Figure

    rows = read_metrics(metrics, _measures(panels))
    epochs = [row[EPOCH] + 1 for row in rows]
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for index, (title, columns) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), index)
        for column in columns:
            axes.plot(epochs, [row[column] for row in rows], label=column)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.legend()
        axes.grid(alpha=0.3)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=100)
