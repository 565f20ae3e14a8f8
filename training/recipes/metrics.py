"""metrics.csv: a row every so many steps, with what a run logged; the same for TensorBoard; and its
curves as a PNG."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit.errors import FolderError, InputError
from m2kit.outputs import new_file
from m2kit.training.recipes.phase import Panels

STEP, EPOCH = "step", "epoch"
Row = dict[str, float]  # what was not measured at a step is left out
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Writes metrics.csv, and files for TensorBoard beside it.

    Args:
        path: The file.
        panels: Have the names that are logged.
        done: Steps before the first one that is to be logged; rows beyond them are dropped.

    Raises:
        InputError: There is a metrics.csv, and it is damaged or of another run.
        FolderError: They cannot be written.
    """

    def __init__(self, path: Path, panels: Panels, done: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._path, self._names = path, [STEP, EPOCH, *measures(panels)]
        rows = read_metrics(path, panels) if done and path.exists() else []
        with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(row for row in rows if row[STEP] <= done)
        self._board = path.parent / TENSORBOARD_FOLDER
        with _written(self._board):
            self._board.mkdir(exist_ok=True)
            # not its SummaryWriter, whose thread dies of a full disk and lets the run wait for it
            self._events = EventsWriter(str(self._board / "events"))
        start = SessionLog(status=SessionLog.START)  # hides what earlier files have from there on
        self._add_event(done + 1, session_log=start)

    def add(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Add a row: steps done, epochs done, and measures.

        Raises:
            FolderError: It cannot be written.
        """
        from tensorboardX.summary import scalar

        row = dict(values) | {STEP: step, EPOCH: epoch}
        with _written(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._names).writerow(row)
        for name, value in values.items():
            self._add_event(step, summary=scalar(name, value))
        with _written(self._board):
            self._events.flush()

    def add_images(self, name: str, images: npt.NDArray[np.uint8], step: int) -> None:
        """Add images (n, H, W, 3), for TensorBoard alone.

        Raises:
            FolderError: They cannot be written.
        """
        from tensorboardX.summary import image

        self._add_event(step, summary=image(name, images, dataformats="NHWC"))

    def _add_event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with _written(self._board):
            self._events.write_event(Event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        """Write what is left.

        Raises:
            FolderError: It cannot be written.
        """
        with _written(self._board):
            self._events.close()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Tells a failure of the system as one line; how to go on, the run's folder adds."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"cannot write {path}: {error.strerror or error}") from error


def measures(panels: Panels) -> list[str]:
    """All names of panels."""
    return [measure for names in panels.values() for measure in names]


def read_metrics(path: Path, panels: Panels) -> list[Row]:
    """The rows of a metrics.csv: steps and epochs done, and each measure that has a value.

    A last line that breaks off, as a run leaves it that was killed, is left out.

    Raises:
        InputError: Not such a file: damaged, other columns, or values that are no numbers.
    """
    expected = [STEP, EPOCH, *measures(panels)]
    try:
        text = path.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]
        return _rows(list(csv.reader(whole.splitlines(), strict=True)), expected)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({error}); start again in another folder", option="-o"
        ) from error


def _rows(lines: list[list[str]], expected: list[str]) -> list[Row]:
    names = lines[0] if lines else []
    if sorted(names) != sorted(expected):
        found = ", ".join(names)[:200] or "none"
        raise ValueError(f"expected the columns {', '.join(sorted(expected))}, found {found}")
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(names):
            raise ValueError(f"line {number}: expected {len(names)} values, found {len(line)}")
        given = {name: text for name, text in zip(names, line, strict=True) if text}
        row = {name: _number(text, f"line {number}, {name}") for name, text in given.items()}
        if not {STEP, EPOCH} <= set(row) or not row[STEP].is_integer():
            raise ValueError(f"line {number}: expected a whole number of steps, and epochs")
        rows.append({**row, STEP: int(row[STEP])})
    steps = [row[STEP] for row in rows]
    if steps != sorted(set(steps)) or any(step < 1 for step in steps):
        raise ValueError(f"expected growing numbers in the column {STEP}")
    return rows


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a number, found {text[:60]!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, found {text[:60]!r}")
    return number


def curve(rows: Iterable[Row], measure: str) -> tuple[list[float], list[float]]:
    """Epochs, and a measure's values there."""
    points = [(row[EPOCH], row[measure]) for row in rows if measure in row]
    return [epoch for epoch, _ in points], [value for _, value in points]


def plot_curves(metrics: Path, path: Path, panels: Panels) -> None:
    """Plot the measures of a metrics.csv over the epochs, and write the PNG `path`."""
    with new_file(path) as temporary:
        _curves(read_metrics(metrics, panels), panels).savefig(temporary, dpi=100)


def curves_png(metrics: Path, panels: Panels, *, dark: bool) -> bytes:
    """The same as the bytes of a PNG without a background, for a light or a dark page."""
    from matplotlib import style

    file = io.BytesIO()
    with style.context("dark_background" if dark else "default"):
        figure = _curves(read_metrics(metrics, panels), panels)
        figure.savefig(file, dpi=100, transparent=True)
    return file.getvalue()


def _curves(rows: list[Row], panels: Panels) -> Any:
    """A figure with a panel for each."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * lines), layout="constrained")
    for index, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, index)
        for name in names:
            axes.plot(*curve(rows, name), label=name, marker="." if len(rows) < 50 else "")
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
