"""The published recipes: learning rates at the corners of their schedules, as the paper's table and
configs have them, and a real step of each, shrunk by overrides alone."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from m2kit.cli import cli
from m2kit.errors import InputError
from m2kit.training.recipes.ar import train_ar
from m2kit.training.recipes.presets import (
    IMAGENET,
    TOKENIZERS,
    TRANSFORMERS,
    UCF,
    published,
    published_data,
)
from m2kit.training.recipes.schedule import learning_rate
from m2kit.training.recipes.settings import TokenizerSettings
from m2kit.training.recipes.tokenizer import train_tokenizer

EPOCH = IMAGENET.pictures / 256  # steps
AR_EPOCH = IMAGENET.pictures / 768
CORNERS = {  # (step, learning rate)
    "tokenizer-128": [(0, 1e-4), (250 * EPOCH - 1, 1e-4), (250 * EPOCH + 1, 1e-5),
                      (300 * EPOCH + 1, 1e-6), (350 * EPOCH - 1, 1e-6)],
    "tokenizer-256": [(0, 1e-4), (200 * EPOCH - 1, 1e-4), (200 * EPOCH + 1, 1e-5),
                      (250 * EPOCH + 1, 1e-6), (270 * EPOCH - 1, 1e-6)],
    "tokenizer-pretrain-16384": [(0, 0), (2500, 5e-5), (5000, 1e-4), (1_499_999, 1e-6)],
    "tokenizer-pretrain-262144": [(0, 1e-4), (799_999, 1e-4), (800_000, 1e-5), (1_000_000, 1e-6)],
    "video-128": [(0, 0), (75, 75 / 149 * 1e-4), (2 * UCF.pictures / 128, 1e-4),
                  (1001 * UCF.pictures / 128, 5.05e-5), (2000 * UCF.pictures / 128 - 1, 1e-6)],
    "ar-b": [(0, 1.5e-6), (6 * AR_EPOCH, 3e-4), (20 * AR_EPOCH, 3e-4), (300 * AR_EPOCH, 3e-5)],
    "ar-l": [(0, 1.5e-6), (6 * AR_EPOCH, 3e-4), (20 * AR_EPOCH, 3e-4), (300 * AR_EPOCH, 3e-5)],
    "ar-xl": [(0, 1.2e-6), (7 * AR_EPOCH, 2.4e-4), (24 * AR_EPOCH, 2.4e-4),
              (350 * AR_EPOCH, 2.4e-5)],
}  # fmt: skip
DATA = {"data": "few", "seed": 0}


def settings_of(name, ar_settings, **changes):
    values = published(name) | changes
    if name in TOKENIZERS:
        return TokenizerSettings(**DATA | values)
    return ar_settings(**values)


@pytest.mark.parametrize("name", CORNERS)
def test_the_schedule_is_the_published_one_at_its_corners(name, ar_settings):
    settings = settings_of(name, ar_settings)
    for step, rate in CORNERS[name]:
        found = learning_rate(settings, round(step), published_data(name).pictures)
        assert found == pytest.approx(rate, rel=2e-4, abs=1e-12), step


def test_what_distinguishes_the_published_tokenizers():
    assert set(TOKENIZERS + TRANSFORMERS) == set(CORNERS)
    recipes = {name: published(name) for name in TOKENIZERS}
    assert [recipes[n]["lecam_weight"] for n in TOKENIZERS] == [0.01, *[0.05] * 4]
    assert [recipes[n]["adversary_weight"] for n in TOKENIZERS] == [*[0.1] * 4, 0.3]
    adversaries = ["patch", "patch", "blur", "patch", "patch"]
    assert [recipes[n]["adversary"] for n in TOKENIZERS] == adversaries
    assert [recipes[n]["code_bits"] for n in TOKENIZERS] == [18, 18, 14, 18, 18]
    assert published("ar-l")["bits"] == (6, 12)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_published_tokenizer_recipe_takes_a_step_when_it_is_shrunk(
    name, ar_settings, few, uncurved, tmp_path, request
):
    small = {"base_channels": 32, "blocks_per_level": 1, "size": 32, "batch": 2, "steps": 1}
    settings = settings_of(
        name, ar_settings, **small, perceptual_weight=0.0, code_bits=6, adversary_width=32
    )
    if settings.frames is not None:
        films = request.getfixturevalue("films")
        settings = replace(settings, data=str(films), frames=5, channel_multipliers=(1, 2, 2))
    training = train_tokenizer(settings, tmp_path / "run", resume=False)
    assert 0 < training.codebook_usage <= 1
    assert (tmp_path / "run" / "tokenizer.train.pt").is_file()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_transformer_recipe_takes_a_step_when_it_is_shrunk(
    name, ar_settings, few, uncurved, tokenizer_file, tmp_path
):
    small = {"width": 32, "heads": 2, "inter_layers": 1, "intra_layers": 1, "ffn_width": 32}
    settings = settings_of(
        name, ar_settings, **small, data="few", bits=(3, 5), size=32, batch=2, steps=1
    )
    training = train_ar(settings, tokenizer_file, tmp_path / "run", resume=False)
    assert training.chosen_step == 1


def test_a_preset_sets_the_defaults_and_options_override_it(tmp_path, few, uncurved):
    run = tmp_path / "run"
    arguments = (
        "train tokenizer --data few --preset tokenizer-128 --perceptual none --base-channels 32 "
        "--blocks-per-level 1 --code-bits 4 --size 32 --steps 1 --batch 2 --drops 3,4 "
        "--adversary-width 32 --no-progress -o"
    )
    done = CliRunner().invoke(cli, [*arguments.split(), str(run)])
    assert done.exit_code == 0, done.output
    settings = json.loads((run / "settings.json").read_text())
    wanted = published("tokenizer-128") | {
        "perceptual_weight": 0, "base_channels": 32, "blocks_per_level": 1, "code_bits": 4,
        "size": 32, "steps": 1, "batch": 2, "drops": [3, 4], "adversary_width": 32,
        "channel_multipliers": [1, 2, 2, 4],
    }  # fmt: skip
    assert {name: settings[name] for name in wanted} == wanted
    assert "--preset" in CliRunner().invoke(cli, ["train", "ar", "--preset", "ar-q"]).output


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_preset_of_a_transformer_is_read_whole(name, tmp_path, monkeypatch, ar_settings):
    taken = {}
    (tmp_path / "tokenizer.pt").write_bytes(b"")

    def settings_for(path, **values):
        taken.update(values)
        raise InputError("far enough")

    monkeypatch.setattr("m2kit.training.recipes.settings.settings_for", settings_for)
    arguments = ["train", "ar", "--preset", name, "--tokenizer", str(tmp_path / "tokenizer.pt")]
    assert CliRunner().invoke(cli, arguments).exit_code == 1
    assert {key: taken[key] for key in published(name)} == published(name)
    assert ar_settings(**taken) == ar_settings(data="digits", seed=0, **published(name))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_preset_of_a_tokenizer_leaves_nothing_of_the_examples_defaults(name, monkeypatch):
    taken = []

    def train(settings, *_, **__):
        taken.append(settings)
        raise InputError("far enough")

    monkeypatch.setattr("m2kit.training.recipes.tokenizer.train_tokenizer", train)
    monkeypatch.setattr("m2kit.training.models.perceptual.perceptual_network", lambda *_: None)
    assert CliRunner().invoke(cli, ["train", "tokenizer", "--preset", name]).exit_code == 1
    assert taken == [TokenizerSettings(data="digits", seed=0, **published(name))]
