"""Checkpoint -> bundle -> engine -> numbers, against the official implementation and PyTorch."""

import numpy as np
import pytest
import torch
from conftest import DIGITS_CHECKPOINT, GOLDEN, tiny_spec

import m2kit
from m2kit.engines.onnxruntime_builder import build_onnxruntime_engine
from m2kit.errors import ParityError
from m2kit.export.exporter import export_bundle
from m2kit.runtime.engine import Engine
from m2kit.tokens import codes_from_tokens
from m2kit.tolerances import difference
from m2kit.training.checkpoint import (
    TorchModel,
    expected_shapes,
    model_from_checkpoint,
    read_checkpoint,
)
from m2kit.training.checkpoint_writer import write_ar_checkpoint
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.models.transformer import Transformer
from m2kit.training.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def ar_tiny(exported):
    with m2kit.open_engine(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[1]) as engine:
        yield engine


def test_golden_images_give_the_golden_ids(ar_tiny, golden):
    data = golden("ar_tiny")
    tokens = ar_tiny.encode(data["image"]).reshape(2, 16, 2)
    np.testing.assert_array_equal(tokens[..., 0], data["image_index_pre"])
    np.testing.assert_array_equal(tokens[..., 1], data["image_index_post"])


def test_golden_ids_give_the_golden_logits_and_image(ar_tiny, golden):
    data = golden("ar_tiny")
    tokens = np.stack([data["index_pre"], data["index_post"]], -1).reshape(2, 4, 4, 2)
    for found, name in zip(ar_tiny.score(data["class_id"], tokens), ("pre", "post"), strict=True):
        np.testing.assert_allclose(found.reshape(2, 16, -1), data[f"logits_{name}"], atol=1e-4)
    np.testing.assert_allclose(ar_tiny.decode(tokens), data["decoded_image"], atol=1e-4)


@pytest.mark.parametrize("scales", [(4.0, 4.0), (1.5, 3.0)])
def test_golden_greedy_guided_trajectories_reproduce(ar_tiny, golden, scales):
    data, name = golden("ar_tiny"), "greedy_cfg_{}_{}".format(*scales)
    tokens = ar_tiny.sample(data["class_id"], m2kit.Sampling(greedy=True, guidance=scales))
    flat = tokens.reshape(2, 16, 2)
    np.testing.assert_array_equal(flat[..., 0], data[f"{name}_pre"])
    np.testing.assert_array_equal(flat[..., 1], data[f"{name}_post"])
    np.testing.assert_allclose(ar_tiny.decode(tokens), data[f"{name}_image"], atol=1e-4)


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_the_golden_tokenizer_reproduces(exported, golden, weights):
    data = golden("tokenizer_tiny")
    with m2kit.open_engine(exported(GOLDEN / "tokenizer_tiny.ckpt", weights)[1]) as engine:
        np.testing.assert_allclose(engine.latents(data["image"]), data[f"{weights}_z"], atol=1e-4)
        tokens = engine.encode(data["image"])
        indices = data[f"{weights}_indices"].reshape(tokens.shape[:3])
        np.testing.assert_array_equal(tokens[..., 0], indices)
        codes = codes_from_tokens(tokens, engine.spec.bits, "lsb")
        np.testing.assert_array_equal(codes, data[f"{weights}_codes"])
        np.testing.assert_allclose(
            engine.decode(tokens), data[f"{weights}_reconstruction"], atol=1e-4
        )


def test_a_hundred_sampled_images_have_the_ids_that_pytorch_draws(exported):
    model = model_from_checkpoint(read_checkpoint(DIGITS_CHECKPOINT))
    classes, sampling = np.arange(100) % 10, m2kit.Sampling(seed=5)
    with m2kit.open_engine(exported(DIGITS_CHECKPOINT)[1]) as engine:
        in_torch = Engine(model.spec, TorchBackend(model), defaults=engine.defaults)
        tokens = engine.sample(classes, sampling)
        np.testing.assert_array_equal(tokens, in_torch.sample(classes, sampling))
        for found, expected in zip(
            engine.score(classes, tokens), in_torch.score(classes, tokens), strict=True
        ):
            assert difference(found, expected) <= 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"bits": (5,)},
        {"bits": (1, 2, 2), "classes": 1},
        {"bits": (1, 1, 1, 2), "grid": (3, 2), "heads": 4},
        {"intra_layers": 2, "inter_layers": 1, "grid": (1, 5), "rope_base": 100.0},
    ],
    ids=str,
)
def test_any_number_of_sub_tokens_and_any_grid_export(tmp_path, change):
    spec = tiny_spec(**change)
    torch.manual_seed(1)
    model = TorchModel(spec, Tokenizer(spec.tokenizer), Transformer(spec.transformer))
    for module in (model.tokenizer, model.transformer):
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    path = tmp_path / "x.pt"
    write_ar_checkpoint(path, model.tensors(), {"spec": spec.to_json()})
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec == spec
    assert set(checkpoint.tensors()) == set(expected_shapes(spec))
    export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    manifest = build_onnxruntime_engine(tmp_path / "x.bundle", tmp_path / "x.engine")
    assert manifest.parity["passed"]
    trained = Engine(spec, TorchBackend(model_from_checkpoint(checkpoint)))
    with m2kit.open_engine(tmp_path / "x.engine") as engine:
        classes = [0, spec.transformer.classes - 1, 0]
        sampling = m2kit.Sampling(seed=2, guidance=1.7)
        np.testing.assert_array_equal(
            engine.sample(classes, sampling), trained.sample(classes, sampling)
        )


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("transformer.spatial_blocks.1.attention.wo.weight", "logits of sub-token 0"),
        ("decoder.conv_out.bias", "decoder"),
        ("encoder.conv_out.bias", "encoder"),
    ],
)
def test_export_fails_where_a_graph_differs_from_pytorch(tmp_path, monkeypatch, name, check):
    """A wrong weight in the graphs stands for any mistake in them."""
    import m2kit.export.exporter as exporter

    real = exporter._weights

    def wrong(checkpoint):
        load = real(checkpoint)
        return lambda tensor: load(tensor) + (0.01 if tensor == name else 0)

    monkeypatch.setattr(exporter, "_weights", wrong)
    checkpoint = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4})
    with pytest.raises(ParityError, match=check):
        export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    assert list(tmp_path.iterdir()) == []
