"""The command line. Commands parse, call one function and print; heavy imports happen inside."""

from __future__ import annotations

import signal
import sys

import click

from m2kit import __version__
from m2kit.cli.benching import bench
from m2kit.cli.building import build_engine, export, init_checkpoint
from m2kit.cli.commands import Commands
from m2kit.cli.describing import describe
from m2kit.cli.encoding import encode
from m2kit.cli.evaluating import evaluate
from m2kit.cli.generating import generate
from m2kit.cli.health import doctor
from m2kit.cli.imaging import convert_tokens, decode, reconstruct
from m2kit.cli.reporting import inspect, verify
from m2kit.cli.sampling_sets import sample
from m2kit.cli.serving import serve
from m2kit.cli.training import train


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


cli.add_sections(
    {
        "Make a checkpoint": (train, init_checkpoint),
        "Build an engine from it": (export, build_engine),
        "Use the engine": (generate, serve, sample, encode, decode, reconstruct, convert_tokens),
        "Look, check and measure": (describe, evaluate, inspect, verify, doctor, bench),
    }
)


def main() -> None:
    """Run it; SIGTERM, and SIGHUP of a terminal that is closed, unwinds like an exception, so that
    temporary folders are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    cli.main(prog_name="m2kit")
