"""The command line, end to end and in one process."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT, GOLDEN, picture, run_m2kit, tiny_spec
from PIL import Image

from m2kit.cli import cli
from m2kit.config import PRESETS, Preset


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


def test_a_class_looks_the_same_whatever_else_is_drawn(here, digits_engine):
    common = ("generate", "--engine", digits_engine, "-n", "2")
    succeeds(*common, "--class", "5", "-o", "alone.png")
    out = succeeds(*common, "--class", "3,5", "-o", "two.png")
    np.testing.assert_array_equal(picture("two.png")[34:], picture("alone.png"))
    assert "class * 2^32 + 0..1" in out


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


def test_images_of_any_size_are_padded_and_cropped_back(here, digits_engine):
    """30 x 45 at downsampling 8: framed to 32 x 48 in grey, one row above and one below."""
    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    Image.fromarray(colours).resize((45, 30)).save("odd.png")
    framed = np.pad(picture("odd.png"), ((1, 1), (1, 2), (0, 0)), constant_values=128)
    Image.fromarray(framed).save("framed.png")
    succeeds("encode", "odd.png", "--pad", "--engine", digits_engine)
    tokens = np.load("tokens.npz")
    assert tokens["ids"].shape == (1, 4, 6, 2)
    assert tokens["image_size"].tolist() == [30, 45]
    succeeds("encode", "framed.png", "--engine", digits_engine, "-o", "framed.npz")
    same = np.load("framed.npz")["ids"] == tokens["ids"]  # grey is 0 there, 128 is 0.004
    assert same.mean() > 0.9
    succeeds("decode", "tokens.npz", "--engine", digits_engine)
    out = succeeds("reconstruct", "odd.png", "--pad", "--engine", digits_engine, "--json")
    assert json.loads(out)["psnr_db"] > 5
    decoded, rebuilt = picture("decoded.png"), picture("reconstruction.png")
    assert decoded.shape == (30, 45, 3)
    np.testing.assert_array_equal(rebuilt[32:], decoded)
    shown = rebuilt[:30].astype(int) - picture("odd.png")
    assert set(np.unique(shown)) <= {-1, 0}  # pixels are truncated, as officially


def test_transparent_pixels_are_laid_on_the_background(here, digits_engine):
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save("clear.png")
    command = ("reconstruct", "clear.png", "--engine", digits_engine)
    for options, colour in (((), 255), (("--background", "black"), 0)):
        succeeds(*command, *options)
        assert set(np.unique(picture("reconstruction.png")[:16])) == {colour}
    assert "expected a colour such as white or #ff8000" in fails(
        *command, "--background", "whitish", status=2
    )


def test_columns_lay_out_the_grids(here, digits_engine):
    common = ("--engine", digits_engine)
    succeeds(
        "generate", *common, "--class", "1,2", "-n", "3", "--columns", "4", "--tokens", "t.npz"
    )
    grid = picture("samples.png")
    assert grid.shape == (2 * 34 - 2, 4 * 34 - 2, 3)
    succeeds("decode", "t.npz", *common, "--columns", "4", "-o", "d.webp")
    np.testing.assert_array_equal(np.asarray(Image.open("d.webp")), grid)
    names = [f"{i}.png" for i in range(3)]
    for index, name in enumerate(names):
        Image.fromarray(grid[:32, 34 * index : 34 * index + 32]).save(name)
    succeeds("reconstruct", *names, *common, "-o", "row.png")
    succeeds("reconstruct", *names, *common, "--columns", "2", "-o", "two.png")
    row, two = picture("row.png"), picture("two.png")
    assert (row.shape, two.shape) == ((66, 100, 3), (4 * 34 - 2, 66, 3))
    np.testing.assert_array_equal(two[:66], row[:, :66])
    np.testing.assert_array_equal(two[68:, :32], row[:, 68:])
    assert (two[68:, 34:] == 255).all()


def test_tokens_survive_conversion_and_only_the_right_layout_decodes(here, digits_engine):
    succeeds("generate", "--engine", digits_engine, "--class", "4", "-n", "2", "--tokens", "t.npz")
    out = succeeds("convert-tokens", "t.npz", "--bits", "8", "--bit-order", "msb", "--json")
    assert json.loads(out)["from"] == "3,5 lsb"
    assert np.load("converted.npz")["ids"].shape == (2, 4, 4, 1)
    error = fails("decode", "converted.npz", "--engine", digits_engine)
    assert "`m2kit convert-tokens converted.npz --bits 3,5 --bit-order lsb`" in error
    succeeds(
        "convert-tokens", "converted.npz", "--bits", "3,5", "--bit-order", "lsb", "-o", "back.npz"
    )
    np.testing.assert_array_equal(np.load("back.npz")["ids"], np.load("t.npz")["ids"])
    succeeds("decode", "back.npz", "--engine", digits_engine)
    np.testing.assert_array_equal(picture("decoded.png")[:, :32], picture("samples.png")[:, :32])
    error = fails("convert-tokens", "t.npz", "--bits", "9,9", "--bit-order", "msb")
    assert "[9, 9] make up 18 bits, those of the file [3, 5] make up 8 (--bits)" in error


def test_a_random_checkpoint_is_written_once_and_never_over_another(here, monkeypatch):
    """A tiny architecture stands in for the published ones, which take gigabytes."""
    monkeypatch.setitem(PRESETS, "ar-b", Preset(tiny_spec(), (), (1.5, 2.5), (1.0, 1.1)))
    value = json.loads(succeeds("init-checkpoint", "--preset", "ar-b", "--seed", 3, "--json"))
    assert value["checkpoint"] == "ar_b.pt"
    assert value["bytes"] == (here / "ar_b.pt").stat().st_size
    before = (here / "ar_b.pt").read_bytes()
    assert "never replaced" in fails("init-checkpoint", "--preset", "ar-b")
    assert (here / "ar_b.pt").read_bytes() == before
    assert "Missing option '--preset'" in fails("init-checkpoint", status=2)
    assert "ar-xl" in fails("init-checkpoint", "--preset", "ar-m", status=2)
    about = json.loads(succeeds("describe", "ar_b.pt", "--json"))
    assert about["same_as"] == ["ar-b"]
    assert about["default_guidance"] == [1.5, 2.5]
    of_preset = json.loads(succeeds("describe", "ar-b", "--json"))
    assert of_preset.pop("published_split") == []
    assert of_preset == {name: about[name] for name in of_preset}
    succeeds("export", "--ckpt", "ar_b.pt")
    succeeds("build-engine")
    assert json.loads(succeeds("describe", "ar_b.engine", "--json")) == about


def test_export_says_which_weights_it_took(here):
    out = succeeds("export", "--ckpt", GOLDEN / "tokenizer_v01_tiny.ckpt", "-o", "v.bundle")
    assert "ema" in out
    arguments = ["--ckpt", GOLDEN / "ar_tiny.ckpt", "--spec", '{"heads": 4, "grid": [4, 4]}']
    tokenizer = ["--tokenizer", GOLDEN / "tokenizer_tiny.ckpt", "-o", "a.bundle", "--json"]
    value = json.loads(succeeds("export", *arguments, *tokenizer, "--weights", "live"))
    assert value["weights"] == "stored"
    assert value["tokenizer_weights"] == "live"
    assert json.loads(succeeds("describe", "a.bundle", "--json"))["weights"] == "stored"
    assert "not of preset ar-l" in fails(
        "export", "--ckpt", GOLDEN / "ar_tiny.ckpt", "--preset", "ar-l"
    )


def test_options_that_a_target_does_not_take_are_refused(here, digits_engine):
    for target in ("ar-l", digits_engine):
        assert "--preset and --weights say how to read a checkpoint file" in fails(
            "describe", target, "--preset", "ar-b", "--weights", "live"
        )
        assert "--spec say how to read" in fails("describe", target, "--spec", '{"heads": 4}')
    (here / "deep.json").write_text('{"heads": ' + "[" * 100_000)
    for odd in ("deep.json", "/dev/zero", '{"heads": NaN}'):
        assert "--spec: expected JSON or a JSON file" in fails(
            "describe", GOLDEN / "ar_tiny.ckpt", "--spec", odd
        )
    assert "['head']; it takes heads, grid, rope_base, bit_order" in fails(
        "describe", GOLDEN / "ar_tiny.ckpt", "--spec", '{"head": 4}'
    )


def test_describe_gives_the_floor_that_bandwidth_sets(here):
    about = json.loads(succeeds("describe", "ar-b", "--bandwidth", "102", "--json"))
    moved = about["float32_weight_bytes_per_position"]
    assert about["float16_weight_bytes_per_position"] * 2 == moved
    floor = about["float32_bandwidth_floor_s_per_image"]
    assert floor == pytest.approx(256 * moved / 102e9, rel=1e-3)
    assert "bandwidth_gb_s" not in json.loads(succeeds("describe", "tokenizer-128", "--json"))


def test_verify_inspect_and_describe_tell_the_truth(here, digits_engine, exported):
    bundle = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]
    for path in (bundle, digits_engine):
        assert json.loads(succeeds("verify", path, "--json"))["passed"]
        value = json.loads(succeeds("inspect", path, "--json"))
        assert value["files"]["weights.bin"]["bytes"] == (path / "weights.bin").stat().st_size
        assert "MatMul" in succeeds("inspect", path)
    about = json.loads(succeeds("describe", digits_engine, "--json"))
    assert about["training_codebook_usage"] == 1.0
    assert about["default_guidance"] == [2.0, 2.0]
    checkpoint = json.loads(succeeds("describe", DIGITS_CHECKPOINT, "--json"))
    assert {name: about[name] for name in checkpoint} == checkpoint
    assert json.loads(succeeds("describe", "ar-b", "--json"))["transformer_width"] == 1024
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
        (["generate", "--class", "cat"], "expected class numbers"),
        (["generate", "--guidance", "1,2,3"], "each of the 2 sub-tokens; found 3"),
        (["generate", "--temperature", "0"], "temperature must be"),
        (["generate", "--seed", "18446744073709551616"], "seed must be a whole number"),
        (["generate", "--first-image", "18446744073709551615"], "--first-image"),
        (["generate", "-o", "a.gif", "--class", "1", "-n", "1"], "ending in .png, .jpg"),
        (["generate", "-n", "1000000000"], "or write each into a folder (-o NAME, without suffix)"),
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
        "pip install '.[export,cpu]' in the clone of m2kit"
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
    assert "or --spec FILE.json" in fails("describe", GOLDEN / "ar_tiny.ckpt")
    out = succeeds("describe", GOLDEN / "ar_tiny.ckpt", "--spec", '{"heads": 4}', "--json")
    assert json.loads(out)["transformer_heads"] == 4
    for spec in ('{"heads": 4, "grid": 4}', '{"heads": 4, "rope_base": "x"}', "none.json"):
        fails("describe", GOLDEN / "ar_tiny.ckpt", "--spec", spec)
