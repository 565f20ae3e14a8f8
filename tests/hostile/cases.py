"""Hostile commands: every option with what it does not take, and paths and environments as no
friend would have them; files.py has pictures and token files. A generator: the same cases every
time.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from m2kit.cli import cli

ENGINE, BUNDLE, CHECKPOINT = "../m.engine", "../m.bundle", "../m.ckpt"
SPEC = ("--spec", '{"heads": 4}')
Prepare = Callable[[Path], None]


def _nothing(folder: Path) -> None:
    """Most cases need no file of their own."""


@dataclass(frozen=True, slots=True)
class Case:
    """A command to run in a folder full of things that are not its own.

    Attributes:
        name: What is odd about it.
        arguments: After `m2kit`.
        refused: Whether it must fail; None where both are sound.
        prepare: Makes its input, in the folder.
        environment: What is set for it.
        shell: Where given, what runs before `m2kit ARGUMENTS` in a shell of its own, with "$@" the
            command.
    """

    name: str
    arguments: tuple[str, ...]
    refused: bool | None = None
    prepare: Prepare = _nothing
    environment: tuple[tuple[str, str], ...] = ()
    shell: str = ""


# A whole, quick, right command of each; what is made is named out, out.png or out.npz.
RIGHT: dict[str, tuple[str, ...]] = {
    "export": ("--ckpt", CHECKPOINT, *SPEC, "-o", "out"),
    "build-engine": (BUNDLE, "--backend", "onnxruntime", "-o", "out"),
    "generate": ("--engine", ENGINE, "--class", "1", "-n", "1", "-o", "out.png"),
    "serve": (ENGINE, "--host", "192.0.2.1"),  # of no machine: else it would serve for ever
    "sample": (ENGINE, "--class", "1", "--per-class", "1", "-o", "out"),
    "encode": ("a.png", "--engine", ENGINE, "-o", "out.npz"),
    "decode": ("t.npz", "--engine", ENGINE, "-o", "out.png"),
    "reconstruct": ("a.png", "--engine", ENGINE, "-o", "out.png"),
    "convert-tokens": ("t.npz", "--bits", "8", "--bit-order", "msb", "-o", "out.npz"),
    "verify": (ENGINE,),
    "inspect": (ENGINE,),
    "describe": (ENGINE,),
    "evaluate reconstruction": (ENGINE, "--data", "digits", "--split", "held-out"),
    "evaluate generation": (ENGINE, "--data", "digits", "--per-class", "1"),
    "evaluate compare": ("missing.json",),
    "doctor": (),
    "bench": ("--engine", ENGINE, "--no-baseline", "--rounds", "1"),
    "init-checkpoint": ("--preset", "tokenizer-128", "-o", "out.pt"),
    "train tokenizer": ("--no-progress", "-o", "out"),
    "train ar": ("--no-progress", "--tokenizer", "../m.ckpt", "-o", "out"),
}
# Commands that would take too long if they were given what they like.
_SLOW = ("bench", "init-checkpoint", "train tokenizer", "train ar")

_NO_NUMBER = (
    "",
    " ",
    "x",
    "--",
    "1 2",
    "1;2",
    "0x1f",
    "1_",
    "½",
    "\udcff",
    "9" * 5000,
    "[1]",
    "None",
)
_NO_INTEGER = (*_NO_NUMBER, "1.5", "nan", "inf", "1e3")
_NO_FLOAT = (*_NO_NUMBER[:-3], "nan", "inf", "-inf", "1e999", "-nan", "NaN", "infinity")
_NO_LIST = (*_NO_NUMBER, ",", "1,", ",1", "1,,2", "1,x", "nan", "inf,1", "-1,-1", "1," * 3000)
_NO_CHOICE = ("", "x", "-", "auto ", "FP16\n", "\udcff", "a" * 5000, "0")
# Paths under which nothing of use is, or nothing that may be read.
NO_INPUT = (
    "", "-", "/", "..", "missing", "missing/", "dangling", "loop", "loop/x", "pipe", "socket",
    "/dev/null", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "notes.txt",
    "notes.txt/x", "empty", "n" * 300, "a/" * 3000, "new\nline", "\udcff\udcfe", "~", "$HOME", "*",
    "file:///etc/passwd", "https://example.invalid/x", "web", "foreign.engine", "decoys",
)  # fmt: skip
# Outputs that are no place to write, are somebody's, or are odd.
OUTPUTS = (
    *NO_INPUT[:2], *NO_INPUT[4:], "dangling/x", "/dev/full", "decoys/precious", "to-decoys",
    "to-decoys/new", "./", "web/", "deep/" * 40 + "x", "\U0001f4a9", "a b", "'", '"', ".hidden",
    "/proc/x", "/sys/x", "-o", "--", "con", "x.", "..x",
)  # fmt: skip


def options() -> Iterator[Case]:
    """Every option and argument of every command with values it does not take."""
    for name, command in _commands():
        right = RIGHT[name]
        yield Case(f"{name}: an unknown option", (*name.split(), *right, "--unknwon"), True)
        yield Case(f"{name}: too many arguments", (*name.split(), *right, "x", "y"), True)
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                yield from _of_option(name, right, option)
    for text in ("", "x", "--x", "-", "--", "generate ", "\udcff", "-hx", "train", "train x"):
        yield Case(f"the command {text!r:.20}", tuple(text.split(" ")), None)


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            for inner, made in command.commands.items():
                yield f"{name} {inner}", made
        else:
            yield name, command


def _of_option(name: str, right: tuple[str, ...], option: click.Option) -> Iterator[Case]:
    flag = max(option.opts, key=len)
    words = name.split()
    if option.is_flag:
        yield Case(f"{name} {flag}=x", (*words, *right, f"{flag}=x"), True)
        return
    yield Case(f"{name} {flag} without a value", (*words, *right, flag), True)
    kind = option.type
    if isinstance(kind, click.Choice):
        wrong: tuple[str, ...] = _NO_CHOICE
    elif isinstance(kind, (click.IntRange, click.types.IntParamType)):
        wrong = (*_NO_INTEGER, *_outside(kind))
    elif isinstance(kind, (click.FloatRange, click.types.FloatParamType)) or kind.name == "real":
        wrong = (*_NO_FLOAT, *_outside(kind))
    elif kind.name == "numbers":
        wrong = _NO_LIST
    else:
        wrong = ()
    for value in wrong:
        yield Case(
            f"{name} {flag} {value[:20]!r}", (*words, *right, flag, value), _refuses(kind, value)
        )
    if "--spec" in option.opts:
        for value in _SPECS:
            yield Case(f"{name} --spec {value[:30]!r}", (*words, *right, "--spec", value), None)
    if "--class" in option.opts:
        for value in _CLASSES:
            yield Case(f"{name} --class {value[:20]!r}", (*words, *right, "--class", value), True)


_SPECS = (
    "", "{", "{}", "[]", "null", '{"heads": 0}', '{"heads": -1}', '{"heads": 1e400}', "[" * 20000,
    '{"heads": NaN}', '{"heads": "4"}', '{"heads": true}', '{"heads": 3}', '{"x": 1}', "/dev/zero",
    "pipe", "notes.txt", "decoys", '{"grid": [0, 0]}', '{"grid": [9e9]}', '{"rope_base": -1}',
    '{"bit_order": "x"}', '{"heads": 4, "heads": 5}', '{"heads": ' + "9" * 5000 + "}",
    '{"rope_base": Infinity}', '{"heads": [4]}', '{"\\ud800": 1}',
)  # fmt: skip
_CLASSES = (
    "", ",", "10", "-1", "1.5", "no such animal", "1,10", "9" * 5000, "\udcff", "nan", "1-", "-",
    "9-1", "0-10", "1--2", "all,x", "0-99999999999999999999",
)  # fmt: skip


def _refuses(kind: click.ParamType, value: str) -> bool | None:
    """What only looks odd may be taken."""
    return None if value in ("½", " ") or (kind.name == "numbers" and value == "-1,-1") else True


def _outside(kind: Any) -> Iterator[str]:
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is not None:
        yield str(low - 1)
    if high is not None:
        yield str(high + 1)
        yield "9" * 40


def paths() -> Iterator[Case]:
    """Inputs and outputs of every kind in every place that takes a path."""
    for name in ("export", "build-engine", "generate", "sample", "encode", "decode",
                 "reconstruct", "convert-tokens", *_SLOW[1:]):  # fmt: skip
        right = RIGHT[name]
        for output in OUTPUTS:
            slow = name in _SLOW or name in ("export", "build-engine")
            if slow and output not in NO_INPUT[:21]:
                continue
            if name in _SLOW and output in ("missing", "missing/", "dangling", "empty"):
                continue
            arguments = (*name.split(), *right[:-1], output)
            yield Case(f"{name} -o {output[:30]!r}", arguments, None)
    for name in ("generate", "encode", "decode", "reconstruct", "bench"):
        for path in NO_INPUT:
            arguments = (name, *RIGHT[name], "--engine", path)
            yield Case(f"{name} --engine {path[:30]!r}", arguments, True)
    for name in ("build-engine", "encode", "decode", "reconstruct", "convert-tokens", "verify",
                 "inspect", "describe"):  # fmt: skip
        for path in NO_INPUT:
            if path in ("", "-", "--") and name == "describe":
                continue
            arguments = (name, *RIGHT[name][1:], "--", path)
            yield Case(f"{name} {path[:30]!r}", arguments, True)
    for path in NO_INPUT:
        yield Case(
            f"export --ckpt {path[:30]!r}", ("export", *RIGHT["export"], "--ckpt", path), True
        )
        yield Case(
            f"train ar --tokenizer {path[:30]!r}",
            ("train", "ar", *RIGHT["train ar"], "--tokenizer", path),
            True,
        )
        yield Case(
            f"generate --tokens {path[:30]!r}",
            ("generate", *RIGHT["generate"], "--tokens", path),
            True,
        )


def make_place(folder: Path) -> None:
    """The things of others that lie where commands are run."""
    (folder / "decoys" / "sub").mkdir(parents=True)
    for name in ("precious", "00001_000000.png", "000000.png", "000000_a.png"):
        (folder / "decoys" / name).write_text(name)
    (folder / "decoys" / "sub" / "x.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("notes")
    (folder / "empty").write_bytes(b"")
    for name in (
        ".notes.tmp-999999.txt",
        ".work.tmp-999999.d",
        ".x.m2kit-12.txt",
        ".m2kit",
        "x.m2kit",
    ):
        (folder / name).write_text(name)
    (folder / "web").mkdir()
    (folder / "web" / "bundle.json").write_text("{}")
    (folder / "web" / "app.js").write_text("code")
    (folder / "foreign.engine").mkdir()
    (folder / "foreign.engine" / "engine.json").write_text('{"kind": "engine"}')
    (folder / "foreign.engine" / "mine.txt").write_text("mine")
    (folder / "dangling").symlink_to("nowhere-at-all")
    (folder / "loop").symlink_to("loop")
    (folder / "to-decoys").symlink_to("decoys")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may have 107 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)


_ENVIRONMENTS: tuple[tuple[str, str], ...] = (
    ("HOME", ""), ("HOME", "/nonexistent"), ("HOME", "/dev/null"), ("HOME", "/proc"),
    ("HOME", "relative"), ("HOME", "\udcff"), ("HOME", "notes.txt"), ("HOME", "loop"),
    ("TMPDIR", "/nonexistent"), ("TMPDIR", ""), ("XDG_CACHE_HOME", "/dev/null"),
    ("XDG_CACHE_HOME", ""), ("COLUMNS", "0"), ("COLUMNS", "1"), ("COLUMNS", "x"),
    ("COLUMNS", "-5"), ("LINES", "x"), ("TERM", "dumb"), ("TERM", ""), ("TERM", "x" * 5000),
    ("NO_COLOR", "1"), ("FORCE_COLOR", "1"), ("LC_ALL", "C"), ("LC_ALL", "POSIX"),
    ("LC_ALL", "xx_YY.x"), ("LANG", ""), ("PYTHONIOENCODING", "ascii"),
    ("PYTHONIOENCODING", "utf-16"), ("PYTHONUTF8", "0"), ("PYTHONWARNINGS", "error"),
    ("PYTHONOPTIMIZE", "2"), ("PYTHONHASHSEED", "1"), ("PYTHONUNBUFFERED", "1"),
    ("OMP_NUM_THREADS", "0"), ("OMP_NUM_THREADS", "x"), ("OMP_NUM_THREADS", "100000"),
    ("MALLOC_ARENA_MAX", "1"), ("CUDA_VISIBLE_DEVICES", "x"), ("LD_LIBRARY_PATH", "/nonexistent"),
    ("PATH", ""), ("USER", ""), ("TZ", "x"), ("ORT_DISABLE_TELEMETRY", "0"), ("DISPLAY", ":9"),
    ("MPLBACKEND", "x"), ("PYTHONSTARTUP", "notes.txt"), ("M2KIT", "x"), ("POSIXLY_CORRECT", "1"),
)  # fmt: skip
_SHELLS = (
    'exec "$@" </dev/null', 'exec "$@" <&-', 'exec "$@" >/dev/full', 'exec "$@" 2>/dev/full',
    'exec "$@" >/dev/full 2>&1', '"$@" | true', '"$@" | head -c 1 >/dev/null', 'exec "$@" >&-',
    'exec "$@" 2>&-', 'exec "$@" >&- 2>&-', "ulimit -f 0; exec \"$@\"", 'ulimit -f 1; exec "$@"',
    'ulimit -n 8; exec "$@"', 'ulimit -n 20; exec "$@"', 'ulimit -c 0; exec "$@"',
    'ulimit -v 60000; exec "$@"', 'ulimit -v 200000; exec "$@"', 'ulimit -v 600000; exec "$@"',
    'ulimit -v 1500000; exec "$@"', 'ulimit -s 256; exec "$@"', 'ulimit -u 1; exec "$@"',
    'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "umask 777; exec \"$@\"",
    'trap "" PIPE; exec "$@"', 'trap "" INT TERM; exec "$@"', 'taskset -c 0 "$@"',
    *(f'timeout -s {name} {after} "$@"' for name in ("INT", "TERM", "HUP", "KILL")
      for after in (0.02, 0.1, 0.3, 0.6, 1)),
)  # fmt: skip


def environments() -> Iterator[Case]:
    """Variables, limits, closed or full outputs, signals: in real processes of their own."""
    commands = (
        ("generate", *RIGHT["generate"]),
        ("--help",),
        ("encode", *RIGHT["encode"]),
        ("inspect", "missing-\u00fc"),
    )
    for name, value in _ENVIRONMENTS:
        for command in commands[:: 1 if name.startswith(("PYTHON", "LC", "HOME")) else 3]:
            yield Case(
                f"{command[0]} with {name}={value[:20]!r}",
                command,
                None,
                environment=((name, value),),
                shell='exec "$@"',
            )
    for shell in _SHELLS:
        for command in commands[:: 1 if "full" in shell or "-v" in shell else 3]:
            yield Case(f"{command[0]} after {shell}", command, None, shell=shell)
