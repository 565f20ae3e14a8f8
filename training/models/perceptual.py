"""LPIPS (arXiv 1801.03924) on VGG-16: how far apart two pictures look, with gradients.

Two files hold its weights, and neither ships with m2kit: torchvision's VGG-16, of which the
convolutions are read, and the linear heads of the `lpips` package. Parameter names are those of the
official training files (`loss.perceptual_loss.*`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from m2kit.errors import CheckpointError, InputError
from m2kit.training.models.tokenizer import frames_of
from m2kit.training.models.weights_file import (
    WeightsFile,
    copy_weights,
    missing_line,
    weights_path,
)

# VGG-16's convolutions by slice, as (index in torchvision's `features`, channels out); a slice
# ends with the ReLU that LPIPS looks at, and all but the first begin by halving h and w.
_SLICES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in [-1, 1]
_EPSILON = 1e-10
_LEAST_PIXELS = 16  # of a side, of which the last slice has one

VGG = WeightsFile(
    "vgg16-397923af.pth",
    "torchvision's VGG-16, https://download.pytorch.org/models/vgg16-397923af.pth",
    option="--perceptual-vgg",
)
HEADS = WeightsFile(
    "vgg.pth",
    "lpips/weights/v0.1/vgg.pth of the lpips package on PyPI",
    option="--perceptual-heads",
)


class PerceptualNetwork(nn.Module):
    """LPIPS distance; its weights never train, and it has no dropout at work.

    Where the weights are from `perceptual_network` says; a new one has random ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = nn.ModuleDict()
        previous = 3
        for number, convolutions in enumerate(_SLICES, 1):
            piece = nn.Sequential()
            if number > 1:
                piece.add_module(str(convolutions[0][0] - 1), nn.MaxPool2d(2))
            for index, width in convolutions:
                piece.add_module(str(index), nn.Conv2d(previous, width, 3, padding=1))
                piece.add_module(str(index + 1), nn.ReLU())
                previous = width
            self.net[f"slice{number}"] = piece
        for number, convolutions in enumerate(_SLICES):
            self.add_module(f"lin{number}", _Head(convolutions[-1][1]))
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualNetwork:
        """Stays in evaluation mode, whatever trains around it."""
        return super().train(mode=False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distance of each pair of (B, 3, H, W) images in [-1, 1], sides of 16 or more: (B). Of
        clips (B, 3, T, H, W) it is the mean over their frames."""
        if images.dim() == 5:
            of_frames: Tensor = self(frames_of(images), frames_of(others))
            return of_frames.view(len(images), -1).mean(1)
        x, y = self.scaling_layer(images), self.scaling_layer(others)
        distance: Tensor = x.new_zeros(len(x))
        for number, piece in enumerate(self.net.values()):
            x, y = piece(x), piece(y)
            difference = (_unit(x) - _unit(y)).square()
            distance = distance + self.get_submodule(f"lin{number}")(difference).mean((1, 2, 3))
        return distance


class _Scaling(nn.Module):
    """From [-1, 1] to the range that VGG-16 was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[None, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), both."""
        scaled: Tensor = (images - self.shift) / self.scale
        return scaled


class _Head(nn.Module):
    """Weighs the channels of a slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, difference: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, h, w)."""
        weighed: Tensor = self.model(difference)
        return weighed


def _unit(features: Tensor) -> Tensor:
    """(B, C, h, w) with channels of norm 1 at every place."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + _EPSILON)


def perceptual_network(vgg: Path | None = None, heads: Path | None = None) -> PerceptualNetwork:
    """The network with its published weights.

    Args:
        vgg: torchvision's VGG-16; None looks where torch.hub keeps it.
        heads: The linear heads of the lpips package; None looks in the same folder.

    Raises:
        CheckpointError: A file is missing, or holds other weights.
    """
    network = PerceptualNetwork()
    own = {name: name.split(".", 2)[2] for name in network.state_dict() if name.startswith("net.")}
    _load(network, vgg, VGG, {name: f"features.{rest}" for name, rest in own.items()})
    linear = {name: name for name in network.state_dict() if name.startswith("lin")}
    _load(network, heads, HEADS, linear)
    return network


def check_compared(size: tuple[int, ...]) -> None:
    """Refuse pictures (H, W), or clips (T, H, W), that VGG-16 leaves nothing of.

    Raises:
        InputError: They are too small.
    """
    if min(size[-2:]) < _LEAST_PIXELS:
        raise InputError(
            f"LPIPS compares pictures of {_LEAST_PIXELS} x {_LEAST_PIXELS} pixels and more, found "
            f"{' x '.join(map(str, size[-2:]))}; take larger ones, or train without it",
            option="--size, --perceptual none",
        )


def missing_files(vgg: Path | None = None, heads: Path | None = None) -> list[str]:
    """What `perceptual_network` would miss, a line each."""
    return [
        missing_line(path, wanted)
        for path, wanted in ((weights_path(vgg, VGG), VGG), (weights_path(heads, HEADS), HEADS))
        if not path.is_file()
    ]


def _load(
    network: PerceptualNetwork, named: Path | None, wanted: WeightsFile, names: dict[str, str]
) -> None:
    """Take tensors from a file: own name -> the file's."""
    path = weights_path(named, wanted)
    if not path.is_file():
        raise CheckpointError(
            f"{missing_line(path, wanted)}; put it there, name it, or train without it",
            option=f"{wanted.option} or --perceptual none",
        )
    copy_weights(network, path, wanted, names)
