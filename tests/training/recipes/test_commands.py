import json
import os
import signal

from click.testing import CliRunner

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
    assert "must leave whole latent positions" in err
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
