"""A terminal that a command runs in: a pseudo terminal whose other end answers as the kind that is
played does, and keeps what it is shown."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

KITTY_QUERY, CELL_QUERY, ATTRIBUTES_QUERY = b"\x1b_Gi=31", b"\x1b[16t", b"\x1b[c"
CLEAN = ("TMUX", "STY", "ZELLIJ", "TERM_PROGRAM", "LC_TERMINAL", "ITERM_SESSION_ID", "COLORTERM")
ANSWERS = {
    "kitty": {
        KITTY_QUERY: b"\x1b_Gi=31;OK\x1b\\",
        CELL_QUERY: b"\x1b[6;20;10t",
        ATTRIBUTES_QUERY: b"\x1b[?62;c",
    },
    "sixel": {CELL_QUERY: b"\x1b[6;20;10t", ATTRIBUTES_QUERY: b"\x1b[?62;4;22c"},
    "plain": {ATTRIBUTES_QUERY: b"\x1b[?6c"},
    "silent": {},
}


def _in_the_foreground():
    """As a shell's foreground does it: tests may run in a background that ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class PtyTerminal:
    """Runs `python ARGUMENTS` in a terminal of a kind, of so many columns and lines."""

    def __init__(self, arguments, kind, *, cwd=None, size=(80, 24), env=()):
        self.answers, self.shown, self._asked, self._seen = dict(ANSWERS[kind]), b"", b"", 0
        clean = {name: value for name, value in os.environ.items() if name not in CLEAN}
        environment = clean | {"TERM": "xterm-256color"} | dict(env)
        if environment["TERM"] is None:
            del environment["TERM"]
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            if name not in dict(env):
                environment.pop(name, None)
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=_in_the_foreground,
        )

    def resize(self, columns, lines):
        size = struct.pack("4H", lines, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def type(self, keys):
        os.write(self.master, keys)

    def until(self, wanted, seconds=60):
        """Read and answer until something was shown since the last call."""
        end = time.monotonic() + seconds
        while not (found := re.compile(wanted).search(self.shown, self._seen)):
            if self.process.poll() is not None or time.monotonic() > end:
                self._fail(f"{wanted!r} was not shown")
            self._read()
        self._seen = found.end()

    def ended(self, seconds=60):
        """Read to the end: (exit status, all that was shown). What is the terminal's state then is
        in `after`, and in `unread` what a prompt would get."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > end:
                self._fail("it does not end")
            self._read()
        while self._read():
            pass
        self.after = termios.tcgetattr(self.slave)
        raw = termios.tcgetattr(self.slave)
        raw[3] &= ~termios.ICANON
        termios.tcsetattr(self.slave, termios.TCSANOW, raw)
        os.set_blocking(self.slave, False)
        try:
            self.unread = os.read(self.slave, 1024)
        except BlockingIOError:
            self.unread = b""
        os.close(self.slave)
        os.close(self.master)
        return self.process.returncode, self.shown

    def _fail(self, why):
        self.process.kill()
        self.process.wait()
        raise AssertionError(f"{why}: {self.shown[:200]!r} ... {self.shown[-500:]!r}")

    def _read(self):
        if not select.select([self.master], [], [], 0.05)[0]:
            return False
        part = os.read(self.master, 65536)
        self.shown += part
        self._answer(part)
        return True

    def _answer(self, part):
        if not self.answers:
            return
        self._asked += part
        for question, answer in list(self.answers.items()):
            if question in self._asked:
                del self.answers[question]
                os.write(self.master, answer)
