import json
from dataclasses import replace

import pytest
from conftest import tiny_spec

from m2kit.config import PRESETS, ModelSpec, overrides_from_json
from m2kit.errors import SpecError
from m2kit.families.image import ImageTokenizerSpec


def test_a_spec_survives_json():
    for spec in [tiny_spec(), *(preset.spec for preset in PRESETS.values())]:
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 3}, "width 16 and heads 3"),
        ({"heads": 8}, "multiple of 4"),
        ({"bits": ()}, r"expected a list of 1\.\.62, found \(\)"),
        ({"bits": (25, 5)}, r"vocabularies\[0\]: expected a whole number .* found 33554432"),
        ({"grid": (1, 1), "bits": (1, 1, 3)}, "has 2 rows"),
        ({"classes": 0}, "classes"),
        ({"grid": 4}, "grid: expected a list"),
        ({"grid": (4, "x")}, r"grid\[1\]: expected a whole number"),
        ({"heads": "2"}, "heads: expected a whole number"),
        ({"rope_base": "x"}, "rope_base: expected a number"),
        ({"rope_base": float("nan")}, "rope_base: expected a number"),
        ({"rope_base": 1.0}, "rope_base"),
    ],
)
def test_an_impossible_transformer_is_refused_with_its_numbers(change, words):
    with pytest.raises(SpecError, match=words):
        tiny_spec(**change)


def test_bits_must_sum_to_the_code_bits():
    spec = tiny_spec()
    with pytest.raises(SpecError, match=r"sum to the tokenizer's 5 code bits, found 6"):
        ModelSpec(spec.tokenizer, replace(spec.transformer, vocabularies=(8, 8)))


def test_an_impossible_tokenizer_is_refused():
    with pytest.raises(SpecError, match="multiple of 32"):
        ImageTokenizerSpec(33, (1,), 1, 4, True, "lsb")
    with pytest.raises(SpecError, match="bit_order"):
        ImageTokenizerSpec(32, (1,), 1, 4, True, "big")


def test_json_with_a_missing_or_unknown_field_is_refused():
    value = tiny_spec().to_json()
    del value["transformer"]["heads"]
    with pytest.raises(SpecError, match=r"transformer\.heads: is missing"):
        ModelSpec.from_json(value)


@pytest.mark.parametrize("value", [[1], None, {"head": 4}])
def test_a_spec_override_must_be_a_flat_object_of_known_fields(value):
    with pytest.raises(SpecError, match="the spec"):
        overrides_from_json(value)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("tokenizer-128", 48_422_162, 63_599_491),
        ("tokenizer-256", 49_751_442, 65_376_387),
        ("video-128", 144_865_298, 225_682_051),
    ],
)
def test_published_tokenizers_have_their_published_parameter_counts(name, encoder, decoder):
    assert PRESETS[name].spec.parameter_counts() == {"encoder": encoder, "decoder": decoder}


@pytest.mark.parametrize(
    ("name", "count"), [("ar-b", 343_570_432), ("ar-l", 804_362_240), ("ar-xl", 1_486_679_040)]
)
def test_published_transformers_have_their_published_parameter_counts(name, count):
    counts = PRESETS[name].spec.parameter_counts()
    assert counts["inter transformer"] + counts["intra transformer"] == count
