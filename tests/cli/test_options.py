"""Options that click by itself reads otherwise than a user means."""

import re

import pytest
from click.testing import CliRunner
from click.types import FloatParamType

from m2kit.cli import cli
from m2kit.cli.options import Numbers


def options(group, path=()):
    """(command's name, option's name, type) of every option of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from options(command, (*path, name))
            continue
        for parameter in command.params:
            yield (*path, name), parameter.opts[-1], parameter.type


REAL = [
    (path, option)
    for path, option, kind in options(cli)
    if isinstance(kind, FloatParamType)
    or (isinstance(kind, Numbers) and kind.convert("1", None, None) != (1,))
]


def test_the_options_of_numbers_are_seen():
    names = {option for _, option in REAL}
    assert names >= {"--bandwidth", "--ema-decay", "--class-dropout", "--guidance", "--temperature"}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "nan,1"])
def test_no_option_takes_what_is_no_finite_number(number):
    for path, option in REAL:
        done = CliRunner().invoke(cli, [*path, f"{option}={number}"])
        assert done.exit_code == 2, (path, option)
        assert done.stderr.splitlines()[-1].startswith(f"Error: Invalid value for '{option}'")


@pytest.mark.parametrize("command", ["generate", "bench", "decode t.npz"])
def test_more_threads_than_cores_are_refused_before_anything_is_opened(command):
    """A thousand threads that wait for each other never ended."""
    for threads in ("0", "-1", "1000"):
        done = CliRunner().invoke(cli, [*command.split(), "--threads", threads])
        assert done.exit_code == 1
        assert re.fullmatch(
            rf"error: threads must be .* 1\.\.\d+ \(the .*\), found {threads} \(--threads\)\n",
            done.stderr,
        )
