import numpy as np
import pytest
import torch

from m2kit.training.recipes.averaged_module import warm_up_then_linear


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warm_up_then_linear(optimizer, warm_up=4, steps=14, floor=0.1)
    rates = []
    for _ in range(16):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx(0.1)
    assert rates[15] == pytest.approx(0.1)
