"""The group of all commands: from the words of a command line to an exit status. Whatever goes
wrong is one line on stderr; --help lists the commands by what they are for.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import click

from m2kit.cli.output import QUIET, VERBOSE, VERBOSITY
from m2kit.errors import M2KitError, TrainingInterrupted
from m2kit.host import process_rank

_MOST_LETTERS = 1000  # of an error
_PATIENCE_SECONDS = 5
_ESCAPE = "m2kit.escape"


class Failure(click.ClickException):
    """One red line on stderr and exit status 1."""

    def show(self, file: Any = None) -> None:
        """Print the message; not by click's own stream, which shows paths as question marks."""
        text = f"error: {' '.join(self.message.split())}"
        click.secho(text, fg="red", file=file or sys.stderr)


class Interrupted(Failure):
    """Ctrl-C: exit status 130, as a shell has it, 128 and the signal's number."""

    exit_code = 130


def _told(value: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def tell(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given and ctx.meta.setdefault(VERBOSITY, value) != value:
            raise click.UsageError("--quiet and --verbose exclude each other.")

    return tell


_VERBOSITY = [
    click.Option([short, full], is_flag=True, expose_value=False, callback=_told(value), help=text)
    for short, full, value, text in (
        ("-q", "--quiet", QUIET, "Print results and errors only."),
        ("-v", "--verbose", VERBOSE, "Also tell how long each stage took."),
    )
]


def _add_verbosity(command: click.Command) -> None:
    """Let a command and those below it take the options of verbosity, where users look for them."""
    command.params += _VERBOSITY
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _add_verbosity(below)


class InOrder(click.Group):
    """A group whose commands stand in the order of the work, in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names."""
        return list(self.commands)


class Commands(InOrder):
    """A group that turns m2kit's and the system's errors into one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """A group without commands."""
        super().__init__(*arguments, **options)
        self.params += _VERBOSITY
        self._sections: dict[str, list[str]] = {}

    def add_sections(self, sections: Mapping[str, Sequence[click.Command]]) -> None:
        """Add commands, under what they are for; both in the order of the work."""
        for title, commands in sections.items():
            self._sections[title] = [str(command.name) for command in commands]
            for command in commands:
                self.add_command(command)
                _add_verbosity(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each kind of work, with the first sentence of each command's help."""
        widest = max(map(len, self.commands))
        for title, names in self._sections.items():
            with formatter.section(title):
                texts = (self.commands[name].get_short_help_str(limit=1000) for name in names)
                rows = [(name.ljust(widest), text) for name, text in zip(names, texts, strict=True)]
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _one_line():
            return super().invoke(ctx)

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command line, and leave with its exit status."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # None where it was closed
                stream.reconfigure(errors=_ESCAPE)
        options["standalone_mode"] = False
        try:
            with _one_line():
                found = super().main(*arguments, **options)
                if sys.stdout is not None:
                    sys.stdout.flush()
            status = found if isinstance(found, int) else 0
        except click.Abort:
            status = Interrupted.exit_code
            _say(Interrupted("interrupted"))
        except click.ClickException as error:
            status = error.exit_code
            _say(error)
        except BrokenPipeError:
            status = 1
            _drop_lost_output()
        sys.exit(status)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns errors into a Failure with a message of one line."""
    try:
        yield
    except M2KitError as error:
        hint = f" ({error.option})" if error.option else ""
        kind = Interrupted if isinstance(error, TrainingInterrupted) else Failure
        raise kind(f"{error}{hint}") from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # who reads the output has had enough
            raise
        _drop_lost_output()
        where = error.filename or "cannot read or write"  # an open file does not tell its name
        raise Failure(f"{where}: {error.strerror}" if error.errno else str(error)) from error
    except EOFError as error:
        raise Failure(f"a file ended too early: {error}") from error
    except MemoryError as error:
        raise Failure("out of memory; close other programs or use a smaller batch") from error


def _drop_lost_output() -> None:
    """Drop what stdout cannot take, or Python would try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: click.ClickException) -> None:
    """Print it; of a message that repeats something long, its two ends.

    Of several processes that train together the first one speaks: the others, which mostly fail of
    the same, end with it while they wait.
    """
    if process_rank():
        time.sleep(_PATIENCE_SECONDS)
    if len(error.message) > _MOST_LETTERS:
        half = _MOST_LETTERS // 2
        short = f"{error.message[:half]} ... {error.message[-half:]}"
        vars(error)["message"] = short  # which click declares final
    with contextlib.suppress(OSError):  # stderr cannot be written: nobody is left to be told
        error.show(sys.stderr)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """What a stream cannot print: bytes of a path that is not UTF-8 as they are, and letters that
    are not in its alphabet as \\u escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if error.encoding.startswith(("utf-16", "utf-32")):  # no single byte is a letter there
        return codecs.backslashreplace_errors(error)
    shown = (
        letter.encode(
            "ascii", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace"
        )
        for letter in error.object[error.start : error.end]
    )
    return b"".join(shown), error.end


codecs.register_error(_ESCAPE, _escape)
