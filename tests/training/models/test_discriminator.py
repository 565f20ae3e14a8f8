import pytest
import torch
from torch.nn import functional

from m2kit.errors import CheckpointError, InputError
from m2kit.training.models.discriminator import (
    BlurDiscriminator,
    ClipDiscriminator,
    check_judged,
    discriminator,
)
from m2kit.training.recipes.initial import DISCRIMINATOR, load_discriminator

_NORM = ("running_mean", "running_var", "weight", "bias")


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
    check_judged("patch", (24, 32))
    assert discriminator("patch", 8)(torch.zeros(2, 3, 24, 24)).shape[-2:] == (1, 1)
    check_judged("blur", (16, 16))
    check_judged("patch", (1, 16, 16))
    with pytest.raises(InputError, match="24 x 24 pixels and more, found 32 x 16"):
        check_judged("patch", (32, 16))
    with pytest.raises(InputError, match="clips of 16 x 16 pixels and more, found 8 x 8"):
        check_judged("patch", (17, 8, 8))


def test_the_clip_discriminator_has_the_published_names_sizes_and_patches():
    net = ClipDiscriminator()
    assert set(net.state_dict()) == set(discriminator("patch").state_dict())
    assert {int(name.split(".")[1]) for name in net.state_dict()} == {0, 2, 3, 5, 6, 8, 9, 11}
    assert parameters(net) == 4_665_729
    assert net.main[8].weight.shape == (512, 256, 3, 3, 3)
    narrow = ClipDiscriminator(4)
    assert narrow(torch.zeros(2, 3, 17, 128, 128)).shape == (2, 1, 5, 16, 16)
    assert narrow(torch.zeros(2, 3, 9, 32, 32)).shape == (2, 1, 3, 4, 4)
    assert narrow(torch.zeros(2, 3, 1, 16, 16)).shape == (2, 1, 1, 2, 2)


def test_the_clip_discriminator_is_its_layers_one_after_the_other():
    """Written out: which strides, slopes, paddings, and where there is no norm and no bias."""
    torch.manual_seed(0)
    net = ClipDiscriminator(4).double().eval()
    weights = net.state_dict()
    clips = torch.rand(2, 3, 5, 16, 16, dtype=torch.float64) * 2 - 1
    x = clips
    strides = {0: 2, 2: 2, 5: (1, 2, 2), 8: 1, 11: 1}
    for index, stride in strides.items():
        bias = weights.get(f"main.{index}.bias")
        assert (bias is not None) == (index in (0, 11))
        x = functional.conv3d(x, weights[f"main.{index}.weight"], bias, stride, padding=1)
        if index in (2, 5, 8):
            norm = [weights[f"main.{index + 1}.{name}"] for name in _NORM]
            mean, variance, weight, bias = (part.view(-1, 1, 1, 1) for part in norm)
            x = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        if index != 11:
            x = torch.where(x > 0, x, 0.2 * x)
    torch.testing.assert_close(net(clips), x)


def test_the_clip_discriminator_starts_small_and_its_norms_are_its_own():
    torch.manual_seed(0)
    net = ClipDiscriminator()
    assert net.main[8].weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert net.main[9].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert net.main[9].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(isinstance(part, torch.nn.SyncBatchNorm) for part in net.modules())


def test_the_clip_discriminator_of_a_training_file_is_taken_over(tmp_path):
    theirs, own = ClipDiscriminator(4), ClipDiscriminator(4)
    named = {DISCRIMINATOR + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": named}, tmp_path / "a.ckpt")
    assert load_discriminator(tmp_path / "a.ckpt", own)
    assert all(torch.equal(own.state_dict()[n], t) for n, t in theirs.state_dict().items())
    with pytest.raises(CheckpointError, match="holds another discriminator"):
        load_discriminator(tmp_path / "a.ckpt", discriminator("patch", 4))
