import torch
from conftest import tiny_spec

from m2kit.config import ModelSpec
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import read_checkpoint

SPEC = tiny_spec()
UNTOLD = {"heads": 2, "grid": (2, 3)}


def test_the_seed_decides_every_weight(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(tmp_path / f"{name}.pt", SPEC, seed)
    a, b, c = (
        read_checkpoint(tmp_path / f"{name}.pt", overrides=UNTOLD).tensors() for name in "abc"
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def test_nothing_is_zero_or_one_by_construction(tmp_path):
    write_random_checkpoint(tmp_path / "a.pt", SPEC, 0)
    tensors = read_checkpoint(tmp_path / "a.pt", overrides=UNTOLD).tensors()
    for name, tensor in tensors.items():
        assert tensor.std() > 0.001, name
    head = tensors["transformer.head.1.weight"]
    assert (head.norm(dim=1) > 1).all()  # logits of a normed input spread by about 2
    norms = [tensor for name, tensor in tensors.items() if name.endswith("norm.weight")]
    assert norms
    assert all((tensor.mean() - 1).abs() < 0.3 for tensor in norms)


def test_a_tokenizer_file_has_ema_weights_near_its_live_ones(tmp_path):
    write_random_checkpoint(tmp_path / "a.pt", ModelSpec(SPEC.tokenizer, None), 0)
    ema = read_checkpoint(tmp_path / "a.pt")
    live = read_checkpoint(tmp_path / "a.pt", weights="live").tensors()
    assert ema.source.weights == "ema"
    for name, tensor in ema.tensors().items():
        assert 0 < (tensor - live[name]).abs().max() < 0.02, name
