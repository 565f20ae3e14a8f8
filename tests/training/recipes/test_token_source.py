"""Trainings of an AR model from a token cache, without its pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import DIGITS_CHECKPOINT

from m2kit.cli import cli
from m2kit.errors import InputError
from m2kit.progress import silent
from m2kit.runtime.engine import Engine
from m2kit.token_cache import open_cache
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets import encoding
from m2kit.training.datasets.cached import CachedTokens
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.encoding import encode_data
from m2kit.training.datasets.tokens import encoded
from m2kit.training.evaluation import tokenizer as measures
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.token_source import token_source
from m2kit.training.torch_backend import TorchBackend


@pytest.fixture
def cache(few, tokenizer_file, tmp_path, monkeypatch):
    """A cache of a few digits, two crops each, in several files; their pictures are gone."""
    monkeypatch.setattr(encoding, "_ROWS", 100)
    checkpoint = read_checkpoint(tokenizer_file)
    model = model_from_checkpoint(checkpoint)
    with Engine(model.spec, TorchBackend(model)) as engine:
        done = encode_data(
            engine, checkpoint.source, few, tmp_path / "cache", crops=2, flip=True, seed=3
        )
    assert done.files == 5
    return tmp_path / "cache"


def test_a_run_from_a_cache_is_the_run_that_encodes_itself(
    cache, tokenizer_file, ar_settings, tmp_path
):
    crops = {"versions": 2, "flip": True, "batch": 32}
    own = train_ar(ar_settings(data="few", **crops), tokenizer_file, tmp_path / "own", resume=False)
    settings = ar_settings(data=str(cache), **crops)
    assert (settings.size, settings.place, settings.warp) == (32, "random", 0.0)
    cached = train_ar(settings, tokenizer_file, tmp_path / "cached", resume=False)
    metrics = [(tmp_path / run / "metrics.csv").read_text() for run in ("own", "cached")]
    assert metrics[0] == metrics[1]
    assert (own.chosen_step, own.held_out_bits_per_token, own.data) == (
        cached.chosen_step,
        cached.held_out_bits_per_token,
        cached.data,
    )
    weights = [
        torch.load(tmp_path / run / "ar.pt", weights_only=True)["state_dict"]
        for run in ("own", "cached")
    ]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


def test_the_crops_of_a_cache_are_the_versions_of_a_run(cache, few, tokenizer_file, ar_settings):
    settings = ar_settings(data="few", versions=2, flip=True)
    checkpoint = read_checkpoint(tokenizer_file)
    tokenizer = model_from_checkpoint(checkpoint).tokenizer
    spec = replace(checkpoint.spec, transformer=settings.spec((4, 4), 10))  # of two sub-tokens
    source = token_source(settings, 2, checkpoint)
    versions = encoded(tokenizer, spec.vocabularies, source.train, 2)
    opened = open_cache(cache)
    found = CachedTokens(opened, opened.train, spec, seed=3)
    assert len(found) == len(versions) == 128
    drawn = set()
    for number in (0, 1, 127, 128, 255, 5 * 128 + 40):
        for own, other in zip(found[number], versions[number], strict=True):
            assert own.dtype == other.dtype
            assert torch.equal(own, other)
        drawn.add(torch.equal(found[number][0], versions.tokens[number % 128, 0]))
    assert drawn == {True, False}


def test_an_epoch_may_have_one_picture_of_each_group(cache, few, tokenizer_file, ar_settings):
    opened = open_cache(cache)
    groups = ["x"] * 3 + ["y"] * 125
    opened = replace(opened, train=replace(opened.train, groups=groups))
    spec = replace(read_checkpoint(tokenizer_file).spec, transformer=ar_settings().spec((4, 4), 10))
    found = CachedTokens(opened, opened.train, spec, one_of_group=True)
    assert len(found) == 2
    labels = {int(found[2 * epoch][1]) for epoch in range(50)}
    assert labels == set(opened.train.labels[:3].tolist())
    assert sum(len(tokens) for tokens, _ in found.in_order(50)) == 128  # all, to be measured on


def test_no_more_than_some_training_pictures_of_all_are_measured_at_the_end(
    cache, few, tokenizer_file, ar_settings, monkeypatch
):
    checkpoint = read_checkpoint(tokenizer_file)
    tokenizer = model_from_checkpoint(checkpoint).tokenizer
    spec = replace(checkpoint.spec, transformer=ar_settings().spec((4, 4), 10))

    def measured(data):
        settings = ar_settings(data=str(data), versions=2, flip=True)
        source = token_source(settings, 2, checkpoint)
        parts = list(source.plain(tokenizer, spec, silent).in_order(16))
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    for data in ("few", cache):
        whole = measured(data)
        with monkeypatch.context() as patched:
            patched.setattr(measures, "_MOST_MEASURED", 32)
            some = measured(data)
        assert (len(whole[0]), len(some[0])) == (128, 32)
        for own, other in zip(some, whole, strict=True):
            assert torch.equal(own, other[::4])


def test_another_tokenizer_and_other_crops_are_one_error(
    cache, tokenizer_file, ar_settings, tmp_path
):
    settings = ar_settings(data=str(cache), versions=2, flip=True)
    with pytest.raises(InputError, match=r"was encoded with the ema weights .* this one") as caught:
        train_ar(settings, DIGITS_CHECKPOINT, tmp_path / "run", resume=False)
    assert caught.value.option == "--tokenizer"
    with pytest.raises(InputError, match="whose crops have versions 2, found 7"):
        train_ar(
            ar_settings(data=str(cache), versions=7, flip=True),
            tokenizer_file,
            tmp_path / "run",
            resume=False,
        )
    assert not (tmp_path / "run").exists()


def run_cli(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_the_commands_encode_with_an_engine_and_train_from_that(few, digits_engine, tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    encode = ["encode", "few", "--engine", digits_engine, "-o", cache, "--json"]
    code, out, err = run_cli(*encode, "--crops", 2)
    assert code == 0, err
    assert json.loads(out)["crops"] == 3 * 128
    assert json.loads(run_cli(*encode, "--crops", 2)[1])["there_before"] == 1 + 1
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)  # PyTorch encodes alike
    tokenizer = model_from_checkpoint(checkpoint).tokenizer
    held_out = Crops(few.load().held_out, Cut((32, 32)))
    crops = encoded(tokenizer, checkpoint.spec.vocabularies, held_out)
    opened = open_cache(cache)
    for index in range(128):
        own = opened.held_out.read(index, 0).reshape(16, 2)
        np.testing.assert_array_equal(own, crops.tokens[index, 0].numpy())
    train = ["train", "ar", "--data", cache, "--tokenizer", DIGITS_CHECKPOINT, "-o", run]
    train += ["--no-progress", "--epochs", 1, "--width", 32, "--ffn-width", 32, "--json"]
    for options in (["--flip", "--versions", 3], ["--warp", 0], ["--size", 32]):
        code, _, err = run_cli(*train, *options)
        assert code == 2
        assert f"leave out {', '.join(o for o in options if str(o)[:2] == '--')}: " in err
        assert "is a token cache, whose crops are cut and encoded already" in err
    code, out, err = run_cli(*train, "--dry-run")
    assert code == 0, err
    assert json.loads(out)["data"]["images_per_epoch"] == 128
    code, out, err = run_cli(*train)
    assert code == 0, err
    found = json.loads(out)
    assert (found["versions"], found["warp"], found["size"]) == (2, 0.0, 32)
    assert found["data"] == few.title
    assert (run / "samples.png").is_file()


def test_options_of_crops_need_crops_and_pictures_are_not_written_over(
    few, digits_engine, tmp_path
):
    pictures = tmp_path / "pictures.npz"
    pictures.touch()
    words = ["encode", pictures, "--crops", 1, "--engine", digits_engine, "-o", pictures]
    code, _, err = run_cli(*words)
    assert (code, "is what is read; choose another output" in err) == (1, True), err
    encode = ["encode", "few", "--engine", digits_engine, "-o", tmp_path / "a.npz"]
    for options, words in (
        (["--seed", 3], "leave out --seed: they are of a data set's crops; say how many"),
        (["--crops", 1, "--pad"], "leave out --pad: "),
        (["few", "--crops", 1], "IMAGES is one data set, found 2"),
    ):
        code, _, err = run_cli(*encode, *options)
        assert (code, words in err) == (2, True), err
