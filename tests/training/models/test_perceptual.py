import itertools
import json

import pytest
import torch
from conftest import GOLDEN
from doubles.random_lpips import random_lpips
from torch.nn import functional

from m2kit.errors import CheckpointError
from m2kit.training.models.perceptual import HEADS, VGG, PerceptualNetwork, perceptual_network

# VGG-16 as its paper has it (arXiv 1409.1556, table 1, D): channels, and M for a max-pooling.
_LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


@pytest.fixture(scope="module")
def weights():
    """Random weights under the published names, and two batches of pictures."""
    return random_lpips(0)


@pytest.fixture
def files(tmp_path, monkeypatch, weights):
    """The weights in the cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    features, heads = ({name: t.float() for name, t in part.items()} for part in weights[:2])
    others = {"classifier.0.bias": torch.zeros(3)}
    torch.save({**features, **others}, tmp_path / "checkpoints" / VGG.name)
    torch.save(heads, tmp_path / "checkpoints" / HEADS.name)
    return features, heads


def distance_by_hand(features, heads, x, y):
    """The formula of the lpips package: unit features, squared differences, weighed, averaged."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    both = (torch.stack([x, y]).to(torch.float64) - shift) / scale
    total, index, slices = 0.0, 0, 0
    for width, following in itertools.pairwise(_LAYERS):
        if width == "M":
            both, index = functional.max_pool2d(both, 2), index + 1
            continue
        weight = features[f"features.{index}.weight"].double()
        bias = features[f"features.{index}.bias"].double()
        both, index = functional.conv2d(both, weight, bias, padding=1).relu(), index + 2
        if following == "M":
            unit = both / (both.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
            squared = (unit[0] - unit[1]).pow(2)
            weights = heads[f"lin{slices}.model.1.weight"].double().view(-1, 1, 1)
            total += (squared * weights).sum(0).mean().item()
            slices += 1
    assert slices == 5
    return total


def test_the_distance_is_that_of_lpips(files):
    images = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    network = perceptual_network().double()
    found = network(images[:2].double(), images[2:].double())
    expected = [distance_by_hand(*files, images[i], images[i + 2]) for i in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert network(images.double(), images.double()).abs().max() == 0


def test_distances_and_gradients_are_those_that_the_lpips_package_gave(files, weights):
    expected = json.loads((GOLDEN / "lpips.json").read_text())
    *_, images, others = weights
    assert (expected["seed"], expected["shape"]) == (0, list(images.shape))
    others = others.clone().requires_grad_()
    found = perceptual_network().double()(images, others)
    found.sum().backward()
    assert found.tolist() == pytest.approx(expected["distances"], rel=1e-6)
    assert others.grad.norm().item() == pytest.approx(expected["gradient_norm"], rel=1e-6)


def test_the_distance_of_clips_is_the_mean_over_their_frames(files):
    generator = torch.Generator().manual_seed(2)
    clips, others = (torch.rand(2, 3, 3, 16, 20, generator=generator) * 2 - 1 for _ in range(2))
    others.requires_grad_()
    network = perceptual_network()
    found = network(clips, others)
    expected = [
        [network(clip[None, :, t], other[None, :, t]).item() for t in range(3)]
        for clip, other in zip(clips, others, strict=True)
    ]
    assert found.tolist() == pytest.approx([sum(row) / 3 for row in expected], rel=1e-5)
    found.mean().backward()
    assert (others.grad.abs().amax((1, 3, 4)) > 0).all()  # every frame has a part


def test_its_weights_never_train_and_it_never_drops_out(files):
    network = perceptual_network().train()
    assert not any(module.training for module in network.modules())
    assert not any(weight.requires_grad for weight in network.parameters())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    network(images, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert images.grad.abs().max() > 0


def test_its_names_are_those_of_the_training_files():
    names = set(PerceptualNetwork().state_dict())
    assert len(names) == 33
    assert {"scaling_layer.shift", "net.slice5.28.bias", "lin4.model.1.weight"} <= names


@pytest.mark.parametrize("wanted", [VGG, HEADS])
def test_a_missing_or_other_file_is_one_line(files, tmp_path, wanted):
    path = tmp_path / "checkpoints" / wanted.name
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"expected .* of shape .* found"):
        perceptual_network()
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{wanted.name} is missing.*train without it"):
        perceptual_network()
