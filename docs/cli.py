"""Writes docs/cli.md from the commands themselves: `make docs`.

The page is laid out here and not by click, so that it does not depend on a terminal's width.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from m2kit.cli import cli

PAGE = Path(__file__).with_suffix(".md")
COLUMNS = 100
HEAD = "<!-- Written by docs/cli.py from the commands' own help: `make docs`. Do not edit. -->"
HELP = (
    "Every command also has `-h` and `--help`, `-q` and `--quiet` (print results and errors only), "
    "`-v` and `--verbose` (also tell how long each stage took)."
)
COMPLETION = (
    'bash completes commands and options after `eval "$(_M2KIT_COMPLETE=bash_source m2kit)"`, '
    "zsh with `zsh_source` in its place, fish after `_M2KIT_COMPLETE=fish_source m2kit | source`."
)
_EVERYWHERE = ("--help", "--quiet", "--verbose")


def page() -> str:
    """The whole page."""
    lines = [
        "# Commands",
        "",
        HEAD,
        "",
        *_filled(HELP),
        "",
        *_filled(COMPLETION),
        *_section(cli, click.Context(cli, info_name="m2kit", **cli.context_settings), 2),
    ]
    return "\n".join(lines) + "\n"


def _section(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """A command, its arguments and options, and the commands below it."""
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("", f"{'#' * level} {context.command_path}", "")
    yield f"    {context.command_path} {usage}"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ""
        if paragraph.startswith("\b\n"):  # click's mark of lines that stay as they are
            yield from (f"    {line}" for line in paragraph.splitlines()[1:])
        else:
            yield from _filled(paragraph)
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    yield ""
    for name, text in (record for record in records if record and record[1]):
        if not name.endswith(_EVERYWHERE):
            yield from _filled(f"`{name}`: {text}", "- ", "  ")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _section(below, click.Context(below, context, name), level)


def _filled(text: str, first: str = "", rest: str = "") -> list[str]:
    """Text as lines of Markdown, in which what stands between backticks means itself."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([*]|<(?=[a-z/!]))", r"\\\1", part) for part in parts[::2]]
    return textwrap.wrap(
        "`".join(parts),
        COLUMNS,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
