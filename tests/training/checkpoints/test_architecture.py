"""The architecture of a file: what shapes tell, and who tells the rest."""

from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN

from m2kit.config import PRESETS, Preset
from m2kit.errors import CheckpointError, SpecError
from m2kit.sampling import SamplingDefaults
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes

AR = GOLDEN / "ar_tiny.ckpt"
TOKENIZER = GOLDEN / "tokenizer_tiny.ckpt"


def test_the_spec_is_read_off_names_and_shapes():
    checkpoint = read_checkpoint(AR, overrides={"heads": 4})
    spec = checkpoint.spec
    assert spec.tokenizer.channel_multipliers == (1, 1, 2)
    assert spec.tokenizer.code_bits == 8
    transformer = spec.transformer
    assert (transformer.width, transformer.inter_layers, transformer.intra_layers) == (64, 3, 2)
    assert (transformer.classes, transformer.ffn_width) == (10, 256)
    assert transformer.vocabularies == (8, 32)
    assert checkpoint.source.assumed == {
        "grid": (4, 4),
        "rope_base": 10000.0,
        "bit_order": "lsb",
    }


def test_what_shapes_do_not_tell_must_be_given():
    with pytest.raises(SpecError, match="width is 128, but the file's tensors say 64"):
        read_checkpoint(AR, overrides={"heads": 4, "width": 128})
    with pytest.raises(SpecError, match="holds a tokenizer only"):
        read_checkpoint(TOKENIZER, overrides={"heads": 4})


def test_a_published_architecture_needs_no_override():
    from m2kit.training.checkpoints.architecture import read_architecture

    for name in ("ar-b", "ar-l", "ar-xl", "tokenizer-256", "tokenizer-128-v0.1"):
        found = read_architecture(expected_shapes(PRESETS[name].spec), {}, None)
        assert found.spec == PRESETS[name].spec
        assert name in found.same_as
        assert not found.assumed


def test_a_file_of_a_published_architecture_gets_its_authors_sampling(monkeypatch):
    spec = read_checkpoint(AR, overrides={"heads": 4}).spec
    preset = Preset(spec, (), guidance=(1.9, 2.0), temperature=(1.1, 1.0))
    monkeypatch.setitem(PRESETS, "ar-tiny", preset)
    checkpoint = read_checkpoint(AR)  # the preset tells the heads
    assert checkpoint.spec == spec
    assert checkpoint.source.assumed == {}
    assert checkpoint.sampling == SamplingDefaults((1.9, 2.0), (1.1, 1.0), (0, 0), (1.0, 1.0))


def test_another_tokenizer_replaces_that_of_an_ar_file(tmp_path):
    """The golden tokenizers: ar_tiny has its own, of 3 levels and 8 bits; the other has 2."""
    own = read_checkpoint(AR, overrides={"heads": 4})
    expected = own.tensors() | read_checkpoint(TOKENIZER).tensors()
    state = torch.load(AR, weights_only=True)["state_dict"]
    alone = {n: t for n, t in state.items() if n.startswith("transformer.")}
    torch.save({"state_dict": alone}, tmp_path / "alone.pt")
    for source in (AR, tmp_path / "alone.pt"):
        found = read_checkpoint(source, overrides={"heads": 4}, tokenizer=TOKENIZER)
        assert found.spec.tokenizer == read_checkpoint(TOKENIZER).spec.tokenizer
        assert found.spec.transformer.width == own.spec.transformer.width
        assert (found.source.weights, found.source.tokenizer_weights) == ("stored", "ema")
        tensors = found.tensors()
        assert set(tensors) <= set(expected)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name]), name
    live = read_checkpoint(AR, overrides={"heads": 4}, tokenizer=TOKENIZER, weights="live")
    assert live.source.tokenizer_weights == "live"
    with pytest.raises(CheckpointError, match="holds no tokenizer; give one"):
        read_checkpoint(tmp_path / "alone.pt", overrides={"heads": 4})
    with pytest.raises(CheckpointError, match="is an AR file; give a tokenizer file"):
        read_checkpoint(AR, overrides={"heads": 4}, tokenizer=AR)
    with pytest.raises(CheckpointError, match="another one replaces that of an AR file"):
        read_checkpoint(TOKENIZER, tokenizer=TOKENIZER)


