"""Where commands may write: what cannot be an output is said before anything is read."""

import click
import pytest
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT

from m2kit.cli import cli


def commands(group=cli, prefix=()):
    """(words, command) of every command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


OUTPUTS = [
    (words, option.opts[0])
    for words, command in commands()
    for option in command.params
    if option.name == "output" or option.opts[0] == "--plot"
]


@pytest.mark.parametrize(("words", "option"), OUTPUTS, ids=str)
@pytest.mark.parametrize("value", ["", "-"])
def test_no_command_takes_nothing_or_standard_output_for_a_path(words, option, value):
    result = CliRunner().invoke(cli, [*words, option, value])
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert f"expected the name of a file or folder, found '{value}'" in last


@pytest.fixture
def untouched(exported, monkeypatch, tmp_path):
    """A working directory with files of somebody and a bundle, in which nothing can be read that
    takes long."""
    (tmp_path / "digits.bundle").symlink_to(exported(DIGITS_CHECKPOINT)[0])

    def read(*_, **__):
        raise AssertionError("read before the output was checked")

    for name in (
        "m2kit.training.checkpoints.reading.read_checkpoint",
        "m2kit.training.recipes.ar.read_checkpoint",
        "m2kit.training.checkpoints.random_weights._draw",
        "m2kit.training.datasets.dataset.DataSet.load",
        "m2kit.engines.building.check_folder",
        "m2kit.cli.imaging.read_tokens",
    ):
        monkeypatch.setattr(name, read)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "app.js").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LONG = "x" * 300
FILES = ("file/x.npz", f"{LONG}.npz", f"new/{LONG}/x.npz")


@pytest.mark.parametrize(
    ("command", "outputs"),
    [
        (("export", "--ckpt", DIGITS_CHECKPOINT), ("file", "folder", "file/x", LONG)),
        (("build-engine", "--backend", "onnxruntime"), ("file", "folder", "file/x", LONG)),
        (("init-checkpoint", "--preset", "ar-b"), ("file", "folder", *FILES)),
        (("train", "tokenizer"), ("file", "file/x", LONG)),
        (("train", "ar", "--tokenizer", DIGITS_CHECKPOINT), ("file", "file/x", LONG)),
        (("convert-tokens", "file", "--bits", "8", "--bit-order", "lsb"), FILES),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_what_cannot_be_written_is_said_before_anything_is_read(untouched, command, outputs):
    before = sorted(untouched.rglob("*"))
    for output in outputs:
        result = CliRunner().invoke(cli, [*map(str, command), "-o", output])
        assert result.exit_code == 1, result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert "choose" in line
        assert sorted(untouched.rglob("*")) == before
