"""The I3D network of FVD: Inception-v1 inflated to three dimensions (arXiv 1705.07750), trained on
the 400 classes of Kinetics, for weights that others have ported.

Parameter names are those of i3d_pretrained_400.pt, whose network is VideoGPT's port
(wilson1yan/VideoGPT, videogpt/fvd/pytorch_i3d.py, after piergiaj/pytorch-i3d). As there:
convolutions and pools are padded as TensorFlow's "same", which puts the odd element behind; pools
are padded with zeros, below which nothing is after a rectifier; BatchNorm's epsilon is 1e-5, where
piergiaj's has 1e-3; the logits are the means over time of those of every two steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 224  # pixels of a frame, both ways
FRAMES = 9  # at least: fewer leave less than the two steps that the last pool takes
CLASSES = 400
_LAST = 1024  # channels before the logits
_LAST_POOL = (2, 7, 7)

Three = tuple[int, int, int]


class I3D(nn.Module):
    """The network, of random weights until some are copied into it; it never trains."""

    def __init__(self) -> None:
        super().__init__()
        stages: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": _Convolution(3, 64, 7, stride=2),
            "MaxPool3d_2a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": _Convolution(64, 64, 1),
            "Conv3d_2c_3x3": _Convolution(64, 192, 3),
            "MaxPool3d_3a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": _Block(192, 64, (96, 128), (16, 32), 32),
            "Mixed_3c": _Block(256, 128, (128, 192), (32, 96), 64),
            "MaxPool3d_4a_3x3": _Pool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": _Block(480, 192, (96, 208), (16, 48), 64),
            "Mixed_4c": _Block(512, 160, (112, 224), (24, 64), 64),
            "Mixed_4d": _Block(512, 128, (128, 256), (24, 64), 64),
            "Mixed_4e": _Block(512, 112, (144, 288), (32, 64), 64),
            "Mixed_4f": _Block(528, 256, (160, 320), (32, 128), 128),
            "MaxPool3d_5a_2x2": _Pool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": _Block(832, 256, (160, 320), (32, 128), 128),
            "Mixed_5c": _Block(832, 384, (192, 384), (48, 128), 128),
        }
        for name, stage in stages.items():
            self.add_module(name, stage)
        self._stages = tuple(stages)
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(_LAST, CLASSES, 1)})
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of clips.

        Args:
            clips: (B, 3, T, 224, 224) in [-1, 1], T at least 9.

        Returns:
            (B, 400) logits.
        """
        x = clips
        for name in self._stages:
            x = self.get_submodule(name)(x)
        pooled = functional.avg_pool3d(x, _LAST_POOL, stride=1)  # (B, 1024, steps - 1, 1, 1)
        logits: Tensor = self.logits["conv3d"](pooled)
        return logits.mean((2, 3, 4))


class _Convolution(nn.Module):
    """A convolution without bias, normalised, rectified."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, side, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-5)
        self._side: Three = (side,) * 3
        self._stride: Three = (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W'), the sizes divided by the stride, rounded up."""
        rectified: Tensor = self.bn(self.conv3d(_padded(x, self._side, self._stride))).relu()
        return rectified


class _Pool(nn.Module):
    """The largest of a window."""

    def __init__(self, side: Three, stride: Three) -> None:
        super().__init__()
        self._side, self._stride = side, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) >= 0 -> (B, C, T', H', W')."""
        return functional.max_pool3d(_padded(x, self._side, self._stride), self._side, self._stride)


class _Block(nn.Module):
    """Four paths side by side, their channels in a row: a convolution of single elements, two
    paths of such a one and one of 3 x 3 x 3, and a pool with one of single elements."""

    def __init__(
        self, inputs: int, single: int, first: tuple[int, int], second: tuple[int, int], pooled: int
    ) -> None:
        super().__init__()
        self.b0 = _Convolution(inputs, single, 1)
        self.b1a = _Convolution(inputs, first[0], 1)
        self.b1b = _Convolution(*first, 3)
        self.b2a = _Convolution(inputs, second[0], 1)
        self.b2b = _Convolution(*second, 3)
        self.b3a = _Pool((3, 3, 3), (1, 1, 1))
        self.b3b = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W)."""
        paths = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(paths, 1)


def _padded(x: Tensor, side: Three, stride: Three) -> Tensor:
    """TensorFlow's "same": zeros so that sizes are divided by the stride, rounded up."""
    padding: list[int] = []  # of the last axis first, as torch takes it
    for size, window, step in zip(x.shape[2:], side, stride, strict=True):
        missing = max((-(-size // step) - 1) * step + window - size, 0)
        padding = [missing // 2, missing - missing // 2, *padding]
    return functional.pad(x, padding)
