"""The command line, end to end and in one process."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT, GOLDEN, picture, run_m2kit
from PIL import Image

from m2kit.cli import cli


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def m2kit(*arguments):
    """Run in this process: (exit code, stdout, stderr)."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def succeeds(*arguments):
    code, out, err = m2kit(*arguments)
    assert code == 0, err
    return out


def fails(*arguments, status=1):
    code, out, err = m2kit(*arguments)
    assert code == status, (out, err)
    return err


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), list(commands(cli)), ids=lambda v: str(v)[:40])
def test_every_command_and_option_has_help(path, command):
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
    assert "Usage:" in succeeds(*path, "--help")


def test_three_lines_from_a_checkpoint_to_images(here):
    shutil.copy(DIGITS_CHECKPOINT, here / "digits.pt")
    succeeds("export", "--ckpt", "digits.pt")
    succeeds("build-engine")
    succeeds(
        "generate",
        "--engine",
        "digits.engine",
        "--class",
        "7",
        "-n",
        "8",
        "--seed",
        "1",
        "-o",
        "samples.png",
    )
    assert picture("samples.png").shape == (32, 8 * 34 - 2, 3)
    assert sorted(p.name for p in here.iterdir()) == [
        "digits.bundle",
        "digits.engine",
        "digits.pt",
        "samples.png",
    ]


def test_generate_without_a_class_draws_a_row_for_each_of_ten(here, digits_engine):
    out = succeeds("generate", "--engine", digits_engine, "-n", "2", "--json")
    assert json.loads(out)["classes"] == list(range(10))
    assert picture("samples.png").shape == (10 * 34 - 2, 2 * 34 - 2, 3)


def test_a_set_can_be_drawn_in_shards_and_batches(here, digits_engine):
    common = ("generate", "--engine", digits_engine, "--class", "3", "--seed", "9")
    succeeds(*common, "-n", "6", "--tokens", "all.npz", "--batch", "4")
    succeeds(*common, "-n", "2", "--first-image", "4", "--tokens", "tail.npz")
    whole, tail = np.load("all.npz")["ids"], np.load("tail.npz")["ids"]
    np.testing.assert_array_equal(whole[4:], tail)


def test_sampling_options_reach_the_sampler(here, digits_engine):
    def ids(*options):
        succeeds(
            "generate",
            "--engine",
            digits_engine,
            "--class",
            "1,2",
            "-n",
            "2",
            "--tokens",
            "a.npz",
            *options,
        )
        return np.load("a.npz")["ids"]

    base = ids()
    greedy = ids("--greedy")
    assert (greedy[0] == greedy[1]).all()
    np.testing.assert_array_equal(ids("--top-k", "1"), greedy)
    np.testing.assert_array_equal(ids("--top-p", "1e-9,1e-9"), greedy)
    for options in (["--seed", "1"], ["--guidance", "1.0"], ["--temperature", "0.3,2"]):
        assert (ids(*options) != base).any(), options


def test_images_survive_encode_decode_and_reconstruct(here, digits_engine):
    succeeds("generate", "--engine", digits_engine, "--class", "4", "-n", "1", "--tokens", "t.npz")
    succeeds("decode", "t.npz", "--engine", digits_engine)
    np.testing.assert_array_equal(picture("samples.png"), picture("decoded.png"))
    out = succeeds(
        "encode", "samples.png", "samples.png", "--engine", digits_engine, "--json", "-o", "u.npz"
    )
    assert json.loads(out)["grid"] == [4, 4]
    assert np.load("u.npz")["ids"].shape == (2, 4, 4, 2)
    out = succeeds("reconstruct", "samples.png", "--engine", digits_engine, "--json")
    assert json.loads(out)["psnr_db"] > 15
    assert picture("reconstruction.png").shape == (66, 32, 3)


