"""The video tokenizer in PyTorch, against the official implementation and its rules."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from torch.utils.flop_counter import FlopCounterMode

from m2kit.config import PRESETS
from m2kit.families.image import ImageTokenizerSpec
from m2kit.families.video import VideoTokenizerSpec
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.models.tokenizer import CausalConv3d, Tokenizer, Upsample
from m2kit.training.torch_backend import TorchBackend


@pytest.mark.parametrize("weights", ["live", "ema"])
@pytest.mark.parametrize("frames", [1, 5])
def test_golden_indices_latents_and_frames_reproduce(golden, frames, weights):
    data = golden("video_tiny")
    model = model_from_checkpoint(read_checkpoint(GOLDEN / "video_tiny.ckpt", weights=weights))
    engine = Engine(model.spec, TorchBackend(model))
    clip = data[f"video_{frames}"]
    latents = engine.latents(clip)
    np.testing.assert_allclose(latents, data[f"z_{frames}"], atol=1e-4)
    codes, tokens = engine.quantize(latents)
    np.testing.assert_array_equal(codes, data[f"codes_{frames}"])
    assert tokens.shape == (1, frames, 8, 8, 1)
    np.testing.assert_array_equal(tokens.ravel(), data[f"indices_{frames}"])
    np.testing.assert_array_equal(engine.encode(clip), tokens)
    decoded = engine.decode(tokens, clip=False)
    np.testing.assert_allclose(decoded, data[f"reconstruction_{frames}"], atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (PRESETS["video-128"].spec.tokenizer, (17, 128, 128)),
        (VideoTokenizerSpec(32, (1, 2, 3), 2, 6, True, "lsb", 1), (1, 16, 24)),
        (VideoTokenizerSpec(64, (2, 1), 1, 5, False, "lsb", 5), (5, 8, 4)),
        (PRESETS["tokenizer-256"].spec.tokenizer, (256, 256)),
        (ImageTokenizerSpec(32, (2, 1, 1), 1, 4, False, "msb"), (8, 32)),
    ],
)
def test_the_specs_multiply_adds_are_those_that_torch_counts(spec, size):
    with torch.device("meta"):
        model, picture = Tokenizer(spec), torch.zeros(1, 3, *size)
    layers = spec.convolutions(size)
    for part, module in (("encoder", model.encoder), ("decoder", model.decoder)):
        with FlopCounterMode(display=False) as counter:
            picture = module(picture)
        (found,) = (
            count
            for operator, count in counter.get_flop_counts()["Global"].items()
            if "convolution" in str(operator)
        )
        assert found == 2 * sum(layer.macs for layer in layers[part])
        kernels = sum(p.numel() for p in module.parameters() if p.ndim > 2)
        assert kernels == sum(layer.weights for layer in layers[part])
        assert spec.parameter_counts()[part] == sum(p.numel() for p in module.parameters())
    assert picture.shape == (1, 3, *size)


def test_a_convolution_sees_the_frame_and_two_before_it():
    conv = CausalConv3d(1, 1, 3, (1, 1, 1), bias=False)
    torch.nn.init.ones_(conv.conv_1.weight)
    clip = torch.zeros(1, 1, 5, 3, 3)
    clip[0, 0, 1, 1, 1] = 1
    assert conv(clip)[0, 0, :, 1, 1].tolist() == [0, 1, 1, 1, 0]
    strided = CausalConv3d(1, 1, 3, (2, 2, 2), bias=False)
    assert strided(clip).shape == (1, 1, 3, 2, 2)  # T' = (T - 1) // 2 + 1
    assert [name for name, _ in strided.named_parameters()] == ["conv_1.weight"]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_upsampling_goes_t_h_w_c_and_drops_the_second_frame(frames):
    up = Upsample(3, (2, 2, 2))
    x = torch.randn(2, 3, frames, 2, 3)
    blocks = up.conv1(x).detach()
    whole = torch.zeros(2, 3, 2 * frames, 4, 6)
    for index in range(24):  # channels of the convolution
        t, h, w, c = index // 12, index // 6 % 2, index // 3 % 2, index % 3
        whole[:, c, t::2, h::2, w::2] = blocks[:, index]
    kept = [0, *range(2, 2 * frames)]
    assert len(kept) == 2 * frames - 1
    assert torch.equal(up(x), whole[:, :, kept])


def test_upsampling_that_leaves_time_alone_drops_nothing():
    up = Upsample(2, (1, 2, 2))
    x = torch.randn(1, 2, 3, 2, 2)
    assert up.conv1.conv_1.weight.shape == (8, 2, 3, 3, 3)
    assert up(x).shape == (1, 2, 3, 4, 4)


@pytest.mark.parametrize("multipliers", [(1, 2, 2), (2, 1, 1), (2, 2), (1,)])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_a_clip_comes_back_as_long_as_it_was(multipliers, frames):
    spec = VideoTokenizerSpec(32, multipliers, 1, 5, True, "lsb", 5)
    tokenizer = Tokenizer(spec)
    rebuilt, latent = tokenizer(torch.rand(2, 3, frames, 8, 16) * 2 - 1)
    time, side = spec.strides[0], spec.strides[1]
    assert latent.shape == (2, 5, (frames - 1) // time + 1, 8 // side, 16 // side)
    assert rebuilt.shape == (2, 3, frames, 8, 16)
