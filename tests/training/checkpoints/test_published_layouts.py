"""The published models, as lists and facts that do not come from our own models and presets.

tests/golden/keys holds the lists of keys and shapes; counts, heads, grids and sampling are those of
the paper (arXiv 2409.04410) and of the official configurations and scripts."""

import math
import runpy

import pytest
import torch
from conftest import GOLDEN

from m2kit.config import PRESETS
from m2kit.families.sign_bits import bits_of
from m2kit.training.checkpoints import random_weights, writing
from m2kit.training.models.model import expected_shapes

TABLES = {  # preset -> table, tensors, parameters of encoder + decoder, of the transformer
    "tokenizer-128": ("tokenizer-128", 283, 112_021_653, 0),
    "tokenizer-256": ("tokenizer-256", 339, 115_127_829, 0),
    "tokenizer-pretrain-16384": ("tokenizer-pretrain-16384", 339, 115_094_033, 0),
    "tokenizer-pretrain-262144": ("tokenizer-256", 339, 115_127_829, 0),
    "tokenizer-128-v0.1": ("tokenizer-128-v0.1", 147, 63_571_093, 0),
    "tokenizer-256-v0.1": ("tokenizer-256-v0.1", 175, 65_490_709, 0),
    "video-128": ("video-128", 283, 370_547_349, 0),
    "ar-b": ("ar-b", 527, 115_127_829, 343_570_432),
    "ar-l": ("ar-l", 618, 115_127_829, 804_362_240),
    "ar-xl": ("ar-xl", 709, 115_127_829, 1_486_679_040),
}


UNTOLD = {  # what no file tells: heads, grid, classes, RoPE base, guidance, temperature
    "ar-b": (16, (16, 16), 1000, 10000.0, (1.9, 2.0), (1.0, 1.0)),
    "ar-l": (20, (16, 16), 1000, 10000.0, (1.9, 1.9), (1.1, 1.0)),
    "ar-xl": (24, (16, 16), 1000, 10000.0, (1.75, 1.85), (1.1, 1.0)),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_no_file_tells_is_as_published(name):
    preset, first_release = PRESETS[name], name.endswith("-v0.1")
    assert preset.spec.tokenizer.bit_order == ("msb" if first_release else "lsb")
    assert preset.spec.tokenizer.adaptive_norm is not first_release
    assert preset.spec.tokenizer.strides[-1] == (8 if "-128" in name else 16)
    if name not in UNTOLD:
        others = {"tokenizer-pretrain-16384": (), "video-128": (18,)}
        assert preset.split == ((9, 9) if first_release else others.get(name, (6, 12)))
        assert preset.sampling == {}
        return
    spec = preset.spec.transformer
    told = (spec.heads, spec.grid, spec.classes, spec.rope_base)
    assert (*told, preset.guidance, preset.temperature) == UNTOLD[name]
    assert bits_of(spec.vocabularies) == preset.split == (6, 12)
    assert spec.head_size == 64


def table(name):
    """Key -> shape, in the official file's names."""
    lines = (GOLDEN / "keys" / f"{TABLES[name][0]}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {key: tuple(map(int, shape.split())) for key, shape in rows}


def test_every_preset_has_a_table_and_the_tables_are_those_of_their_script():
    assert set(TABLES) == set(PRESETS)
    lists = runpy.run_path(str(GOLDEN / "make_keys.py"))["MODELS"]
    assert {name: table(name) for name in lists} == lists


@pytest.mark.parametrize("name", TABLES)
def test_our_models_have_the_published_keys_shapes_and_parameters(name):
    _, tensors, of_tokenizer, of_transformer = TABLES[name]
    keys, spec = table(name), PRESETS[name].spec
    shapes = expected_shapes(spec)
    assert shapes == {key.removeprefix("first_stage_model."): shape for key, shape in keys.items()}
    assert len(keys) == tensors
    assert sum(map(math.prod, keys.values())) == of_tokenizer + of_transformer
    counts = spec.parameter_counts()
    assert counts["encoder"] + counts["decoder"] == of_tokenizer
    assert sum(counts.values()) == of_tokenizer + of_transformer


@pytest.mark.parametrize("name", TABLES)
def test_a_random_checkpoint_has_the_keys_of_the_published_file(name, monkeypatch):
    """On the meta device, where no size costs anything."""
    saved = {}
    monkeypatch.setattr(
        random_weights, "_normal", lambda name, shape, seed: torch.empty(shape, device="meta")
    )
    monkeypatch.setattr(writing, "save_whole", lambda content, path: saved.update(content))
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
def test_weights_per_position_are_the_blocks_each_head_once_and_the_rows(name, inter_and_two_intra):
    """The blocks alone, in half precision, as reference figures give them; then heads and rows."""
    spec = PRESETS[name].spec.transformer
    heads_and_rows = (64 + 4096) * spec.width + 2 * spec.width + 3 * spec.width
    blocks = spec.weights_per_position - heads_and_rows
    assert 2 * blocks == pytest.approx(inter_and_two_intra, rel=0.005)
