import itertools
import math

import numpy as np
import pytest
import torch

from m2kit.training.losses.entropy import entropies, enumerated_entropies


def latents(*shape, spread=0.003, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_hand(latent, temperature, floor):
    """Code by code and position by position, in plain Python."""
    positions = latent.movedim(1, -1).flatten(0, -2).tolist()
    codes = list(itertools.product((-1, 1), repeat=len(positions[0])))
    mean, total = dict.fromkeys(codes, 0.0), 0.0
    for z in positions:
        scores = {c: math.exp(2 * float(np.dot(z, c)) / temperature) for c in codes}
        whole = sum(scores.values())
        for code, score in scores.items():
            p = score / whole
            mean[code] += p / len(positions)
            total -= p * math.log(p) / len(positions)
    return total, -sum(p * math.log(p + floor) for p in mean.values())


@pytest.mark.parametrize("floor", [1e-5, 1e-300])
@pytest.mark.parametrize("form", [entropies, enumerated_entropies])
def test_both_forms_are_the_definition(form, floor):
    latent = latents(2, 5, 3, 2)
    found = form(latent, 0.01, floor=floor)
    expected = by_hand(latent, 0.01, floor)
    assert [found.per_position.item(), found.of_mean.item()] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 7, 12])
@pytest.mark.parametrize("spread", [0.0005, 0.01, 1.0])
def test_values_and_gradients_agree_with_enumeration(bits, spread):
    results = []
    for form in (entropies, enumerated_entropies):
        latent = latents(2, bits, 4, 4, spread=spread).requires_grad_()
        found = form(latent)
        (found.per_position - found.of_mean).backward()
        results.append((found.per_position.item(), found.of_mean.item(), latent.grad))
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-6, atol=1e-12)


def test_an_entropy_without_floor_is_one_of_certain_codes_too():
    latent = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).view(2, 2, 1, 1)
    found = entropies(latent, floor=0)
    assert found.per_position.item() == 0
    assert found.of_mean.item() == pytest.approx(math.log(2))


def test_groups_bound_the_exact_entropy_from_above():
    latent = latents(4, 12, 4, 4)
    exact, grouped = entropies(latent, floor=0), entropies(latent, floor=0, group_bits=5)
    assert grouped.per_position == exact.per_position
    assert grouped.of_mean > exact.of_mean + 0.01
    parts = [entropies(part, floor=0).of_mean for part in torch.split(latent, 5, dim=1)]
    assert grouped.of_mean.item() == pytest.approx(sum(parts).item())


def test_the_published_floor_matters_for_2_to_the_18_codes():
    """Uniform codes: 18 bits without it, log(2^-18 + 1e-5) with it."""
    latent = torch.zeros(1, 18, 2, 2)
    assert entropies(latent, floor=0).of_mean.item() == pytest.approx(18 * math.log(2), rel=1e-5)
    expected = -math.log(2**-18 + 1e-5)
    assert entropies(latent).of_mean.item() == pytest.approx(expected, rel=1e-5)


def _process(rank, folder, result):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    latent = latents(4, 6, 2, 2)[2 * rank : 2 * rank + 2].requires_grad_()
    found = entropies(latent, over_processes=True)
    found.of_mean.backward()
    result.put((rank, found.of_mean.item(), latent.grad.numpy()))
    torch.distributed.destroy_process_group()


def test_over_processes_it_is_the_entropy_of_all(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    result = context.Queue()
    running = [context.Process(target=_process, args=(r, tmp_path, result)) for r in (0, 1)]
    for process in running:
        process.start()
    found = sorted(result.get(timeout=60) for _ in running)
    for process in running:
        process.join()
    whole = latents(4, 6, 2, 2).requires_grad_()
    entropies(whole).of_mean.backward()
    for rank, value, gradient in found:
        assert value == pytest.approx(entropies(whole).of_mean.item(), rel=1e-12)
        own = whole.grad[2 * rank : 2 * rank + 2].numpy()
        # the mean over two processes of a gradient that each has of its own part alone
        np.testing.assert_allclose(gradient / 2, own, rtol=1e-9, atol=1e-15)
