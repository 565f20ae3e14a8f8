"""`python -m m2kit`, and the script m2kit: loads the command line and runs it. Until it is loaded,
which takes a third of a second, an interrupt or too little memory would be a page of Python's own.
"""

import os
import signal
import sys


def main() -> None:
    """Entry point."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    try:
        from m2kit.cli import main as run
    except (ImportError, MemoryError, OSError) as error:
        sys.exit(f"error: m2kit cannot start: {_cause(error)}")
    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(*_: object) -> None:
    os._exit(130)  # there is nothing yet to put in order


def _cause(error: BaseException) -> str:
    """The first line of what began it: numpy makes a page of a library that cannot be loaded."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "out of memory"


if __name__ == "__main__":
    main()
