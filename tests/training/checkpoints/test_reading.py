import os

import pytest
import torch
from conftest import GOLDEN, tiny_spec
from safetensors.torch import save_file

from m2kit.errors import CheckpointError
from m2kit.training.checkpoints.reading import read_checkpoint
from m2kit.training.models.model import expected_shapes

AR = GOLDEN / "ar_tiny.ckpt"
TOKENIZER = GOLDEN / "tokenizer_tiny.ckpt"
NOT_FINITE = r"tensors with NaN or Inf: transformer\.norm\.weight"
NOT_DENSE = r"no dense floats: transformer\.norm\.weight"


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


def test_a_tokenizer_file_gives_ema_weights_unless_live_ones_are_asked_for():
    ema, live = read_checkpoint(TOKENIZER), read_checkpoint(TOKENIZER, weights="live")
    assert (ema.source.weights, live.source.weights) == ("ema", "live")
    name = "encoder.conv_in.weight"
    assert not torch.equal(ema.tensors()[name], live.tensors()[name])
    assert set(ema.tensors()) == set(live.tensors()) == set(expected_shapes(ema.spec))
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
        (lambda s: s["transformer.norm.weight"].fill_(float("nan")), NOT_FINITE),
        (lambda s: s["transformer.norm.weight"].fill_(float("inf")), NOT_FINITE),
        (
            lambda s: s.update({"transformer.norm.weight": torch.ones(64, dtype=torch.int64)}),
            NOT_DENSE,
        ),
        (lambda s: s.pop("transformer.class_emb.embedding_table.weight"), "is missing"),
        (lambda s: s.pop("first_stage_model.encoder.conv_in.weight"), "is missing"),
        (lambda s: s.update({"transformer.head.0.weight": torch.ones(7, 64)}), "power of two"),
        (
            lambda s: [s.pop(k) for k in list(s) if "first_stage" in k],
            "holds no tokenizer; give one",
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
        state["first_stage_model.loss.perceptual_loss.lin0.model.1.weight"] = torch.ones(1)
        state["first_stage_model.model_ema.decay"] = torch.ones(())

    assert read_checkpoint(changed(add), overrides={"heads": 4}).spec.transformer.heads == 4


def test_the_state_of_optimizer_and_scheduler_does_not_stand_in_the_way(tmp_path):
    content = torch.load(TOKENIZER, weights_only=True)
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4])
    content |= {
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "epoch": 3,
        "hyper_parameters": {"resolution": 128, "dtype": torch.float32, "shape": torch.Size([1])},
    }
    torch.save(content, tmp_path / "run.ckpt")
    tensors = read_checkpoint(tmp_path / "run.ckpt").tensors()
    for name, tensor in read_checkpoint(TOKENIZER).tensors().items():
        assert torch.equal(tensors[name], tensor)


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
    with pytest.raises(CheckpointError, match=r"not a (whole )?PyTorch checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": 3}, {"w": torch.ones(2)}])
def test_a_file_of_something_else_is_one_error(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.pt")


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
    assert checkpoint.tensors()["transformer.norm.weight"].dtype == dtype


def test_tiny_specs_of_any_number_of_sub_tokens_have_tensors():
    for bits in [(5,), (2, 3), (1, 2, 2)]:
        shapes = expected_shapes(tiny_spec(bits=bits))
        assert shapes[f"transformer.head.{len(bits) - 1}.weight"] == (2 ** bits[-1], 16)


def test_a_float64_beyond_float32_is_refused(changed):
    def enlarge(state):
        state["transformer.norm.weight"] = torch.full((64,), 1e300, dtype=torch.float64)

    with pytest.raises(CheckpointError, match=NOT_FINITE):
        read_checkpoint(changed(enlarge), overrides={"heads": 4})


def test_a_tensor_with_more_values_than_memory_is_refused_before_its_shape_counts(changed):
    for shape in ((64,), (2**40,)):

        def expand(state, shape=shape):
            state["transformer.norm.weight"] = torch.ones(1).expand(shape)

        with pytest.raises(CheckpointError, match=NOT_DENSE):
            read_checkpoint(changed(expand))

    def widen(state):
        state["transformer.class_emb.embedding_table.weight"] = torch.ones(1).expand(11, 2**40)

    with pytest.raises(CheckpointError, match=r"no dense floats: .*embedding_table\.weight"):
        read_checkpoint(changed(widen))


def test_a_name_that_no_model_is_deep_enough_for_is_refused(changed):
    name = "first_stage_model.encoder.mid_block.{}.norm1.bias"

    def deepen(state):
        state[name.format(64)] = state[name.format(0)]

    with pytest.raises(CheckpointError, match=r"names encoder\.mid_block\.64, expected 64 at most"):
        read_checkpoint(changed(deepen), overrides={"heads": 4})


def test_what_is_no_tensor_under_the_name_of_one_is_refused(changed):
    def add(state):
        state["transformer.foo.weight"] = "text"

    with pytest.raises(CheckpointError, match=r"what is none: transformer\.foo\.weight"):
        read_checkpoint(changed(add), overrides={"heads": 4})


def test_parameters_and_float64_are_read(changed):
    def change(state):
        for name, tensor in state.items():
            state[name] = torch.nn.Parameter(tensor.double())

    expected = read_checkpoint(AR, overrides={"heads": 4}).tensors()
    found = read_checkpoint(changed(change), overrides={"heads": 4})
    assert found.source.dtypes == ("float64",)
    for name, tensor in found.tensors().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor.float(), expected[name])


