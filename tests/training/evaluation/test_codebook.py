"""The codebook report of a data set, through `m2kit describe`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT
from PIL import Image

from m2kit.cli import cli
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.datasets.digits import DIGITS

DEAD, TWINS = 3, (1, 6)
PICTURES = 60


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def describe(*arguments):
    code, out, err = run("describe", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An .npz of some digits."""
    whole = DIGITS.load().train
    images = [np.asarray(whole.read(index)) for index in range(PICTURES)]
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    labels, names = whole.labels[:PICTURES], [str(digit) for digit in range(10)]
    np.savez(path, images=np.stack(images), labels=labels, categories=np.array(names))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The example's tokenizer with a bit that is always -1 and one that is always another's
    opposite."""
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    tensors = model_from_checkpoint(checkpoint).tokenizer.state_dict()
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        tensors[name] = tensors[name].clone()
        tensors[name][TWINS[1]] = -tensors[name][TWINS[0]]
        tensors[name][DEAD] = -1.0 if name.endswith("bias") else 0.0
    path = tmp_path_factory.mktemp("planted") / "tokenizer.pt"
    spec = {"tokenizer": checkpoint.spec.to_json()["tokenizer"], "transformer": None}
    write_tokenizer_checkpoint(path, tensors, tensors, ema_decay=0.9, notes={"spec": spec})
    return path


def test_a_planted_dead_bit_and_two_that_go_together_are_found(planted, pictures):
    value = describe(planted, "--data", pictures)
    report = value["codebook_report"]
    assert (value["pictures"], value["unread_pictures"]) == (PICTURES, 0)
    assert report["tokens"] == PICTURES * 16
    assert report["dead_bits"] == [DEAD]
    assert report["ones"][DEAD] == 0
    strongest = report["correlated_bits"][0]
    assert (strongest["first"], strongest["second"]) == TWINS
    assert strongest["correlation"] == pytest.approx(-1)
    assert report["codes"] == 256
    assert report["used"] <= 64 < report["expected_used"]
    code, out, err = run("describe", planted, "--data", pictures)
    assert code == 0, err
    shown = " ".join(out.split())
    assert f"dead bits {DEAD} (always -1)" in shown
    assert "most correlated bits 1 and 6 (-1.000)" in shown


def test_checkpoint_bundle_engine_and_token_file_give_one_report(tmp_path, pictures, exported):
    bundle, engine = exported(DIGITS_CHECKPOINT)
    of_checkpoint = describe(DIGITS_CHECKPOINT, "--data", pictures)["codebook_report"]
    assert of_checkpoint["dead_bits"] == []
    for folder in (bundle, engine):
        found = describe(folder, "--data", pictures)["codebook_report"]
        assert found["ones"] == pytest.approx(of_checkpoint["ones"], abs=0.002)
        assert found["perplexity"] == pytest.approx(of_checkpoint["perplexity"], rel=0.01)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, pixels in enumerate(np.load(pictures)["images"]):
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    tokens = tmp_path / "tokens.npz"
    code, _, err = run("encode", folder, "--engine", engine, "-o", tokens)
    assert code == 0, err
    value = describe(tokens)
    assert value["grid"] == [4, 4]
    assert value["codebook_report"] == describe(engine, "--data", pictures)["codebook_report"]


def test_pictures_that_cannot_be_read_are_counted_and_the_others_scaled(tmp_path, digits_engine):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            noise = np.random.default_rng(index).integers(0, 256, (40, 56, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{index}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    value = describe(digits_engine, "--data", tmp_path)
    assert (value["pictures"], value["unread_pictures"]) == (5, 1)
    assert value["codebook_report"]["tokens"] == 5 * 16
    bigger = describe(digits_engine, "--data", tmp_path, "--size", 40)
    assert bigger["codebook_report"]["tokens"] == 5 * 25
    for name in ("a", "b"):
        for path in (tmp_path / name).iterdir():
            path.write_bytes(b"no picture")
    code, _, err = run("describe", digits_engine, "--data", tmp_path)
    assert (code, "none of the 6 pictures" in err) == (1, True), err


def test_what_encodes_no_pictures_and_sizes_that_do_not_fit_are_refused(
    tmp_path, digits_engine, planted, pictures
):
    refused = {
        ("ar-l", "--data", pictures): "ar-l encodes no pictures",
        (digits_engine, "--size", 32): "which is not given",
        (digits_engine, "--data", pictures, "--size", 30): "divides images by 8 x 8",
    }
    (tmp_path / "a").mkdir()
    for index, size in enumerate([(16, 16), (24, 24)]):
        Image.new("RGB", size).save(tmp_path / "a" / f"{index}.png")
    refused[planted, "--data", tmp_path] = "are of several sizes; name the one to take"
    for arguments, words in refused.items():
        code, _, err = run("describe", *arguments)
        assert (code, words in " ".join(err.split())) == (1, True), err
