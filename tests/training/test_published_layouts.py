"""The published files' keys, shapes and sizes, as lists and facts that do not come from our models.

tests/golden/keys holds the lists; the counts and bytes are those of the paper and of the files."""

import math

import pytest
import torch
from conftest import GOLDEN

from m2kit.config import PRESETS
from m2kit.parameters import parameter_counts, weights_per_position
from m2kit.training import checkpoint_writer, random_weights
from m2kit.training.models.model import expected_shapes

TABLES = {  # preset -> table, tensors, parameters of encoder + decoder, of the transformer
    "tokenizer-128": ("tokenizer-128", 283, 112_021_653, 0),
    "tokenizer-256": ("tokenizer-256", 339, 115_127_829, 0),
    "tokenizer-pretrain-16384": ("tokenizer-pretrain-16384", 339, 115_094_033, 0),
    "tokenizer-pretrain-262144": ("tokenizer-256", 339, 115_127_829, 0),
    "tokenizer-128-v0.1": ("tokenizer-128-v0.1", 147, 63_571_093, 0),
    "tokenizer-256-v0.1": ("tokenizer-256-v0.1", 175, 65_490_709, 0),
    "ar-b": ("ar-b", 527, 115_127_829, 343_570_432),
    "ar-l": ("ar-l", 618, 115_127_829, 804_362_240),
    "ar-xl": ("ar-xl", 709, 115_127_829, 1_486_679_040),
}


def table(name):
    """Key -> shape, in the official file's names."""
    lines = (GOLDEN / "keys" / f"{TABLES[name][0]}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {key: tuple(map(int, shape.split())) for key, shape in rows}


def test_every_preset_has_a_table():
    assert set(TABLES) == set(PRESETS)


@pytest.mark.parametrize("name", TABLES)
def test_our_models_have_the_published_keys_shapes_and_parameters(name):
    _, tensors, of_tokenizer, of_transformer = TABLES[name]
    keys, spec = table(name), PRESETS[name].spec
    shapes = expected_shapes(spec)
    assert shapes == {key.removeprefix("first_stage_model."): shape for key, shape in keys.items()}
    assert len(keys) == tensors
    assert sum(map(math.prod, keys.values())) == of_tokenizer + of_transformer
    counts = parameter_counts(spec)
    assert counts["encoder"] + counts["decoder"] == of_tokenizer
    assert sum(counts.values()) == of_tokenizer + of_transformer


@pytest.mark.parametrize("name", TABLES)
def test_a_random_checkpoint_has_the_keys_of_the_published_file(name, monkeypatch):
    """On the meta device, where no size costs anything."""
    saved = {}
    monkeypatch.setattr(
        random_weights, "_normal", lambda name, shape, seed: torch.empty(shape, device="meta")
    )
    monkeypatch.setattr(
        checkpoint_writer, "save_whole", lambda content, path: saved.update(content)
    )
    random_weights.write_random_checkpoint(None, PRESETS[name].spec, 0)
    assert set(saved) == {"state_dict"}
    keys = table(name)
    if not PRESETS[name].spec.transformer:
        keys |= {"model_ema." + key.replace(".", ""): shape for key, shape in keys.items()}
        keys |= {"model_ema.decay": (), "model_ema.num_updates": ()}
    assert {key: tuple(t.shape) for key, t in saved["state_dict"].items()} == keys


@pytest.mark.parametrize(
    ("name", "inter_and_two_intra"), [("ar-b", 0.72e9), ("ar-l", 1.71e9), ("ar-xl", 3.17e9)]
)
def test_weights_per_position_are_the_blocks_and_the_heads_of_every_run(name, inter_and_two_intra):
    """The blocks alone, in half precision, as reference figures give them; then heads and rows."""
    spec = PRESETS[name].spec.transformer
    heads_and_rows = 2 * (64 + 4096 + 1) * spec.width + 3 * spec.width
    blocks = weights_per_position(spec) - heads_and_rows
    assert 2 * blocks == pytest.approx(inter_and_two_intra, rel=0.005)
