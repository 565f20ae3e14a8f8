"""What a step needs in memory: counted as it is, and measured on tensors without values."""

import pytest
import torch

from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.recipes.machine import Machine
from m2kit.training.recipes.memory import LiveBytes, step_memory
from m2kit.training.recipes.presets import published
from m2kit.training.recipes.settings import TokenizerSettings
from m2kit.training.recipes.tokenizer import TokenizerRecipe

SMALL = {"base_channels": 32, "blocks_per_level": 1, "size": 32, "adversary_width": 32}


def memory(images=4, processes=1, on_gpu=False, changes=(), **machine):
    values = published("tokenizer-256") | SMALL | dict(changes)
    settings = TokenizerSettings(data="digits", seed=0, **values)
    with torch.device("meta"):
        network = PerceptualNetwork() if settings.perceptual_weight else None
        recipe = TokenizerRecipe(settings, 1000, network)
        part = [torch.empty(images, 3, 32, 32), torch.empty(images, dtype=torch.int64)]
    fixed = [network] if network else []
    found = step_memory(recipe, fixed, part, Machine(**machine), processes=processes, on_gpu=on_gpu)
    return found, recipe


def test_bytes_live_from_their_operator_to_their_last_use():
    known = torch.ones(1000)
    with LiveBytes([known]) as live:
        double = known * 2
        view = double.view(10, 100)
        assert live.now == 4000
        more = known.view(-1) + 1
        assert live.now == 8000
        del double
        assert live.now == 8000
        del view
        assert live.now == 4000
        half = more.half()
    assert live.now == 6000
    assert live.peak == 8000
    del half


def test_what_a_gradient_needs_lives_until_it_was_used():
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes([weight]) as live:
        out = (weight * 2).exp().sin().sum()
        forward = live.now
        out.backward()
    assert forward == 4000 + 4  # exp keeps its result, which sin takes; the sum
    assert live.now == 4000 + 4  # the gradient of the weight
    assert live.peak >= 3 * 4000


def test_weights_gradients_moments_and_averages_are_counted():
    found, recipe = memory()
    networks = [phase.network for phase in recipe.phases]
    trained = [p for network in networks for p in network.parameters()]
    numbers = sum(p.numel() for p in trained)
    kept = 4 * numbers + sum(
        b.numel() * b.element_size() for network in networks for b in network.buffers()
    )
    lpips = 14_716_160 + 6  # shift and scale
    assert found.gradients_bytes == 4 * numbers
    assert found.optimizer_bytes == 8 * numbers + 4 * len(trained)
    assert found.averages_bytes == kept
    assert found.weights_bytes == kept + 4 * lpips
    assert found.exchange_bytes == 0
    assert found.total_bytes == sum(
        (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes, found.averages_bytes,
         found.activations_bytes)
    )  # fmt: skip


def test_precision_and_strategy_change_what_they_should():
    whole, _ = memory(images=128)
    double, _ = memory(images=128, precision="fp64")
    assert double.weights_bytes == pytest.approx(2 * whole.weights_bytes, rel=1e-4)
    assert double.activations_bytes == pytest.approx(
        2 * whole.activations_bytes, rel=0.03
    )  # but masks
    half, _ = memory(images=128, precision="bf16")
    assert half.weights_bytes == whole.weights_bytes
    assert half.activations_bytes < 0.8 * whole.activations_bytes
    on_gpu, _ = memory(images=128, precision="bf16", on_gpu=True)  # where GroupNorm stays float32
    assert half.activations_bytes < on_gpu.activations_bytes < whole.activations_bytes
    shared, _ = memory(images=128, processes=4)
    assert shared.exchange_bytes == shared.gradients_bytes == whole.gradients_bytes
    assert shared.activations_bytes == whole.activations_bytes
    sharded, _ = memory(images=128, processes=4, strategy="sharded")
    assert sharded.gradients_bytes == whole.gradients_bytes // 4
    assert sharded.averages_bytes == whole.averages_bytes // 4
    assert sharded.weights_bytes > whole.weights_bytes // 4  # LPIPS is not divided
    assert 0 < sharded.exchange_bytes < 2 * whole.gradients_bytes


def test_activations_are_those_of_a_part_and_the_pictures_of_all_parts():
    one, _ = memory(images=4)
    two, _ = memory(images=4, accumulate=2)
    pictures = 4 * 3 * 32 * 32 * 4
    labels = 4 * 8
    assert two.activations_bytes == one.activations_bytes + 2 * (pictures + labels)
    larger, _ = memory(images=8)
    assert larger.activations_bytes > 1.5 * one.activations_bytes


def test_terms_that_are_left_out_need_nothing():
    with_all, _ = memory()
    plain, _ = memory(changes={"perceptual_weight": 0.0, "adversary": "none"})
    assert plain.activations_bytes < with_all.activations_bytes
    assert plain.weights_bytes < with_all.weights_bytes - 4 * 14_000_000