def test_an_unexpected_tensor_is_called_so_where_there_is_ema(changed):
    def add(state):
        state["encoder.extra"] = torch.ones(1)

    with pytest.raises(CheckpointError, match=r"unexpected tensors: encoder\.extra$"):
        read_checkpoint(changed(add, TOKENIZER))

    def drop(state):
        del state["model_ema.encoderconv_outbias"]

    with pytest.raises(CheckpointError, match=r"without EMA .*: encoder\.conv_out\.bias$"):
        read_checkpoint(changed(drop, TOKENIZER))
    live = read_checkpoint(changed(drop, TOKENIZER), weights="live")
    assert live.source.weights == "live"


def test_tensors_of_both_families_are_no_model(changed):
    def wrap(state):
        state["encoder.conv_in.conv_1.weight"] = torch.ones(32, 3, 3, 3, 3)

    words = r"unexpected tensors: encoder\.conv_in\.conv_1\.weight$"
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(changed(wrap, TOKENIZER))


@pytest.mark.parametrize("source", [AR, TOKENIZER])
def test_safetensors_and_plain_state_dicts_are_the_same_model(tmp_path, source):
    overrides = {"heads": 4} if source == AR else {}
    state = torch.load(source, weights_only=True)["state_dict"]
    whole = read_checkpoint(source, overrides=overrides)
    expected = whole.tensors()
    save_file(state, tmp_path / "a.bin")  # content decides, not the name
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.bin", "b.safetensors", "c.pt"):
        found = read_checkpoint(tmp_path / name, overrides=overrides)
        assert (found.spec, found.source.weights) == (whole.spec, whole.source.weights)
        tensors = found.tensors()
        for key, tensor in expected.items():
            assert torch.equal(tensors[key], tensor)


def test_a_safetensors_file_is_checked_like_any_other(tmp_path):
    state = torch.load(AR, weights_only=True)["state_dict"]
    state["transformer.norm.weight"][3] = float("nan")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=NOT_FINITE):
        read_checkpoint(tmp_path / "a.safetensors", overrides={"heads": 4})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_file_that_changes_after_its_check_is_not_read(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(TOKENIZER.read_bytes())
    checkpoint = read_checkpoint(path)
    os.utime(path, (0, 0))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        checkpoint.tensors()


def test_one_tensor_under_two_names_is_refused(changed):
    def add(state):
        state["encoder.norm_out.bias"] = state["first_stage_model.encoder.norm_out.bias"]

    with pytest.raises(CheckpointError, match=r"with and without prefix: .*norm_out\.bias"):
        read_checkpoint(changed(add), overrides={"heads": 4})


def test_odd_keys_and_sparse_tensors_are_one_error(changed, tmp_path):
    def sparse(state):
        state["transformer.norm.weight"] = state["transformer.norm.weight"].to_sparse()

    with pytest.raises(CheckpointError):
        read_checkpoint(changed(sparse), overrides={"heads": 4})
    torch.save({0: torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="found no tensors"):
        read_checkpoint(tmp_path / "b.pt")
