import numpy as np
import pytest
import torch

from m2kit.training.losses import entropy_loss, token_nats


def test_bits_per_token_of_uniform_logits_are_the_code_bits():
    logits = [torch.zeros(2, 3, 8), torch.zeros(2, 3, 32)]
    tokens = torch.zeros(2, 3, 2, dtype=torch.int64)
    assert token_nats(logits, tokens).item() == pytest.approx(8 * np.log(2))


def test_the_entropy_terms_are_those_of_the_full_softmax():
    latent = 0.05 * torch.randn(2, 3, 2, 2, dtype=torch.float64)
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    flat = latent.permute(0, 2, 3, 1).reshape(-1, 3)
    soft = (2 * flat @ codes.T / 0.1).softmax(-1)
    per_position = -(soft * soft.log()).sum(-1).mean()
    mean = soft.mean(0)
    found = entropy_loss(latent, 0.1)
    torch.testing.assert_close(found[0], per_position)
    torch.testing.assert_close(found[1], -(mean * mean.log()).sum())
