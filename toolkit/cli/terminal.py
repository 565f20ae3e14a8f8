"""What the terminal at stderr shows pictures with. The terminal itself is asked, as nobody keeps a
list of all of them: for the kitty graphics protocol, for the size of a cell, and at last for its
attributes, which every terminal answers, so that no answer is left over for the prompt.

Variables of the environment are asked where there is no question (iTerm2, colours), and where a
question would not reach the terminal that shows things (tmux, screen).
"""

from __future__ import annotations

import atexit
import fcntl
import io
import os
import re
import select
import struct
import termios
import time
import tty
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

Kind = Literal["kitty", "iterm", "sixel", "24-bit", "256"]

_QUESTIONS = (
    b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"  # kitty: would you show a pixel?
    b"\x1b[16t"  # pixels of a cell
    b"\x1b[c"  # attributes, of which 4 is sixel
)
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_CELL = re.compile(rb"\x1b\[6;(\d+);(\d+)t")
_WAIT_S = 1.0  # for the answers, which come at once but over a slow line
_USUAL_CELL = (8, 16)
_INSIDE = ("TMUX", "STY", "ZELLIJ")  # something between us and the terminal
_ITERM_PROGRAMS = ("iTerm.app", "WezTerm")


@dataclass(frozen=True, slots=True)
class Terminal:
    """A terminal that shows pictures.

    Attributes:
        device: Its file.
        kind: How it shows them; the last two are half blocks in so many colours.
        cell: (width, height) of a cell in pixels, for when the device does not tell.
    """

    device: str
    kind: Kind
    cell: tuple[int, int] = _USUAL_CELL

    def measured(self) -> tuple[int, int, tuple[int, int]]:
        """(columns, lines, (width, height) of a cell in pixels) as they are now; of half blocks,
        a cell is 1 x 2 pixels."""
        with _opened(self.device) as file:
            answer = fcntl.ioctl(file, termios.TIOCGWINSZ, bytes(8))
        lines, columns, width, height = struct.unpack("4H", answer)
        if self.kind in ("24-bit", "256"):
            return columns, lines, (1, 2)
        if width >= columns > 0 and height >= lines > 0:
            return columns, lines, (width // columns, height // lines)
        return columns, lines, self.cell


def terminal_at(console: Console, environment: Mapping[str, str] = os.environ) -> Terminal | None:
    """The terminal that a console writes to, if it is one that shows pictures."""
    try:
        device = os.ttyname(console.file.fileno())
    except OSError:  # no file, or no terminal
        return None
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    name = environment.get("TERM", "")
    inside = any(map(environment.get, _INSIDE)) or re.match("screen|tmux", name)
    answers = b"" if inside else _asked(device)
    attributes = _ATTRIBUTES.search(answers)
    if attributes:
        cell = _CELL.search(answers)
        pixels = (int(cell[2]), int(cell[1])) if cell else _USUAL_CELL
        if min(pixels) < 1:
            pixels = _USUAL_CELL
        if b"\x1b_Gi=31;OK" in answers:
            return Terminal(device, "kitty", pixels)
        if _is_iterm(environment):
            return Terminal(device, "iterm", pixels)
        if b"4" in attributes[1].split(b";")[1:]:
            return Terminal(device, "sixel", pixels)
    if console.no_color or not console.encoding.startswith("utf"):
        return None
    blocks: dict[str | None, Kind] = {"truecolor": "24-bit", "256": "256"}
    kind = blocks.get(console.color_system)
    return Terminal(device, kind) if kind else None


def _is_iterm(environment: Mapping[str, str]) -> bool:
    """iTerm2, also at the other end of ssh, which hands on LC_ variables, or one like it."""
    return (
        environment.get("TERM_PROGRAM") in _ITERM_PROGRAMS
        or environment.get("LC_TERMINAL") == "iTerm2"
        or "ITERM_SESSION_ID" in environment
    )


def _opened(device: str) -> io.FileIO:
    return io.FileIO(os.open(device, os.O_RDWR | os.O_NOCTTY), "r+")


def _asked(device: str) -> bytes:
    """All that a terminal answers to the questions: nothing where this process is not in front of
    it, and what came until the time was over where it answers not all."""
    with _opened(device) as file:
        try:
            if os.tcgetpgrp(file.fileno()) != os.getpgrp():
                return b""  # in the background, where reading would stop the process
        except OSError:
            return b""  # the terminal of another session
        before = termios.tcgetattr(file)
        answers = b""
        try:
            tty.setcbreak(file.fileno(), termios.TCSADRAIN)
            file.write(_QUESTIONS)
            end = time.monotonic() + _WAIT_S
            while not _ATTRIBUTES.search(answers):
                left = end - time.monotonic()
                if left <= 0 or not select.select([file], [], [], left)[0]:
                    break
                answers += file.read(1024) or b""
            file.write(b"\r\x1b[2K")  # a terminal that knows a question not may have printed it
        finally:
            whole = _ATTRIBUTES.search(answers)
            termios.tcsetattr(file, termios.TCSADRAIN if whole else termios.TCSAFLUSH, before)
            if not whole:
                atexit.register(_forget_answers, device)
    return answers


def _forget_answers(device: str) -> None:
    """Throws away what a terminal answered too late, before the prompt reads it."""
    with _opened(device) as file:
        termios.tcflush(file, termios.TCIFLUSH)
