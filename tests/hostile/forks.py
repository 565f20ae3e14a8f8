"""A process that has imported m2kit and forks itself for every command it is told: hundreds of
commands a minute, each in a process of its own.

It reads a JSON list a line, [folder, environment, arguments, seconds], and answers with another,
[exit status or null where it did not end, seconds]; the command's output goes to the files named
below, in the folder above.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

OUT, ERR = "stdout.txt", "stderr.txt"
_FIRST = ("numpy", "PIL.Image", "m2kit.cli", "m2kit.engines.ort.builder", "m2kit.token_file")
_IF_THERE = ("torch", "m2kit.training.checkpoints.reading", "m2kit.export.exporter")


def main() -> None:
    """Serve until stdin ends."""
    for name in (*_FIRST, *_IF_THERE):
        importlib.import_module(name)
    for line in sys.stdin:
        folder, environment, arguments, seconds = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _be(Path(folder), environment, arguments)
        status = _wait(child, began + seconds)
        print(json.dumps([status, time.monotonic() - began]), flush=True)


def _wait(child: int, deadline: float) -> int | None:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be(folder: Path, environment: dict[str, str], arguments: list[str]) -> None:
    """Become the command; never returns."""
    os.setsid()
    for number, (name, flags) in enumerate(
        [(os.devnull, os.O_RDONLY)] + [(str(folder.parent / n), os.O_WRONLY) for n in (OUT, ERR)]
    ):
        opened = os.open(name, flags | (os.O_CREAT | os.O_TRUNC if number else 0))
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["m2kit", *(os.fsdecode(a.encode("utf-8", "surrogateescape")) for a in arguments)]
    try:
        importlib.import_module("m2kit.cli").main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
