import numpy as np
import pytest
import torch

from m2kit.training.losses.tokens import token_nats


def test_bits_per_token_of_uniform_logits_are_the_code_bits():
    logits = [torch.zeros(2, 3, 8), torch.zeros(2, 3, 32)]
    tokens = torch.zeros(2, 3, 2, dtype=torch.int64)
    assert token_nats(logits, tokens).item() == pytest.approx(8 * np.log(2))
