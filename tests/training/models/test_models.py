"""The PyTorch models against the official implementation, and against themselves."""

import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN, tiny_spec

from m2kit import Sampling
from m2kit.families.sign_bits import tokens_from_codes
from m2kit.runtime.engine import Engine
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.models import lfq
from m2kit.training.models.model import TorchModel
from m2kit.training.models.rope import rotary_table, rotate
from m2kit.training.models.tokenizer import AdaptiveGroupNorm, Tokenizer, Upsample
from m2kit.training.models.transformer import RMSNorm, Transformer
from m2kit.training.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def ar_tiny():
    checkpoint = read_checkpoint(GOLDEN / "ar_tiny.ckpt", overrides={"heads": 4})
    model = model_from_checkpoint(checkpoint)
    return Engine(model.spec, TorchBackend(model))


def random_model(spec, seed=0):
    """A model with random weights everywhere, so that nothing is zero or one by chance."""
    torch.manual_seed(seed)
    model = TorchModel(spec, Tokenizer(spec.tokenizer), Transformer(spec.transformer))
    for module in (model.tokenizer, model.transformer):
        for parameter in module.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        module.eval().requires_grad_(False)
    return model


def test_golden_ids_logits_and_images_reproduce_in_torch(ar_tiny, golden):
    data = golden("ar_tiny")
    tokens = ar_tiny.encode(data["image"]).reshape(2, 16, 2)
    np.testing.assert_array_equal(tokens[..., 0], data["image_index_pre"])
    np.testing.assert_array_equal(tokens[..., 1], data["image_index_post"])
    forced = np.stack([data["index_pre"], data["index_post"]], -1).reshape(2, 4, 4, 2)
    for found, name in zip(ar_tiny.score(data["class_id"], forced), ("pre", "post"), strict=True):
        np.testing.assert_allclose(found.reshape(2, 16, -1), data[f"logits_{name}"], atol=1e-4)
    np.testing.assert_allclose(ar_tiny.decode(forced, clip=False), data["decoded_image"], atol=1e-4)


@pytest.mark.parametrize("bits", [(5,), (2, 3), (3, 2), (2, 1, 2), (1, 1, 1, 2)])
def test_cached_steps_give_the_teacher_forced_logits(bits):
    spec = tiny_spec(bits=bits)
    model = random_model(spec)
    engine = Engine(spec, TorchBackend(model))
    tokens = engine.sample([0, 3, 1], Sampling(seed=1, guidance=2.0))
    cached = engine.score([0, 3, 1], tokens)
    classes, flat = torch.tensor([0, 3, 1]), torch.from_numpy(tokens).flatten(1, 2)
    for found, expected in zip(cached, model.transformer(classes, flat), strict=True):
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-5)


def test_the_class_token_has_no_query_and_key():
    table = rotary_table((2, 3), 8, 10000.0)
    assert table.shape == (7, 4, 2)
    x = torch.randn(1, 1, 1, 8)
    assert (rotate(x, table[:1]) == 0).all()
    torch.testing.assert_close(rotate(x, table[1:2]), x)  # the first image token stays
    row, column = table[1 + 3], table[1 + 1]  # one down, one to the right
    assert (row[:2, 1] != 0).all()
    assert (row[2:, 1] == 0).all()
    assert (column[:2, 1] == 0).all()
    assert (column[2:, 1] != 0).all()
    assert row[1, 1].item() == pytest.approx(math.sin(10000**-0.5))


def test_rotation_turns_interleaved_pairs():
    angle = torch.tensor([[[math.cos(0.3), math.sin(0.3)]]])  # (T, d / 2, 2)
    turned = rotate(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), angle).flatten()
    torch.testing.assert_close(turned, torch.tensor([math.cos(0.3), math.sin(0.3)]))


def test_half_precision_is_rotated_and_normed_in_float32():
    assert rotate(torch.ones(1, 1, 1, 8).half(), rotary_table((1, 1), 8, 1e4)[1:]).dtype == (
        torch.float32
    )
    large = torch.full((1, 16), 300.0).half()  # its square overflows float16
    assert torch.isfinite(RMSNorm(16).half()(large)).all()


def test_adaptive_norm_uses_the_unbiased_variance():
    norm = AdaptiveGroupNorm(32, 2)
    torch.nn.init.zeros_(norm.beta.weight)
    torch.nn.init.zeros_(norm.beta.bias)
    torch.nn.init.zeros_(norm.gamma.bias)
    norm.gamma.weight.data[:] = torch.tensor([1.0, 0.0])
    codes = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    x = torch.randn(1, 32, 4, 4)
    scale = (norm(x, codes) / norm.gn(x)).mean().item()
    assert scale == pytest.approx(1.0, abs=1e-5)  # sqrt(3 / 3); biased: sqrt(3 / 4)


def test_depth_to_space_has_slow_block_offsets():
    up = Upsample(1, (2, 2))
    torch.nn.init.zeros_(up.conv1.weight)
    up.conv1.bias.data = torch.arange(4.0)
    assert up(torch.zeros(1, 1, 1, 1)).flatten().tolist() == [0, 1, 2, 3]
    wide = Upsample(2, (2, 2))
    torch.nn.init.zeros_(wide.conv1.weight)
    wide.conv1.bias.data = torch.arange(8.0)
    assert wide(torch.zeros(1, 2, 1, 1))[0, 0].flatten().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("bits", [(18,), (6, 12), (9, 9), (4, 5, 9)])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_torch_and_numpy_read_the_same_tokens(bits, order):
    latent = torch.randn(2, 18, 3, 4)
    latent[0, 0, 0, 0] = 0.0
    codes = lfq.quantize(latent)
    assert codes[0, 0, 0, 0] == -1
    found = lfq.tokens_from_codes(codes, bits, order).numpy()
    np.testing.assert_array_equal(found, tokens_from_codes(latent.numpy(), bits, order))


def test_the_gradient_passes_straight_through_the_sign():
    latent = torch.randn(1, 4, 2, 2, requires_grad=True)
    quantized = lfq.quantize(latent)
    assert set(quantized.detach().sign().unique().tolist()) <= {-1.0, 1.0}
    (quantized * 3).sum().backward()
    assert (latent.grad == 3).all()