def test_the_transformer_alone_tells_the_preset(tmp_path, monkeypatch):
    """The tokenizer of an AR file can be replaced by one of another architecture."""
    spec = read_checkpoint(AR, overrides={"heads": 4}).spec
    monkeypatch.setitem(PRESETS, "ar-tiny", Preset(spec, (), (1.5, 2.0), (1.0, 1.0)))
    found = read_checkpoint(AR, tokenizer=TOKENIZER)
    assert found.spec.transformer == spec.transformer
    assert found.spec.tokenizer != spec.tokenizer
    assert found.source.same_as == ()


def test_a_preset_of_another_tokenizer_does_not_tell_the_bit_order(monkeypatch):
    spec = read_checkpoint(AR, overrides={"heads": 4}).spec
    other = replace(spec.tokenizer, blocks_per_level=9, bit_order="msb")
    monkeypatch.setitem(PRESETS, "ar-tiny", Preset(replace(spec, tokenizer=other), ()))
    found = read_checkpoint(AR)
    assert found.spec == spec
    assert found.source.assumed == {"bit_order": "lsb"}


def test_the_replacing_tokenizer_brings_its_bit_order(tmp_path):
    found = read_checkpoint(
        AR, overrides={"heads": 4}, tokenizer=GOLDEN / "tokenizer_v01_tiny.ckpt"
    )
    assert found.spec.tokenizer.bit_order == "msb"
    assert found.source.assumed["bit_order"] == "msb"
    given = read_checkpoint(
        AR,
        overrides={"heads": 4, "bit_order": "lsb"},
        tokenizer=GOLDEN / "tokenizer_v01_tiny.ckpt",
    )
    assert given.spec.tokenizer.bit_order == "lsb"
    assert "bit_order" not in given.source.assumed


def test_a_named_preset_tells_what_shapes_do_not(monkeypatch):
    spec = read_checkpoint(AR, overrides={"heads": 4}).spec
    more = replace(spec, transformer=replace(spec.transformer, classes=1000, rope_base=500.0))
    monkeypatch.setitem(PRESETS, "ar-tiny", Preset(more, (), (1.5, 2.0), (1.0, 1.0)))
    with pytest.raises(SpecError, match=r"give the preset ar-tiny, .* or a spec"):
        read_checkpoint(AR)  # another number of classes
    found = read_checkpoint(AR, preset="ar-tiny")
    assert found.spec == replace(more, transformer=replace(more.transformer, classes=10))
    assert (found.source.preset, found.source.assumed) == ("ar-tiny", {})
    assert found.sampling.guidance == (1.5, 2.0)
    given = read_checkpoint(AR, preset="ar-tiny", overrides={"heads": 2})
    assert (given.spec.transformer.heads, given.spec.transformer.rope_base) == (2, 500.0)


def test_a_preset_of_other_shapes_is_refused():
    with pytest.raises(SpecError, match=r"not of preset ar-b: .*width is 64, expected 1024"):
        read_checkpoint(AR, preset="ar-b")
    with pytest.raises(SpecError, match="it is an AR model, the preset a tokenizer"):
        read_checkpoint(AR, preset="tokenizer-256")
    with pytest.raises(SpecError, match="there is no preset 'ar-m'; the presets are tokenizer-128"):
        read_checkpoint(AR, preset="ar-m")


def test_what_a_file_does_not_tell_is_asked_for_with_what_fits():
    with pytest.raises(SpecError) as caught:
        read_checkpoint(AR)
    assert "a preset (ar-b, ar-l, ar-xl: none has its shapes)" in str(caught.value)
    assert "possible are 1, 2, 4, 8, 16" in str(caught.value)


def test_the_first_release_is_recognised_by_what_it_lacks():
    checkpoint = read_checkpoint(GOLDEN / "tokenizer_v01_tiny.ckpt")
    assert not checkpoint.spec.tokenizer.adaptive_norm
    assert checkpoint.spec.tokenizer.bit_order == "msb"
    assert checkpoint.source.assumed == {"bit_order": "msb"}
    assert checkpoint.source.weights == "ema"
    given = read_checkpoint(GOLDEN / "tokenizer_v01_tiny.ckpt", overrides={"bit_order": "lsb"})
    assert given.spec.tokenizer.bit_order == "lsb"
