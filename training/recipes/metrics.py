"""metrics.csv: a row an epoch, with what the module logged in it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from m2kit.atomic import new_file
from m2kit.errors import InputError

EPOCH = "epoch"
Row = dict[str, float]


class MetricsLog(Callback):
    """Writes metrics.csv: one row an epoch, with everything the module logged."""

    def __init__(self, path: Path, measures: Sequence[str]) -> None:
        """Log into a file; `measures` are the names that the module logs."""
        self._path, self._measures = path, measures
        self._rows: list[Row] = []

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Take over the rows of the epochs before a resume."""
        rows = read_metrics(self._path, self._measures) if self._path.exists() else []
        self._rows = [row for row in rows if row[EPOCH] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Add the epoch's row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
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
            lines = list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise _bad(path, str(error)) from error
    expected = {EPOCH, *measures}
    found = lines[0] if lines else []
    if sorted(found) != sorted(expected):
        names = ", ".join(sorted(expected))
        raise _bad(path, f"expected the columns {names}, found {', '.join(found)[:200] or 'none'}")
    rows = [_row(path, number, found, line) for number, line in enumerate(lines[1:], start=2)]
    epochs = [row[EPOCH] for row in rows]
    if epochs != sorted(set(epochs)) or any(e < 0 or not e.is_integer() for e in epochs):
        raise _bad(path, f"expected growing whole numbers in the column {EPOCH}, found {epochs}")
    return rows


def _row(path: Path, number: int, names: list[str], line: list[str]) -> Row:
    if len(line) != len(names):
        raise _bad(path, f"line {number}: expected {len(names)} values, found {len(line)}")
    row = {}
    for name, text in zip(names, line, strict=True):
        try:
            row[name] = float(text)
        except ValueError as error:
            raise _bad(
                path, f"line {number}, {name}: expected a number, found {text[:60]!r}"
            ) from error
    return row


def _bad(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); start again in another folder (-o)")
