import json
import os
import shutil
import signal

import pytest
from click.testing import CliRunner
from PIL import Image

from m2kit.cli import cli
from m2kit.training.recipes.tokenizer import TokenizerRecipe


def run_cli(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_of_the_example_train_and_refuse_what_cannot_be(tmp_path, few):
    run = tmp_path / "tokenizer"
    code, _, err = run_cli(
        "train", "tokenizer", "--data", "few", "--channel-multipliers", "1" + 6 * ",1", "-o", run
    )
    assert (code, run.exists()) == (1, False), err
    assert "image sides must be multiples of 64, found 32 x 32" in err
    code, out, err = run_cli(
        "train", "tokenizer", "--data", "few", "--epochs", 1, "--no-progress", "-o", run
    )
    assert code == 0, err
    assert "codebook usage" in out
    code, out, err = run_cli(
        "train",
        "ar",
        "--data",
        "few",
        "--tokenizer",
        run / "tokenizer.pt",
        "--epochs",
        1,
        "--versions",
        2,
        "--no-progress",
        "-o",
        tmp_path / "ar",
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["guidance"] == [2.0, 2.0]
    for option, value in (("--dropout", 1.5), ("--ema-decay", 1), ("--seed", 2**40)):
        code, _, err = run_cli("train", "ar", option, value)
        assert code == 2
        assert "is not in the range" in err


def test_a_training_stopped_by_ctrl_c_has_the_status_of_an_interrupt(tmp_path, few, monkeypatch):
    losses = TokenizerRecipe._generator_losses

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return losses(*arguments)

    monkeypatch.setattr(TokenizerRecipe, "_generator_losses", interrupted)
    run, heeded = tmp_path / "run", signal.getsignal(signal.SIGINT)
    code, _, err = run_cli("train", "tokenizer", "--data", "few", "--no-progress", "-o", run)
    assert code == 130, err
    assert f"interrupted after step 1 of 48; {run} holds the run: resume it" in " ".join(
        err.split()
    )
    assert signal.getsignal(signal.SIGINT) is heeded


@pytest.fixture
def with_a_broken_one(tmp_path):
    """Twelve pictures, of which the second one is cut off."""
    for index in range(12):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index, 9, 9)).save(path)
        if index == 1:
            path.write_bytes(path.read_bytes()[:50])
    return tmp_path / "data"


def train(data, run, *arguments):
    return run_cli(
        "train", "tokenizer", "--data", data, "--size", 16, "--batch", 2, "--steps", 3,
        "--channel-multipliers", 1, "--code-bits", 4, "--no-progress", "-o", run, *arguments,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_is_told_at_the_end_of_a_training(tmp_path, with_a_broken_one, workers):
    code, _, err = train(with_a_broken_one, tmp_path / "run", "--workers", workers)
    assert code == 0, err
    told = "1 picture could not be read, and the next ones stood in for them: "
    assert err.splitlines()[-1] == f"{told}{with_a_broken_one / 'b' / '1.png'}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_vanishes_while_it_is_read_is_one_line(
    tmp_path, with_a_broken_one, workers, monkeypatch
):
    losses = TokenizerRecipe._generator_losses

    def removed(*arguments):
        shutil.rmtree(with_a_broken_one, ignore_errors=True)
        return losses(*arguments)

    monkeypatch.setattr(TokenizerRecipe, "_generator_losses", removed)
    code, _, err = train(with_a_broken_one, tmp_path / "run", "--steps", 50, "--workers", workers)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("error: none of the ")
    assert "pictures can be read; of the first: " in line


def test_a_data_set_whose_held_out_half_is_broken_is_refused_before_it_trains(
    tmp_path, with_a_broken_one
):
    shutil.copytree(with_a_broken_one, tmp_path / "halves" / "train")
    shutil.copytree(with_a_broken_one, tmp_path / "halves" / "val")
    for path in (tmp_path / "halves" / "val").rglob("*.png"):
        path.write_bytes(b"")
    code, _, err = train(tmp_path / "halves", tmp_path / "run")
    assert (code, (tmp_path / "run").exists()) == (1, False)
    assert err.startswith("error: none of the 12 pictures can be read; of the first: ")
