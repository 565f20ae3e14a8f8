import math

import pytest
import torch

from m2kit.training.losses.adversary import LeCam, generator_loss, hinge_loss


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_generator_term_averages_an_images_patches_first():
    fake = torch.tensor([[1.0, 3.0], [-4.0, 0.0]]).view(2, 1, 1, 2)
    assert generator_loss(fake).item() == pytest.approx((softplus(-2) + softplus(2)) / 2)


def test_the_hinge_is_over_patches():
    real = torch.tensor([2.0, 0.5, -1.0, 1.0]).view(1, 1, 2, 2)
    fake = torch.tensor([-2.0, -0.5, 1.0, -1.0]).view(1, 1, 2, 2)
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 4 + 2.5 / 4))


def test_lecam_updates_its_averages_before_it_uses_them():
    lecam, averages = LeCam(0.9), [0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        real = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64) + 1
        fake = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64) - 1
        lecam.update(real, fake)
        averages = [0.9 * averages[0] + 0.1 * real.mean().item(),
                    0.9 * averages[1] + 0.1 * fake.mean().item()]  # fmt: skip
        expected = sum(max(0.0, x - averages[1]) ** 2 for x in real.flatten().tolist()) / 18
        expected += sum(max(0.0, averages[0] - x) ** 2 for x in fake.flatten().tolist()) / 18
        assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-12)


def test_the_averages_are_part_of_the_state_and_have_no_gradient():
    lecam = LeCam()
    logits = torch.ones(1, 1, 2, 2, requires_grad=True)
    lecam.update(logits, logits)
    again = LeCam()
    again.load_state_dict(lecam.state_dict())
    assert again.real.item() == pytest.approx(0.001)
    lecam(logits, logits).backward()
    assert logits.grad is not None
    assert lecam.fake.grad is None


def test_of_clips_all_patches_of_all_times_are_a_clips():
    """Against loops over every logit of (B, 1, t, h, w)."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 3, 2, 2, generator=generator).double() for _ in range(2))
    clips = [clip.flatten().tolist() for clip in fake]
    expected = [softplus(-sum(clip) / len(clip)) for clip in clips]
    assert generator_loss(fake).item() == pytest.approx(sum(expected) / 2)
    margins = [max(0.0, 1 - x) for x in real.flatten().tolist()]
    others = [max(0.0, 1 + x) for x in fake.flatten().tolist()]
    assert hinge_loss(real, fake).item() == pytest.approx((sum(margins) + sum(others)) / 48)
    lecam = LeCam()
    lecam.update(real, fake)
    to_real, to_fake = (0.001 * sum(part.flatten().tolist()) / 24 for part in (real, fake))
    above = [max(0.0, x - to_fake) ** 2 for x in real.flatten().tolist()]
    below = [max(0.0, to_real - x) ** 2 for x in fake.flatten().tolist()]
    assert lecam(real, fake).item() == pytest.approx((sum(above) + sum(below)) / 24)
