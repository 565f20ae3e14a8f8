"""How commands print: a result as a table or as JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from m2kit.progress import Advance, Begin


def print_result(rows: Mapping[str, Any], as_json: bool, value: Any = None) -> None:
    """Print rows as a two-column table, or `value` (by default the rows) as one JSON line."""
    if as_json:
        click.echo(json.dumps(rows if value is None else value))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, item in rows.items():
        table.add_row(name, str(item))
    Console(soft_wrap=False, highlight=False).print(table, markup=False)


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


@contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Any]:
    """A bar on stderr with rate and time left; yields a function that advances it by n.

    Where stderr is no terminal, one line says what begins.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        note(f"{label} ...")
        yield lambda count: None
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


@contextmanager
def stages(unit: str = "positions") -> Iterator[Begin]:
    """Shows stages on stderr: a name, or a bar where the stage is counted, in `unit`."""
    with ExitStack() as stack:

        def begin(stage: str, total: int | None = None) -> Advance:
            stack.close()  # the bar of the stage before
            if total is None:
                note(f"{stage} ...")
                return lambda count: None
            return cast(Advance, stack.enter_context(progress_bar(stage, total, unit)))

        yield begin


def size_text(count: int) -> str:
    """Bytes in kB or MB (powers of ten)."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def label(name: str) -> str:
    """A field's name as a table shows it."""
    return name.replace("_", " ")
