"""Checkpoint -> bundle -> engine -> numbers, against the official implementation and PyTorch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DIGITS_CHECKPOINT, GOLDEN, tiny_spec

import m2kit
from m2kit.engines.building import build_engine
from m2kit.errors import ParityError
from m2kit.export.exporter import export_bundle
from m2kit.families.image import ImageTokenizerSpec
from m2kit.families.sign_bits import bits_of
from m2kit.hashes import sha256_of_file
from m2kit.manifest import BUNDLE
from m2kit.manifest_file import read_manifest
from m2kit.runtime.engine import Engine
from m2kit.tolerances import difference
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import Checkpoint, model_from_checkpoint, read_checkpoint
from m2kit.training.models.model import expected_shapes
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
    np.testing.assert_allclose(ar_tiny.decode(tokens, clip=False), data["decoded_image"], atol=1e-4)


@pytest.mark.parametrize("scales", [(4.0, 4.0), (1.5, 3.0)])
def test_golden_greedy_guided_trajectories_reproduce(ar_tiny, golden, scales):
    data, name = golden("ar_tiny"), "greedy_cfg_{}_{}".format(*scales)
    tokens = ar_tiny.sample(data["class_id"], m2kit.Sampling(greedy=True, guidance=scales))
    flat = tokens.reshape(2, 16, 2)
    np.testing.assert_array_equal(flat[..., 0], data[f"{name}_pre"])
    np.testing.assert_array_equal(flat[..., 1], data[f"{name}_post"])
    np.testing.assert_allclose(ar_tiny.decode(tokens, clip=False), data[f"{name}_image"], atol=1e-4)


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_the_golden_tokenizer_reproduces(exported, golden, weights):
    data = golden("tokenizer_tiny")
    with m2kit.open_engine(exported(GOLDEN / "tokenizer_tiny.ckpt", weights)[1]) as engine:
        np.testing.assert_allclose(engine.latents(data["image"]), data[f"{weights}_z"], atol=1e-4)
        tokens = engine.encode(data["image"])
        indices = data[f"{weights}_indices"].reshape(tokens.shape[:3])
        np.testing.assert_array_equal(tokens[..., 0], indices)
        codes = engine.spec.tokenizer.codes_from_tokens(tokens, engine.spec.vocabularies)
        np.testing.assert_array_equal(codes, data[f"{weights}_codes"])
        np.testing.assert_allclose(
            engine.decode(tokens, clip=False), data[f"{weights}_reconstruction"], atol=1e-4
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


def spec_of(tokenizer, **transformer):
    """A tiny spec with another tokenizer: base channels, multipliers, blocks, adaptive, order."""
    base, multipliers, blocks, adaptive, order = tokenizer
    spec = tiny_spec(**transformer)
    bits = sum(bits_of(spec.vocabularies))
    return replace(
        spec, tokenizer=ImageTokenizerSpec(base, multipliers, blocks, bits, adaptive, order)
    )


@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(bits=(5,)),
        tiny_spec(bits=(1, 2, 2), classes=1),
        tiny_spec(bits=(1, 1, 1, 2), grid=(3, 2), heads=4),
        tiny_spec(intra_layers=2, inter_layers=1, grid=(1, 5), rope_base=100.0),
        spec_of((64, (1, 2, 1, 3), 2, False, "msb"), width=40, heads=2, ffn_width=52, bits=(6, 3)),
        spec_of((32, (2,), 3, True, "lsb"), width=24, heads=6, classes=77, grid=(5, 2)),
    ],
    ids=lambda spec: f"{spec.vocabularies} {spec.tokenizer.channel_multipliers}",
)
def test_any_architecture_exports_from_the_official_layout(tmp_path, spec):
    """The file holds tensors alone; batch 3, and every mix of guidance scales."""
    write_random_checkpoint(tmp_path / "x.pt", spec, 1)
    untold = {name: getattr(spec.transformer, name) for name in ("heads", "grid", "rope_base")}
    checkpoint = read_checkpoint(tmp_path / "x.pt", overrides=untold)
    assert checkpoint.spec == spec
    assert set(checkpoint.tensors()) == set(expected_shapes(spec))
    export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    manifest = build_engine(tmp_path / "x.bundle", tmp_path / "x.engine", "onnxruntime")
    assert manifest.parity.passed
    in_torch = Engine(spec, TorchBackend(model_from_checkpoint(checkpoint)))
    with m2kit.open_engine(tmp_path / "x.engine") as engine:
        classes, count = [0, spec.transformer.classes - 1, 0], spec.sub_tokens
        for scales in (1.0, 1.7, (1.0,) + (3.0,) * (count - 1), (3.0,) + (1.0,) * (count - 1)):
            sampling = m2kit.Sampling(seed=2, guidance=scales)
            tokens = engine.sample(classes, sampling)
            np.testing.assert_array_equal(tokens, in_torch.sample(classes, sampling))
        images = engine.decode(tokens, clip=False)
        assert difference(images, in_torch.decode(tokens, clip=False)) <= 1e-4
        clipped = images.clip(-1, 1)
        np.testing.assert_array_equal(engine.encode(clipped), in_torch.encode(clipped))


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0), (1.0, 1.0)])
def test_guidance_of_one_switches_off_that_sub_token_alone(ar_tiny, golden, scales):
    """The official sampler crashes on these; u + s (c - u) is c where s is 1."""
    data = golden("ar_tiny")
    classes, model = data["class_id"], ar_tiny.spec.transformer
    tokens = ar_tiny.sample(classes, m2kit.Sampling(greedy=True, guidance=scales))
    conditional = ar_tiny.score(classes, tokens)
    free = ar_tiny.score(np.full_like(classes, model.classes), tokens)
    for k, scale in enumerate(scales):
        guided = conditional[k] if scale == 1 else free[k] + scale * (conditional[k] - free[k])
        np.testing.assert_array_equal(tokens[..., k], guided.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_export(tmp_path, dtype):
    content = torch.load(GOLDEN / "ar_tiny.ckpt", weights_only=True)
    content["state_dict"] = {n: t.to(dtype) for n, t in content["state_dict"].items()}
    torch.save(content, tmp_path / "half.pt")
    checkpoint = read_checkpoint(tmp_path / "half.pt", overrides={"heads": 4})
    export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    build_engine(tmp_path / "x.bundle", tmp_path / "x.engine", "onnxruntime")
    in_torch = Engine(checkpoint.spec, TorchBackend(model_from_checkpoint(checkpoint)))
    with m2kit.open_engine(tmp_path / "x.engine") as engine:
        tokens = engine.sample([1, 2, 3], m2kit.Sampling(seed=3, guidance=2.0))
        for found, expected in zip(
            engine.score([1, 2, 3], tokens), in_torch.score([1, 2, 3], tokens), strict=True
        ):
            assert difference(found, expected) <= 1e-4


def test_the_golden_first_release_reproduces(exported, golden):
    data = golden("tokenizer_v01_tiny")
    with m2kit.open_engine(exported(GOLDEN / "tokenizer_v01_tiny.ckpt")[1]) as engine:
        np.testing.assert_allclose(engine.latents(data["image"]), data["ema_z"], atol=1e-4)
        tokens = engine.encode(data["image"])
        np.testing.assert_array_equal(tokens[..., 0], data["ema_indices"].reshape(tokens.shape[:3]))
        codes = engine.spec.tokenizer.codes_from_tokens(tokens, engine.spec.vocabularies)
        np.testing.assert_array_equal(codes, data["ema_codes"])
        np.testing.assert_allclose(
            engine.decode(tokens, clip=False), data["ema_reconstruction"], atol=1e-4
        )


def test_the_bundle_says_which_weights_were_taken(tmp_path):
    tokenizer = GOLDEN / "tokenizer_tiny.ckpt"
    checkpoint = read_checkpoint(
        GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4, "grid": (4, 4)}, tokenizer=tokenizer
    )
    manifest = export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    source = read_manifest(tmp_path / "x.bundle", BUNDLE).source
    assert source == manifest.source
    assert source.weights == "stored"
    assert source.tokenizer_weights == "ema"
    assert source.tokenizer_sha256 == sha256_of_file(tokenizer)


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
    real = Checkpoint.loader

    def wrong(checkpoint):
        load = real(checkpoint)
        return lambda tensor: load(tensor) + (0.01 if tensor == name else 0)

    monkeypatch.setattr(Checkpoint, "loader", wrong)
    checkpoint = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4})
    with pytest.raises(ParityError, match=check):
        export_bundle(checkpoint, tmp_path / "x.bundle", "x")
    assert list(tmp_path.iterdir()) == []