def test_verify_inspect_and_describe_tell_the_truth(here, digits_engine, exported):
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    for path in (bundle, digits_engine):
        assert json.loads(succeeds("verify", path, "--json"))["passed"]
        value = json.loads(succeeds("inspect", path, "--json"))
        assert value["files"]["weights.bin"]["bytes"] == (path / "weights.bin").stat().st_size
        assert "MatMul" in succeeds("inspect", path)
    about = json.loads(succeeds("describe", digits_engine, "--json"))
    assert about["training codebook usage"] == 1.0
    assert about["default guidance"] == [2.0, 2.0]
    checkpoint = json.loads(succeeds("describe", DIGITS_CHECKPOINT, "--json"))
    assert {name: about[name] for name in checkpoint} == checkpoint
    assert json.loads(succeeds("describe", "ar-b", "--json"))["transformer width"] == 1024
    assert "or one of the presets tokenizer-128, " in fails("describe", "nothing")


def test_without_an_argument_what_was_found_is_listed(here, exported):
    assert "no bundle in this directory" in fails("build-engine")
    assert "no engine in this directory" in fails("generate")
    bundle, engine = exported(GOLDEN / "ar_tiny.ckpt", heads=4)
    for name in ("a", "b"):
        shutil.copytree(bundle, here / f"{name}.bundle")
        shutil.copytree(engine, here / f"{name}.engine")
    assert "name one of a.bundle, b.bundle" in fails("build-engine")
    assert "name one of a.engine, b.engine" in fails("generate")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--class", "10"], "class 10 is out of range: this model has classes 0..9"),
        (["generate", "--class", "99999999999999999999"], "is out of range"),
        (["generate", "--class", "-1"], "class -1 is out of range"),
        (["generate", "--class", "cat"], "--class takes class numbers"),
        (["generate", "--guidance", "1,2,3"], "each of the 2 sub-tokens; found 3"),
        (["generate", "--temperature", "0"], "temperature must be"),
        (["generate", "--seed", "18446744073709551616"], "seed must be a whole number"),
        (["generate", "--first-image", "18446744073709551615"], "--first-image"),
        (["generate", "-o", "a.jpg", "--class", "1", "-n", "1"], "ending in .png"),
        (["encode", "odd.png"], "multiples of 8, found 30 x 32"),
        (["encode", "small.png"], "single latent position"),
        (["encode", "none.png"], "no such image"),
        (["reconstruct", "small.png", "odd.png"], "must have one size"),
        (["decode", "none.npz"], "no such token file"),
        (["decode", "odd.png"], "expected a token file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(here, digits_engine, arguments, words):
    Image.new("RGB", (32, 30)).save("odd.png")
    Image.new("RGB", (8, 8)).save("small.png")
    before = sorted(here.iterdir())
    error = fails(*arguments, "--engine", digits_engine)
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_mistyped_options_exit_with_2(here, digits_engine):
    assert "No such option" in fails("generate", "--clas", "1", status=2)
    assert "expected float numbers" in fails("generate", "--guidance", "x", status=2)
    assert "Missing option '--ckpt'" in fails("export", status=2)
    assert "No such command" in fails("exprot", status=2)


def test_a_missing_extra_is_named_with_its_cure(here, digits_engine):
    """In a process where torch cannot be imported."""
    (here / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    done = run_m2kit(
        "export", "--ckpt", DIGITS_CHECKPOINT, cwd=here, check=False, env={"PYTHONPATH": str(here)}
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: export needs the package torch, which is not installed here: "
        "pip install 'm2kit[export,cpu]'"
    )


def test_an_engine_built_inside_a_bundle_folder_is_named_after_it(here, exported, monkeypatch):
    bundle = shutil.copytree(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0], here / "a.bundle")
    monkeypatch.chdir(bundle)
    assert "a.engine" in succeeds("build-engine", ".")


def test_a_tokenizer_engine_does_not_generate(here, exported):
    engine = exported(GOLDEN / "tokenizer_tiny.ckpt")[1]
    for more in ([], ["--class", "1"]):
        assert "tokenizer only" in fails("generate", "--engine", engine, *more)


def test_describe_takes_what_a_checkpoint_does_not_tell(here):
    assert "give --spec FILE.json" in fails("describe", GOLDEN / "ar_tiny.ckpt")
    out = succeeds("describe", GOLDEN / "ar_tiny.ckpt", "--spec", '{"heads": 4}', "--json")
    assert json.loads(out)["transformer heads"] == 4
    for spec in ('{"heads": 4, "grid": 4}', '{"heads": 4, "rope_base": "x"}', "none.json"):
        fails("describe", GOLDEN / "ar_tiny.ckpt", "--spec", spec)
