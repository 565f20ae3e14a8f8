"""Video tokenizers through export, build-engine and the engine: what PyTorch computes."""

import numpy as np
import pytest
from conftest import GOLDEN, PORTABLE_OPS

import m2kit
from m2kit.config import ModelSpec
from m2kit.engines.building import build_engine
from m2kit.errors import InputError
from m2kit.export.exporter import export_bundle
from m2kit.families.video import VideoTokenizerSpec
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.torch_backend import TorchBackend


@pytest.mark.parametrize("weights", ["live", "ema"])
def test_golden_clips_give_the_golden_indices_and_frames(exported, golden, weights):
    _, folder = exported(GOLDEN / "video_tiny.ckpt", weights=weights)
    data = golden("video_tiny")
    with m2kit.open_engine(folder) as engine:
        assert engine.spec.tokenizer.frames == 17  # assumed
        for frames in (1, 5):
            clip = data[f"video_{frames}"]
            np.testing.assert_allclose(engine.latents(clip), data[f"z_{frames}"], atol=1e-4)
            tokens = engine.encode(clip)
            np.testing.assert_array_equal(tokens.ravel(), data[f"indices_{frames}"])
            decoded = engine.decode(tokens, clip=False)
            np.testing.assert_allclose(decoded, data[f"reconstruction_{frames}"], atol=1e-4)


SIZES = ((1, 1, 2, 1), (2, 5, 1, 2), (1, 9, 2, 2), (1, 33, 1, 1))  # batch, T, h, w
SPECS = {  # multipliers, blocks, bits, adaptive norm, bit order
    "as video-128": ((1, 2, 2, 4), 1, 18, True, "lsb"),
    "time alone first": ((2, 1, 2), 2, 5, True, "msb"),
    "no adaptive norm": ((2, 2), 1, 7, False, "lsb"),
    "one level": ((1,), 1, 3, True, "lsb"),
}


@pytest.mark.parametrize("name", SPECS)
def test_an_engine_computes_what_pytorch_does(name, tmp_path):
    multipliers, blocks, bits, adaptive, order = SPECS[name]
    tokenizer = VideoTokenizerSpec(32, multipliers, blocks, bits, adaptive, order, 1)
    write_random_checkpoint(tmp_path / "v.pt", ModelSpec(tokenizer, None), seed=3)
    told = {"frames": 1, "bit_order": order}
    checkpoint = read_checkpoint(tmp_path / "v.pt", overrides=told)
    assert checkpoint.spec.tokenizer == tokenizer
    manifest = export_bundle(checkpoint, tmp_path / "v.bundle", "v")
    assert {op for _, _, entry in manifest.entries() for op in entry.ops} <= PORTABLE_OPS
    build_engine(tmp_path / "v.bundle", tmp_path / "v.engine", "onnxruntime")
    model = model_from_checkpoint(checkpoint)
    in_torch = Engine(model.spec, TorchBackend(model))
    time, side = tokenizer.strides[0], tokenizer.strides[1]
    generator = np.random.default_rng(0)
    with m2kit.open_engine(tmp_path / "v.engine") as engine:
        for batch, frames, height, width in (
            (1, 1, 2, 1),
            (2, 5, 1, 2),
            (1, 9, 2, 2),
            (1, 33, 1, 1),
        ):
            shape = (batch, 3, frames, height * side, width * side)
            clip = generator.uniform(-1, 1, shape).astype(np.float32)
            latents = in_torch.latents(clip)
            np.testing.assert_allclose(engine.latents(clip), latents, atol=1e-4)
            codes, tokens = in_torch.quantize(latents)
            assert tokens.shape == (batch, (frames - 1) // time + 1, height, width, 1)
            for found, expected in zip(engine.quantize(latents), (codes, tokens), strict=True):
                np.testing.assert_array_equal(found, expected)
            decoded = in_torch.decode(tokens, clip=False)
            assert decoded.shape == shape
            np.testing.assert_allclose(engine.decode(tokens, clip=False), decoded, atol=1e-4)
        pixels = generator.integers(0, 256, (1, 5, side, 2 * side, 3), np.uint8)
        as_floats = np.moveaxis(pixels, -1, 1) / np.float32(127.5) - 1
        np.testing.assert_array_equal(engine.encode(pixels), engine.encode(as_floats))
        assert (np.abs(m2kit.to_uint8(as_floats).astype(int) - pixels) <= 1).all()  # truncated
        if time > 1:
            words = rf"T must be 1 plus a multiple of {time}, found {time} \(next valid: 1 and"
            with pytest.raises(InputError, match=words):
                engine.encode(np.zeros((1, 3, time, side, side), np.float32))
        if adaptive:
            with pytest.raises(InputError, match="a single latent position"):
                engine.encode(np.zeros((1, 3, 1, side, side), np.float32))
        with pytest.raises(InputError, match=r"shape \(B, 3, T, H, W\)"):
            engine.encode(np.zeros((1, 3, side, side), np.float32))
