"""Pictures in the terminal while they are drawn, above the bar that counts tokens.

Some of a batch stand in a row, which is drawn again in place as rows of tokens are finished; the
last one stays. Decoding and showing take a tenth of the time at most, and change nothing of what is
drawn. Where a terminal shows no pictures, nothing happens.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.segment import Segment, Segments

from m2kit.cli.output import QUIET, note, verbosity
from m2kit.cli.terminal import Terminal, terminal_at
from m2kit.runtime.decoding import Drawn
from m2kit.runtime.drawing import filled
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.terminal_pictures import (
    half_block_picture,
    iterm_picture,
    kitty_picture,
    kitty_removed,
    sixel_picture,
)

_MOST = 8  # pictures side by side
_NARROWEST = 16  # columns of a picture where several stand side by side
_HIGHEST = 16  # lines of a picture
_OTHER_LINES = 4  # of the screen that are left for the bar and the prompt
_BACK = "\x1b8\x1b7"  # to the place that was noted, which some terminals forget when they are there
_SHARE = 0.1  # of the time, for previews
_PAUSE_S = 0.3  # between two, at least


class Layout(NamedTuple):
    """So many pictures side by side, each of so many cells."""

    pictures: int
    columns: int
    rows: int


@contextmanager
def preview_of(engine: Engine, console: Console, *, wanted: bool) -> Iterator[Preview]:
    """Shows what an engine draws on a console's terminal, if it is wanted and can be."""
    terminal = None
    if wanted and verbosity() > QUIET and console.is_terminal:
        terminal = terminal_at(console)
        if terminal is None:
            note("no preview: this terminal shows neither pictures nor 256 colours")
    preview = Preview(engine, console, terminal)
    with ExitStack() as stack:
        stack.callback(preview.recover)
        yield preview
        preview.show_last()
        stack.pop_all()


@dataclass
class Preview:
    """A row of pictures on a console.

    Attributes:
        engine: That draws them.
        console: Which is written to.
        terminal: How it shows pictures; None shows nothing.
    """

    engine: Engine
    console: Console
    terminal: Terminal | None
    _next: float = field(default_factory=lambda: time.monotonic() + _PAUSE_S)
    _shown: tuple[int, Layout] | None = None  # columns of the terminal, and what stands there
    _left: npt.NDArray[np.uint8] | None = None  # finished pictures that were not shown yet
    _first: int = field(default_factory=lambda: 1 + _MOST * int.from_bytes(os.urandom(3), "big"))

    def watch(self, drawn: Drawn) -> None:
        """Show a batch that is being drawn, if a row of tokens is finished and it is time."""
        done, spec = drawn.position + 1, self.engine.transformer
        whole = done % spec.grid[-1] == 0 and done < spec.positions
        if self.terminal is None or not whole or time.monotonic() < self._next:
            return
        began = time.monotonic()
        layout = self._layout(len(drawn.tokens), self.engine.spec.size_of_grid(spec.grid))
        if layout is not None:
            images = self.engine.decode(filled(drawn.tokens[: layout.pictures], done))
            self._show(uint8_from_images(images), began)

    def finished(self, images: npt.NDArray[np.float32]) -> None:
        """Show a finished batch, (n, 3, H, W) float32 in [-1, 1], if it is time."""
        if self.terminal is not None:
            self._left = uint8_from_images(images[:_MOST])
            if time.monotonic() >= self._next:
                self._show(self._left, time.monotonic())

    def show_last(self) -> None:
        """Show the batch that was finished last, if it was not shown yet."""
        if self._left is not None:
            self._show(self._left, time.monotonic())

    def recover(self) -> None:
        """Go back to the line of the bar from wherever Ctrl-C left the terminal, which throws away
        what it has not read yet: inside a sequence, maybe, which is ended first."""
        if self._shown is not None:
            self._print(f"\x1b\\\x1b[0m{_BACK}\x1b[2K")

    def _layout(self, count: int, size: tuple[int, ...]) -> Layout | None:
        if self.terminal is None:
            return None
        columns, lines, cell = self.terminal.measured()
        return layout_of(count, size, columns, lines, cell)

    def _show(self, pixels: npt.NDArray[np.uint8], began: float) -> None:
        self._left = None
        layout = self._layout(len(pixels), pixels.shape[1:3])
        if self.terminal is not None and layout is not None:
            columns, _, cell = self.terminal.measured()
            text = self._place(columns, layout)
            for place, one in enumerate(pixels[: layout.pictures]):
                right = place * (layout.columns + 1)
                text += f"{_BACK}\x1b[{layout.rows}A" + (f"\x1b[{right}C" if right else "")
                text += _picture(self.terminal.kind, one, layout, cell, self._first + place)
            with _uninterrupted():
                self._print(text + _BACK)
                self._shown = columns, layout
        now = time.monotonic()
        self._next = now + max(_PAUSE_S, (now - began) * (1 / _SHARE - 1))

    def _print(self, text: str) -> None:
        self.console.print(Segments([Segment(text)]), end="", crop=False)

    def _place(self, columns: int, layout: Layout) -> str:
        """Notes where the line of the bar is, which rich draws again after whatever is printed; the
        pictures stand above it, and room is made for them first if they stood otherwise."""
        text = ""
        if self._shown != (columns, layout):
            if self._shown is not None:
                before = self._shown[1]
                text = f"\x1b[{before.rows}A\r\x1b[J"
                if self.terminal is not None and self.terminal.kind == "kitty":
                    text += "".join(kitty_removed(self._first + n) for n in range(before.pictures))
            text += "\n" * layout.rows
        return text + "\r\x1b7"


def layout_of(
    count: int, size: tuple[int, ...], columns: int, lines: int, cell: tuple[int, int]
) -> Layout | None:
    """How pictures of a size stand on a terminal; None if it is too small.

    Args:
        count: Pictures that there are.
        size: (H, W) of each, pixels.
        columns: Of the terminal.
        lines: Likewise.
        cell: (width, height) of a cell in pixels.
    """
    highest = min(_HIGHEST, lines - _OTHER_LINES)
    if columns < _NARROWEST or highest < 1:
        return None
    count = max(1, min(count, _MOST, columns // (_NARROWEST + 1)))
    lines_of_a_column = cell[0] * size[0] / (cell[1] * size[1])
    wide = min(columns // count - 1, int(highest / lines_of_a_column))
    return Layout(count, max(1, wide), min(highest, max(1, round(wide * lines_of_a_column))))


def _picture(
    kind: str, pixels: npt.NDArray[np.uint8], layout: Layout, cell: tuple[int, int], number: int
) -> str:
    cells = layout.columns, layout.rows
    if kind == "kitty":
        return kitty_picture(pixels, *cells, number)
    if kind == "iterm":
        return iterm_picture(pixels, *cells)
    if kind == "sixel":
        return sixel_picture(pixels, layout.columns * cell[0], layout.rows * cell[1])
    return half_block_picture(pixels, *cells, true_colour=kind == "24-bit")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until what is being written is written, as half a picture would leave the
    terminal inside a sequence, or its cursor elsewhere."""
    came: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])
