"""examples/serving: images and unit name what is there, and commands that this m2kit has."""

import json
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser

import pytest
from conftest import ROOT

from m2kit.cli import cli

FOLDER = ROOT / "examples" / "serving"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))
UNIT = FOLDER / "m2kit-serve.service"


def joined(path):
    """The text of a file, its continued lines joined."""
    return re.sub(r"\\\n(?:# )?", " ", path.read_text(encoding="utf-8"))


def parse(words):
    """The options of a command of m2kit."""
    return cli.commands[words[0]].make_context(words[0], list(words[1:])).params


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_serves_an_engine_with_keys(path):
    text = joined(path)
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, flags=re.MULTILINE)
    assert json.loads(entry) == ["m2kit"]
    (command,) = re.findall(r"^CMD (.*)$", text, flags=re.MULTILINE)
    options = parse(json.loads(command))
    assert options["host"] == "0.0.0.0" and str(options["api_key_file"]) == "/keys.txt"
    assert f"EXPOSE {options['port']}" in text and "/engine:ro" in text
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, flags=re.MULTILINE)
    compile(json.loads(check)[2], "health check", "exec")
    (stop,) = re.findall(r"--stop-timeout (\d+)", text)
    assert int(stop) > options["drain"]
    extras = re.search(r"whl\)\[([\w,]+)\]", text).group(1).split(",")
    known = re.findall(r"^(\w+) =", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert set(extras) <= set(known)
    for source in re.findall(r"^COPY (?!--)(\S+) ", text, flags=re.MULTILINE):
        assert (ROOT / source).exists()
    for named in re.findall(r"build -f (\S+)", text):
        assert named == str(path.relative_to(ROOT))


def test_the_image_of_a_gpu_says_that_it_was_not_run_and_how_an_engine_is_built():
    text = joined(FOLDER / "Dockerfile.nvidia")
    assert "NEVER RUN" in text and "--gpus all" in text
    (command,) = re.findall(r"(build-engine .*?)\n", text)
    assert parse(shlex.split(command))["backend"] == "tensorrt"


def unit():
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(joined(UNIT))
    return parser


def test_the_unit_runs_a_command_that_parses_and_waits_longer_than_it_drains():
    service = unit()["Service"]
    program, *words = shlex.split(service["ExecStart"])
    options = parse(words)
    assert program.endswith("/m2kit") and options["host"] == "127.0.0.1"
    assert str(options["api_key_file"]) == "${CREDENTIALS_DIRECTORY}/keys"
    assert service["LoadCredential"].startswith("keys:")
    assert int(service["TimeoutStopSec"]) > options["drain"]
    assert service["KillSignal"] == "SIGTERM" and service["Restart"] == "on-failure"
    assert service["SuccessExitStatus"] == "143"  # which m2kit ends with on SIGTERM


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_accepts_the_unit(tmp_path):
    text = UNIT.read_text().replace("/opt/m2kit/bin/m2kit", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True
    )
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr
