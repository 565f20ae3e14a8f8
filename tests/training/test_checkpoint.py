import os
import zipfile

import pytest
import torch
from conftest import DIGITS_CHECKPOINT, GOLDEN, tiny_spec

from m2kit.config import PRESETS, Preset
from m2kit.errors import CheckpointError, M2KitError, SpecError
from m2kit.training.checkpoint import expected_shapes, read_checkpoint

AR = GOLDEN / "ar_tiny.ckpt"
TOKENIZER = GOLDEN / "tokenizer_tiny.ckpt"


@pytest.fixture
def changed(tmp_path):
    """Saves a golden checkpoint after changing its tensors in place."""

    def save(change, source=AR):
        content = torch.load(source, weights_only=True)
        change(content["state_dict"])
        path = tmp_path / "changed.ckpt"
        torch.save(content, path)
        return path

    return save


def test_the_spec_is_read_off_names_and_shapes():
    checkpoint = read_checkpoint(AR, overrides={"heads": 4})
    spec = checkpoint.spec
    assert spec.tokenizer.channel_multipliers == (1, 1, 2)
    assert spec.tokenizer.code_bits == 8
    transformer = spec.transformer
    assert (transformer.width, transformer.inter_layers, transformer.intra_layers) == (64, 3, 2)
    assert (transformer.classes, transformer.bits, transformer.ffn_width) == (10, (3, 5), 256)
    assert checkpoint.source["assumed"] == {
        "grid": (4, 4),
        "rope_base": 10000.0,
        "bit_order": "lsb",
    }


def test_what_shapes_do_not_tell_must_be_given():
    with pytest.raises(SpecError, match=r"number of heads .* --spec"):
        read_checkpoint(AR)
    with pytest.raises(SpecError, match="width is 128, but the file's tensors say 64"):
        read_checkpoint(AR, overrides={"heads": 4, "width": 128})
    with pytest.raises(SpecError, match="holds a tokenizer only"):
        read_checkpoint(TOKENIZER, overrides={"heads": 4})


def test_a_published_architecture_needs_no_override():
    from m2kit.training.architecture import read_architecture

    for name in ("ar-b", "ar-l", "ar-xl", "tokenizer-256", "tokenizer-128-v0.1"):
        found = read_architecture(expected_shapes(PRESETS[name].spec), {}, None)
        assert found.spec == PRESETS[name].spec
        assert found.preset == PRESETS[name]
        assert not found.assumed


def test_a_tokenizer_file_gives_ema_weights_unless_live_ones_are_asked_for():
    ema, live = read_checkpoint(TOKENIZER), read_checkpoint(TOKENIZER, weights="live")
    assert (ema.source["weights"], live.source["weights"]) == ("ema", "live")
    name = "encoder.conv_in.weight"
    assert not torch.equal(ema.weights[name], live.weights[name])
    assert set(ema.weights) == set(live.weights) == set(expected_shapes(ema.spec))
    with pytest.raises(CheckpointError, match="no EMA"):
        read_checkpoint(AR, overrides={"heads": 4}, weights="ema")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("transformer.norm.weight"), r"missing tensors: transformer\.norm\.weight"),
        (lambda s: s.update({"transformer.x": torch.ones(1)}), "unexpected tensors: transformer.x"),
        (
            lambda s: s.update({"transformer.norm.weight": torch.ones(63)}),
            r"misshaped tensors: transformer\.norm\.weight \(expected \[64\], found \[63\]\)",
        ),
        (lambda s: s["transformer.norm.weight"].fill_(float("nan")), "not dense finite"),
        (lambda s: s["transformer.norm.weight"].fill_(float("inf")), "not dense finite"),
        (
            lambda s: s.update({"transformer.norm.weight": torch.ones(64, dtype=torch.int64)}),
            "not dense finite floats",
        ),
        (lambda s: s.pop("transformer.class_emb.embedding_table.weight"), "is missing"),
        (lambda s: s.pop("first_stage_model.encoder.conv_in.weight"), "is missing"),
        (lambda s: s.update({"transformer.head.0.weight": torch.ones(7, 64)}), "power of two"),
        (
            lambda s: [s.pop(k) for k in list(s) if "first_stage" in k],
            r"encoder\.conv_in\.weight is missing",
        ),
        (lambda s: [s.pop(k) for k in list(s) if ".ffn_norm." in k], "ffn_norm.weight"),
    ],
)
def test_a_damaged_model_is_refused_with_its_keys(changed, change, words):
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(changed(change), overrides={"heads": 4})


