import pytest
import torch

from m2kit.errors import InputError
from m2kit.training.models.discriminator import BlurDiscriminator, check_judged, discriminator


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("kind", "tensors", "count"), [("patch", 22, 2_765_633), ("blur", 21, 1_909_889)]
)
def test_sizes_are_the_published_ones(kind, tensors, count):
    net = discriminator(kind)
    assert len(net.state_dict()) == tensors
    assert parameters(net) == count


def test_names_are_those_of_the_training_files():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    patch = [f"main.{i}.{p}" for i in (0, 11) for p in ("weight", "bias")]
    patch += [f"main.{i}.weight" for i in (2, 5, 8)] + [
        f"main.{i}.{p}" for i in (3, 6, 9) for p in norm
    ]
    assert set(discriminator("patch").state_dict()) == set(patch)
    ends = ("block_in.0", "to_logits.0", "to_logits.2")
    blur = [f"{n}.{p}" for n in ends for p in ("weight", "bias")]
    blur += [f"blocks.{i}.{j}.{p}" for i in range(3) for j in (0, 2) for p in ("weight", "bias")]
    blur += [f"blocks.{i}.1.kernel" for i in range(3)]
    assert set(discriminator("blur").state_dict()) == set(blur)


@pytest.mark.parametrize(
    ("kind", "size", "patches"),
    [
        ("patch", (64, 64), (6, 6)),
        ("patch", (256, 256), (30, 30)),
        ("blur", (64, 64), (8, 8)),
        ("blur", (65, 31), (9, 4)),
    ],
)
def test_a_logit_a_patch(kind, size, patches):
    net = discriminator(kind)
    assert net(torch.zeros(2, 3, *size)).shape == (2, 1, *patches)


def test_the_patch_discriminator_starts_small():
    torch.manual_seed(0)
    net = discriminator("patch")
    assert net.main[8].weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert net.main[9].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert net.main[9].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_blur_is_a_normalised_filter_that_keeps_every_second_place():
    blur = BlurDiscriminator(32, 1).blocks[0][1]
    x = torch.arange(36.0).view(1, 1, 6, 6)
    found = blur(x)
    row = torch.tensor([1.0, 3, 3, 1]) / 8
    window = x[0, 0, 1:5, 1:5]  # of the second place each way: one pixel is padded in front
    assert found.shape == (1, 1, 3, 3)
    assert found[0, 0, 1, 1].item() == pytest.approx((row @ window @ row).item())
    corner = row[1:] @ x[0, 0, :3, :3] @ row[1:]
    assert found[0, 0, 0, 0].item() == pytest.approx(corner.item())


def test_pictures_that_leave_patches_nothing_to_judge_are_refused():
    check_judged("patch", 24)
    assert discriminator("patch", 8)(torch.zeros(2, 3, 24, 24)).shape[-2:] == (1, 1)
    check_judged("blur", 16)
    with pytest.raises(InputError, match="24 x 24 pixels and more, found 16 x 16"):
        check_judged("patch", 16)
