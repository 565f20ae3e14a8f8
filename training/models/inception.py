"""The Inception network of FID: Inception-v3 (arXiv 1512.00567) as TensorFlow's graph of 2015-12-05
computes it, for weights that others have ported.

It differs from torchvision's: average pools divide by the pixels that are there, the last block
pools by maximum, and there are 1,008 classes. Parameter names are those of pytorch-fid's file and
of torch-fidelity's, which have the same weights; in TensorFlow's graph, mixed is Mixed_5b, and so
on to mixed_10, Mixed_7c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299  # pixels of the input, both ways
POOLED, CLASSES = 2048, 1008
SPATIAL = 7 * 17 * 17  # features of sFID
_SPATIAL_CHANNELS = 7

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "average": lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "largest": lambda x: functional.max_pool2d(x, 3, 1, 1),
    "halve": lambda x: functional.max_pool2d(x, 3, 2),
}


@dataclass(frozen=True, slots=True)
class _Step:
    """A convolution: its name, channels out, kernel (height, width) and stride; those of stride 1
    keep the size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


@dataclass(frozen=True, slots=True)
class _Path:
    """A way through a block: a pool, convolutions in a row, and then some side by side."""

    steps: tuple[_Step, ...] = ()
    fork: tuple[_Step, ...] = ()
    pool: str = ""


def _square(name: str, channels: int, side: int = 1, stride: int = 1) -> _Step:
    return _Step(name, channels, (side, side), stride)


def _block_a(pooled: int) -> tuple[_Path, ...]:
    double = (
        _square("branch3x3dbl_1", 64),
        _square("branch3x3dbl_2", 96, 3),
        _square("branch3x3dbl_3", 96, 3),
    )
    return (
        _Path((_square("branch1x1", 64),)),
        _Path((_square("branch5x5_1", 48), _square("branch5x5_2", 64, 5))),
        _Path(double),
        _Path((_square("branch_pool", pooled),), pool="average"),
    )


def _block_b() -> tuple[_Path, ...]:
    double = (
        _square("branch3x3dbl_1", 64),
        _square("branch3x3dbl_2", 96, 3),
        _square("branch3x3dbl_3", 96, 3, stride=2),
    )
    return (_Path((_square("branch3x3", 384, 3, stride=2),)), _Path(double), _Path(pool="halve"))


def _block_c(width: int) -> tuple[_Path, ...]:
    across, down = (1, 7), (7, 1)
    once = (
        _square("branch7x7_1", width),
        _Step("branch7x7_2", width, across),
        _Step("branch7x7_3", 192, down),
    )
    twice = (
        _square("branch7x7dbl_1", width),
        _Step("branch7x7dbl_2", width, down),
        _Step("branch7x7dbl_3", width, across),
        _Step("branch7x7dbl_4", width, down),
        _Step("branch7x7dbl_5", 192, across),
    )
    return (
        _Path((_square("branch1x1", 192),)),
        _Path(once),
        _Path(twice),
        _Path((_square("branch_pool", 192),), pool="average"),
    )


def _block_d() -> tuple[_Path, ...]:
    seven = (
        _square("branch7x7x3_1", 192),
        _Step("branch7x7x3_2", 192, (1, 7)),
        _Step("branch7x7x3_3", 192, (7, 1)),
        _square("branch7x7x3_4", 192, 3, stride=2),
    )
    three = (_square("branch3x3_1", 192), _square("branch3x3_2", 320, 3, stride=2))
    return (_Path(three), _Path(seven), _Path(pool="halve"))


def _block_e(pool: str) -> tuple[_Path, ...]:
    fork, fork_of_double = (
        (_Step(f"{name}a", 384, (1, 3)), _Step(f"{name}b", 384, (3, 1)))
        for name in ("branch3x3_2", "branch3x3dbl_3")
    )
    double = (_square("branch3x3dbl_1", 448), _square("branch3x3dbl_2", 384, 3))
    return (
        _Path((_square("branch1x1", 320),)),
        _Path((_square("branch3x3_1", 384),), fork),
        _Path(double, fork_of_double),
        _Path((_square("branch_pool", 192),), pool=pool),
    )


_STEM = (  # (name, channels in, out, side, stride, padding); a halving pool follows two of them
    ("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 32, 64, 3, 1, 1),
    ("Conv2d_3b_1x1", 64, 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 80, 192, 3, 1, 0),
)
_POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
_BLOCKS = (
    ("Mixed_5b", 192, _block_a(32)),
    ("Mixed_5c", 256, _block_a(64)),
    ("Mixed_5d", 288, _block_a(64)),
    ("Mixed_6a", 288, _block_b()),
    ("Mixed_6b", 768, _block_c(128)),
    ("Mixed_6c", 768, _block_c(160)),
    ("Mixed_6d", 768, _block_c(160)),
    ("Mixed_6e", 768, _block_c(192)),
    ("Mixed_7a", 768, _block_d()),
    ("Mixed_7b", 1280, _block_e("average")),
    ("Mixed_7c", 2048, _block_e("largest")),
)


class FidInception(nn.Module):
    """The network, of random weights until some are copied into it; it never trains."""

    def __init__(self) -> None:
        super().__init__()
        for name, inputs, outputs, side, stride, padding in _STEM:
            convolution = nn.Conv2d(inputs, outputs, side, stride, padding, bias=False)
            self.add_module(name, _Convolution(convolution))
        for name, inputs, paths in _BLOCKS:
            self.add_module(name, _Block(inputs, paths))
        self.fc = nn.Linear(POOLED, CLASSES)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of pictures.

        Args:
            images: (B, 3, 299, 299), scaled as the weights want it, about [-1, 1].

        Returns:
            Pooled features (B, 2048), TensorFlow's pool_3; spatial features (B, 2023), the first
            seven channels of mixed_6/conv, channels last, as ADM's evaluator flattens them for
            sFID; logits (B, 1008) without the bias, from which the Inception score is taken.
        """
        x = images
        for name, *_ in _STEM:
            x = self.get_submodule(name)(x)
            if name in _POOLED_AFTER:
                x = functional.max_pool2d(x, 3, 2)
        spatial = x
        for name, *_ in _BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":  # whose first channels are those of its 1 x 1 convolution
                spatial = x[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        pooled = x.mean((2, 3))
        return pooled, spatial, pooled @ self.fc.weight.T


class _Convolution(nn.Module):
    """A convolution without bias, normalised, rectified."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        rectified: Tensor = self.bn(self.conv(x)).relu()
        return rectified


class _Block(nn.Module):
    """Several paths side by side, their channels in a row."""

    def __init__(self, inputs: int, paths: tuple[_Path, ...]) -> None:
        super().__init__()
        self._paths = paths
        for path in paths:
            width = inputs
            for step in path.steps:
                self.add_module(step.name, _convolution(width, step))
                width = step.channels
            for step in path.fork:
                self.add_module(step.name, _convolution(width, step))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.cat([part for path in self._paths for part in self._along(path, x)], 1)

    def _along(self, path: _Path, x: Tensor) -> list[Tensor]:
        x = _POOLS[path.pool](x)
        for step in path.steps:
            x = self.get_submodule(step.name)(x)
        return [self.get_submodule(step.name)(x) for step in path.fork] or [x]


def _convolution(width: int, step: _Step) -> _Convolution:
    height, across = step.kernel
    padding = (height // 2, across // 2) if step.stride == 1 else (0, 0)
    return _Convolution(
        nn.Conv2d(width, step.channels, step.kernel, step.stride, padding, bias=False)
    )
