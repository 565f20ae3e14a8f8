"""How the command line behaves towards terminals, shells, full disks and impatient users."""

import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from conftest import run_m2kit

from m2kit.cli import cli

ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
]
DRAW = ("generate", "--class", "1", "-n", "1", "--engine")


def raw(*arguments, cwd, env=None, **options):
    """Run, with arguments and output as bytes."""
    return subprocess.run(
        [sys.executable, "-m", "m2kit", *map(os.fsencode, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        stderr=subprocess.PIPE,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["describe", "ar-l"], ["--version"]]
)
def test_output_to_a_full_disk_is_one_line(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        done = raw(*arguments, cwd=tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"error: cannot read or write: No space left on device\n"


def test_errors_that_nobody_can_be_told_still_have_their_status(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "m2kit", "describe", "nothing"]
        assert subprocess.run(command, cwd=tmp_path, stderr=full).returncode == 1


def test_a_reader_that_has_had_enough_ends_it_in_silence(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = raw("describe", "ar-l", cwd=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("env", ASCII, ids=["encoding", "locale"])
def test_what_an_ascii_terminal_cannot_show_is_escaped(env, tmp_path, digits_engine):
    folder = tmp_path / "é"
    folder.mkdir()
    (folder / "digits.engine").symlink_to(digits_engine)
    engine = "é/digits.engine".encode()
    done = raw(*DRAW, engine, "-o", "é/→.png".encode(), cwd=tmp_path, env=env, stdout=-1)
    assert done.returncode == 0, done.stderr
    assert re.search(rb"output +(\\xe9/\\u2192|\xc3\xa9/\xe2\x86\x92)\.png", done.stdout)
    assert (folder / "→.png").is_file()
    done = raw("describe", "é→".encode(), cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert re.match(rb"error: (\\xe9\\u2192|\xc3\xa9\xe2\x86\x92): expected a ch", done.stderr)


def test_paths_that_are_not_utf_8_are_taken_and_shown_as_they_are(tmp_path, digits_engine):
    done = raw(*DRAW, digits_engine, "-o", b"\xff.png", cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert b"output             \xff.png" in done.stdout
    done = raw("encode", b"\xff.png", "--engine", digits_engine, "-o", b"\xff.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = raw("describe", b"\xff", cwd=tmp_path, env={"PYTHONIOENCODING": "utf-16"})
    assert done.stderr.decode("utf-16").startswith(r"error: \udcff: expected a checkpoint file")
    done = raw("describe", b"\xff", cwd=tmp_path)
    assert done.stderr.startswith(b"error: \xff: expected a checkpoint file")
    os.symlink(os.fsencode(digits_engine), os.fsencode(tmp_path) + b"/\xff.engine")
    done = raw(*DRAW, b"\xff.engine", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"error: \xff.engine/")
    assert last.endswith(b"ONNX Runtime opens no path that is not UTF-8; rename it")


def test_names_mean_themselves_in_a_table(tmp_path, digits_engine):
    done = run_m2kit(*DRAW, digits_engine, "-o", "[red]a:smile:.png", cwd=tmp_path)
    assert "[red]a:smile:.png" in done.stdout


def starting(text, tmp_path):
    """Run --version where importing click does this first."""
    (tmp_path / "click.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return raw("--version", cwd=tmp_path, env={"PYTHONPATH": path}, **heed)


def test_an_interrupt_while_it_starts_is_no_traceback(tmp_path):
    done = starting("import os, signal; os.kill(os.getpid(), signal.SIGINT); 1 / 0", tmp_path)
    assert (done.returncode, done.stderr) == (130, b"")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise MemoryError", b"out of memory"),
        (
            "try:\n    raise ImportError('a.so: failed to map segment')\n"
            "except ImportError:\n    raise ImportError('a page\\nof advice')",
            b"a.so: failed to map segment",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(text, told, tmp_path):
    done = starting(text, tmp_path)
    assert (done.returncode, done.stderr) == (1, b"error: m2kit cannot start: " + told + b"\n")


@pytest.mark.parametrize("megabytes", [60, 150, 210, 250])
def test_a_low_limit_of_memory_is_no_traceback(megabytes, tmp_path, digits_engine):
    limit = (megabytes * 1024**2,) * 2
    done = raw(
        *DRAW, digits_engine, cwd=tmp_path, stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    if done.returncode == 1:
        assert b"rror: " in done.stderr.splitlines()[-1]


def test_an_interrupted_command_has_the_status_of_an_interrupt(monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("m2kit.cli.reporting.kind_of_folder", interrupted)
    done = CliRunner().invoke(cli, ["verify", "x"])
    assert (done.exit_code, done.stderr.strip()) == (130, "error: interrupted")


def test_quiet_leaves_results_and_errors(tmp_path, digits_engine):
    for arguments in (("-q", *DRAW, digits_engine), (*DRAW, digits_engine, "--quiet")):
        done = run_m2kit(*arguments, cwd=tmp_path)
        assert done.stderr == ""
        assert "samples.png" in done.stdout
    assert run_m2kit(*DRAW, "x", "-q", cwd=tmp_path, check=False).stderr.startswith("error: ")


def test_verbose_tells_how_long_each_stage_took(tmp_path, digits_engine):
    done = run_m2kit("verify", digits_engine, "--verbose", cwd=tmp_path)
    first, second = done.stderr.splitlines()[:2]
    assert first == "hashing every file ..."
    assert re.fullmatch(r"hashing every file: \d+\.\d\d s", second)
    assert " s\n" not in run_m2kit("verify", digits_engine, cwd=tmp_path).stderr
    done = run_m2kit("-q", "verify", "-v", digits_engine, cwd=tmp_path, check=False)
    assert (done.returncode, "exclude each other" in done.stderr) == (2, True)


def test_help_lists_the_commands_in_the_order_of_the_work_in_whole_sentences():
    for columns in ("60", "100", "300"):
        text = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": columns}).stdout
        listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", text, flags=re.MULTILINE)
        assert listed == list(cli.commands)
        order = ["Make", "train", "Build", "export", "build-engine", "Use", "generate", "Look"]
        places = [re.search(rf"^ *{word}\b", text, flags=re.MULTILINE).start() for word in order]
        assert places == sorted(places)
        assert "..." not in text.split("Make a checkpoint")[1]
    text = CliRunner().invoke(cli, ["train", "--help"]).stdout
    assert text.index("  tokenizer ") < text.index("  ar ")


def test_a_shell_completes_commands_and_options(tmp_path):
    def completed(words, last):
        env = {"_M2KIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(last)}
        return run_m2kit(cwd=tmp_path, env=env).stdout.split()

    assert completed("m2kit gen", 1) == ["plain,generate"]
    assert "plain,--first-image" in completed("m2kit generate --f", 2)
    shown = run_m2kit(cwd=tmp_path, env={"_M2KIT_COMPLETE": "zsh_source"}).stdout
    assert "#compdef m2kit" in shown


def test_no_table_shows_a_none(tmp_path, digits_engine):
    for arguments in (
        (*DRAW, digits_engine),
        ("describe", digits_engine),
        ("describe", "tokenizer-128"),
        ("inspect", digits_engine),
        ("verify", digits_engine),
        ("doctor",),
    ):
        assert not re.search(r"\bNone\b", run_m2kit(*arguments, cwd=tmp_path).stdout), arguments
