"""Every command and snippet of the README runs as written."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, picture

from m2kit.cli import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_commands_and_the_snippet_run_in_the_order_they_stand(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    ran = [line for line in lines if line.startswith("m2kit ")]
    assert len(ran) >= 3
    for line in ran:
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
            timeout=300,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (snippet,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_make_target_it_names_exists():
    named = set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), target


def test_every_file_it_names_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    assert len(README.splitlines()) <= 200


def test_its_figures_are_those_of_the_shipped_checkpoint():
    pytest.importorskip("torch")
    from m2kit.training.checkpoints.reading import read_checkpoint

    training = read_checkpoint(ROOT / "examples" / "digits" / "digits.pt").training
    held_out, own = training["held_out_bits_per_token"], training["training_bits_per_token"]
    assert f"| {held_out:.3f} / {own:.3f} |" in README


def test_its_picture_is_what_the_demo_draws(digits_engine):
    import m2kit
    from m2kit.images import write_grid

    with m2kit.open_engine(digits_engine) as engine, tempfile.TemporaryDirectory() as folder:
        tokens = engine.sample(np.arange(10).repeat(8), m2kit.Sampling(seed=1))
        write_grid(Path(folder) / "digits.png", engine.decode(tokens), columns=8)
        drawn = picture(Path(folder) / "digits.png").astype(int)
    shown = picture(ROOT / "docs" / "images" / "digits.png").astype(int)
    assert np.abs(drawn - shown).max() <= 1  # one grey level: another machine may round otherwise


def test_the_commands_of_the_docs_have_the_options_they_name():
    """docs/jetson.md cannot be run here; a mistyped option would still be seen."""
    found = 0
    for name in ("checkpoints.md", "jetson.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL))
        lines = re.findall(r"^ *(m2kit .*)$", fenced, flags=re.MULTILINE)
        lines += re.findall(r"^ +(m2kit .*)$", text, flags=re.MULTILINE)
        lines += re.findall(r"`(m2kit [^`]+)`", text)
        for line in lines:
            words = shlex.split(line, comments=True)
            if len(words) < 3:
                continue
            command = cli.commands[words[1]]
            command.make_context(words[1], words[2:]).close()
            found += 1
    assert found >= 8
