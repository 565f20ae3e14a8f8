"""The command line. Commands parse, call one function and print; heavy imports happen inside."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from m2kit import __version__
from m2kit.cli.benching import bench
from m2kit.cli.building import build_engine, export, init_checkpoint
from m2kit.cli.generating import generate
from m2kit.cli.health import doctor
from m2kit.cli.imaging import convert_tokens, decode, encode, reconstruct
from m2kit.cli.reporting import describe, inspect, verify
from m2kit.cli.training import train
from m2kit.errors import M2KitError


class Failure(click.ClickException):
    """One red line on stderr and exit status 1."""

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.secho(f"error: {' '.join(self.message.split())}", fg="red", err=True)


class Commands(click.Group):
    """A group that turns m2kit's and the system's errors into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except M2KitError as error:
            hint = f" ({error.option})" if error.option else ""
            raise Failure(f"{error}{hint}") from error
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}") from error
        except MemoryError as error:
            raise Failure("out of memory; close other programs or use a smaller batch") from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="m2kit")
def cli() -> None:
    """Open-MAGVIT2 from a PyTorch checkpoint to images on the machine at hand.

    \b
    m2kit export --ckpt ar_l.pt      checkpoint -> ar_l.bundle
    m2kit build-engine               bundle -> ar_l.engine
    m2kit generate --engine ar_l.engine --class 207 -o samples.png
    """


for command in (
    train, init_checkpoint, export, build_engine, generate, encode, decode, reconstruct,
    convert_tokens, verify, inspect, describe, doctor, bench,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Entry point: SIGTERM unwinds like an exception, so that temporary folders are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cli(prog_name="m2kit")
