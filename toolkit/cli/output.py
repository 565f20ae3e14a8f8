"""How commands print: a result as a table or as JSON on stdout, progress on stderr, more or less of
it as --quiet and --verbose say.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from m2kit.progress import Advance, Begin

VERBOSITY = "m2kit.verbosity"  # of a click context
QUIET, VERBOSE = -1, 1


def verbosity() -> int:
    """QUIET, 0 or VERBOSE, as the command that runs was told."""
    context = click.get_current_context(silent=True)
    return int(context.meta.get(VERBOSITY, 0)) if context else 0


def print_result(rows: Mapping[str, Any], as_json: bool, value: Any = None) -> None:
    """Print rows as a two-column table, those of None left out, or `value` (by default the rows) as
    one JSON line."""
    if as_json:
        click.echo(json.dumps(rows if value is None else value))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, item in rows.items():
        if item is None:
            continue
        table.add_row(name, str(item))
    Console(soft_wrap=False, highlight=False, emoji=False).print(table, markup=False)


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool, value: Any
) -> None:
    """Print rows of columns, or `value` as one JSON line."""
    if as_json:
        click.echo(json.dumps(value))
        return
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(head):
        table.add_column(Text(title), style="" if number else "bold", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(soft_wrap=False, highlight=False, emoji=False).print(table, markup=False)


def note(text: str) -> None:
    """Say something on stderr, unless --quiet forbids it."""
    if verbosity() > QUIET:
        click.echo(text, file=sys.stderr)


class _Rate(TextColumn):
    """How many of what is counted are done in a second."""

    def render(self, task: Task) -> Text:
        """The rate, as soon as there is one."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def stages(unit: str = "positions", console: Console | None = None) -> Iterator[Begin]:
    """Shows stages on stderr, or a console of it: a name, or a bar where the stage is counted, in
    `unit`.

    Where stderr is no terminal, the name is all; with --verbose each ends with its seconds.
    """
    console = console or Console(stderr=True)
    with ExitStack() as stack:

        def begin(stage: str, total: int | None = None) -> Advance:
            stack.close()  # the bar of the stage before
            if verbosity() == VERBOSE:
                stack.callback(_tell_seconds, stage, time.perf_counter())
            if verbosity() == QUIET or total is None or not console.is_terminal:
                note(f"{stage} ...")
                return lambda count: None
            columns = (
                *(TextColumn(stage), BarColumn(), MofNCompleteColumn(), TextColumn(unit)),
                *(_Rate(""), TimeElapsedColumn()),
                *(TextColumn("left"), TimeRemainingColumn()),
            )
            progress = stack.enter_context(Progress(*columns, console=console))
            return partial(progress.advance, progress.add_task(stage, total=total))

        yield begin


def _tell_seconds(stage: str, began: float) -> None:
    note(f"{stage}: {time.perf_counter() - began:.2f} s")


def size_text(count: int) -> str:
    """Bytes in kB or MB (powers of ten)."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def label(name: str) -> str:
    """A field's name as a table shows it."""
    return name.replace("_", " ")