def test_many_keys_are_listed_up_to_ten_and_counted(changed):
    path = changed(lambda s: [s.pop(k) for k in list(s) if ".norm" in k])
    with pytest.raises(CheckpointError, match=r"\.\.\. \(\d+ in all\)"):
        read_checkpoint(path, overrides={"heads": 4})


def test_known_junk_of_a_training_run_is_left_out(changed):
    def add(state):
        state["loss.discriminator.main.0.weight"] = torch.ones(1)
        state["transformer.spatial_blocks.0.attention.kv_cache.k_cache"] = torch.ones(1)

    assert read_checkpoint(changed(add), overrides={"heads": 4}).spec.transformer.heads == 4


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        torch.save(
            {"state_dict": {"encoder.x": Exploit()}},
            "evil.pt",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(CheckpointError, match=r"asks to load \w+\.system, .* nothing was run"):
            read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x02", bytes(1000)])
def test_what_is_not_a_checkpoint_is_one_error(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": 3}, {"w": torch.ones(2)}])
def test_a_file_of_something_else_is_one_error(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pt")


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    data = bytearray(AR.read_bytes())
    with zipfile.ZipFile(AR) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC-32"):
        read_checkpoint(path, overrides={"heads": 4})


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="found nothing"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="found a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read(changed, dtype):
    def halve(state):
        for name in state:
            state[name] = state[name].to(dtype)

    checkpoint = read_checkpoint(changed(halve), overrides={"heads": 4})
    assert checkpoint.weights["transformer.norm.weight"].dtype == dtype


def test_tiny_specs_of_any_number_of_sub_tokens_have_tensors():
    for bits in [(5,), (2, 3), (1, 2, 2)]:
        shapes = expected_shapes(tiny_spec(bits=bits))
        assert shapes[f"transformer.head.{len(bits) - 1}.weight"] == (2 ** bits[-1], 16)


def test_a_file_of_a_published_architecture_gets_its_authors_sampling(monkeypatch):
    spec = read_checkpoint(AR, overrides={"heads": 4}).spec
    preset = Preset(spec, guidance=(1.9, 2.0), temperature=(1.1, 1.0))
    monkeypatch.setitem(PRESETS, "ar-tiny", preset)
    checkpoint = read_checkpoint(AR)  # the preset tells the heads
    assert checkpoint.spec == spec
    assert checkpoint.source["assumed"] == {}
    assert checkpoint.sampling == {
        "guidance": [1.9, 2.0],
        "temperature": [1.1, 1.0],
        "top_k": [0, 0],
        "top_p": [1.0, 1.0],
    }


@pytest.mark.parametrize(
    "notes",
    [
        3,
        [1],
        {"spec": {"tokenizer": 1}},
        {"spec": 4},
        {"sampling": [1]},
        {"sampling": {"guidance": "x"}},
        {"sampling": {"guidance": [1.0, 2.0, 3.0]}},
        {"training": {"x": torch.ones(1)}},
    ],
    ids=str,
)
def test_damaged_notes_of_a_trainer_are_one_error(tmp_path, notes):
    content = torch.load(DIGITS_CHECKPOINT, weights_only=True)
    if notes != 3:
        notes = {"spec": content["m2kit"]["spec"]} | notes if isinstance(notes, dict) else notes
    torch.save(content | {"m2kit": notes}, tmp_path / "a.pt")
    with pytest.raises(M2KitError, match=r"a\.pt: "):
        read_checkpoint(tmp_path / "a.pt")


def test_odd_keys_and_sparse_tensors_are_one_error(changed, tmp_path):
    def sparse(state):
        state["transformer.norm.weight"] = state["transformer.norm.weight"].to_sparse()

    with pytest.raises(CheckpointError):
        read_checkpoint(changed(sparse), overrides={"heads": 4})
    torch.save({0: torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="found no tensors"):
        read_checkpoint(tmp_path / "b.pt")
