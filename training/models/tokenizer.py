"""The image and the video tokenizer: strided-convolution encoder, LFQ, decoder with adaptive
GroupNorm.

Parameter names are those of the released checkpoints (`encoder.*`, `decoder.*`). Numerics that
must be copied: GroupNorm of 32 groups with eps 1e-6; stride-2 convolutions with symmetric padding;
adaptive GroupNorm with the unbiased variance of the codes, once per decoder level before that
level's blocks; depth-to-space in DCR order (block offsets are the slow channel axes). Of a video,
convolutions see zeros before its first frame, and of doubled time the second frame is dropped.

(B, C, *size) stands for (B, C, h, w) of images and (B, C, t, h, w) of videos.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.families.convolutional import GROUPS, ConvolutionalSpec
from m2kit.families.sign_bits import bits_of
from m2kit.training.models import lfq

NORM_EPS = 1e-6
Strides = tuple[int, ...]  # one for each axis


def frames_of(images: Tensor) -> Tensor:
    """Images (B, C, h, w) as they are, or of videos (B, C, t, h, w) the frames (B * t, C, h, w)."""
    return images.transpose(1, 2).flatten(0, 1) if images.dim() == 5 else images


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm as every layer of the tokenizer uses it."""
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS, affine=affine)


class CausalConv3d(nn.Module):
    """Convolution over (t, h, w): zeros around h and w, and in t only before the first frame."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, strides: Strides, bias: bool
    ) -> None:
        super().__init__()
        t, h, w = strides
        self.conv_1 = nn.Conv3d(channels_in, channels_out, kernel, (t, h, w), bias=bias)
        self._padding = (*(kernel // 2,) * 4, kernel - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, t, h, w) -> (B, channels_out, t', h', w')."""
        out: Tensor = self.conv_1(functional.pad(x, self._padding))
        return out


def convolution(
    channels_in: int,
    channels_out: int,
    strides: Strides,
    *,
    kernel: int = 3,
    bias: bool = True,
) -> nn.Module:
    """A convolution over as many axes as there are strides: of images, or causal of videos."""
    if len(strides) == 3:
        return CausalConv3d(channels_in, channels_out, kernel, strides, bias)
    h, w = strides
    return nn.Conv2d(channels_in, channels_out, kernel, (h, w), padding=kernel // 2, bias=bias)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (through a 1x1 conv if wider)."""

    def __init__(self, channels_in: int, channels_out: int, axes: int = 2) -> None:
        super().__init__()
        still = (1,) * axes
        self.norm1 = group_norm(channels_in)
        self.norm2 = group_norm(channels_out)
        self.conv1 = convolution(channels_in, channels_out, still, bias=False)
        self.conv2 = convolution(channels_out, channels_out, still, bias=False)
        if channels_in != channels_out:
            self.nin_shortcut = convolution(channels_in, channels_out, still, kernel=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, *size) -> (B, channels_out, *size)."""
        y: Tensor = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        shortcut: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return y + shortcut


class Level(nn.Module):
    """The residual blocks of one resolution, and then the layer that changes the resolution."""

    downsample: nn.Module
    upsample: Upsample

    def __init__(self, channels_in: int, channels_out: int, blocks: int, axes: int) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.block = nn.Sequential(*(ResBlock(a, b, axes) for a, b in itertools.pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, *size) -> (B, channels_out, *size')."""
        x = self.block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Upsample(nn.Module):
    """Enlarges each axis: convolution to as many channels more, then depth-to-space (DCR)."""

    def __init__(self, channels: int, strides: Strides) -> None:
        super().__init__()
        self.conv1 = convolution(channels, math.prod(strides) * channels, (1,) * len(strides))
        self._strides = strides

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, *size) -> (B, c, *size * strides); of doubled time the second frame is dropped."""
        channels, axes = x.shape[1], range(len(self._strides))
        y: Tensor = self.conv1(x)
        y = y.reshape(len(x), *self._strides, channels, *x.shape[2:])
        pairs = [(2 + len(axes) + axis, 1 + axis) for axis in axes]
        y = y.permute(0, 1 + len(axes), *(dim for pair in pairs for dim in pair))
        for axis in axes:
            y = y.flatten(2 + axis, 3 + axis)
        if len(axes) == 3 and self._strides[0] == 2:
            y = torch.cat([y[:, :, :1], y[:, :, 2:]], dim=2)
        return y


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift are linear in the codes' standard deviation and mean."""

    def __init__(self, channels: int, code_bits: int) -> None:
        super().__init__()
        self.gn = group_norm(channels, affine=False)
        self.gamma = nn.Linear(code_bits, channels)
        self.beta = nn.Linear(code_bits, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """(B, C, *size) and codes (B, Z, *grid) -> (B, C, *size)."""
        flat = codes.flatten(2)
        each = (..., *(None,) * (x.ndim - 2))
        scale: Tensor = self.gamma((flat.var(dim=2, unbiased=True) + NORM_EPS).sqrt())
        shift: Tensor = self.beta(flat.mean(dim=2))
        normed: Tensor = self.gn(x)
        return scale[each] * normed + shift[each]


class Encoder(nn.Module):
    """Image (B, 3, *size) in [-1, 1] -> latent (B, Z, *grid)."""

    def __init__(self, spec: ConvolutionalSpec) -> None:
        super().__init__()
        channels, blocks, axes = spec.channels, spec.blocks_per_level, len(spec.axes)
        still = (1,) * axes
        self.conv_in = convolution(3, spec.base_channels, still, bias=False)
        self.down = nn.Sequential()
        for index, width in enumerate(channels):
            entering = channels[index - 1] if index else spec.base_channels
            level = Level(entering, width, blocks, axes)
            if index < len(channels) - 1:
                level.downsample = convolution(width, width, spec.level_strides[index])
            self.down.append(level)
        last = channels[-1]
        self.mid_block = nn.Sequential(*(ResBlock(last, last, axes) for _ in range(blocks)))
        self.norm_out = group_norm(last)
        self.conv_out = convolution(last, spec.code_bits, still, kernel=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, *size) -> (B, Z, *grid)."""
        x = self.mid_block(self.down(self.conv_in(image)))
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Decoder(nn.Module):
    """Codes (B, Z, *grid) in {-1, +1} -> image (B, 3, *size)."""

    def __init__(self, spec: ConvolutionalSpec) -> None:
        super().__init__()
        channels, blocks, axes = spec.channels, spec.blocks_per_level, len(spec.axes)
        last, still = channels[-1], (1,) * axes
        self.conv_in = convolution(spec.code_bits, last, still)
        self.mid_block = nn.Sequential(*(ResBlock(last, last, axes) for _ in range(blocks)))
        self.up = nn.ModuleList()
        for index, width in enumerate(channels):
            level = Level(spec.entering[index], width, blocks, axes)
            if index > 0:
                level.upsample = Upsample(width, spec.level_strides[index - 1])
            self.up.append(level)
        if spec.adaptive_norm:
            norms = (AdaptiveGroupNorm(width, spec.code_bits) for width in spec.entering)
            self.adaptive = nn.ModuleList(norms)
        self.norm_out = group_norm(channels[0])
        self.conv_out = convolution(channels[0], 3, still)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, Z, *grid) -> (B, 3, *size)."""
        x = self.mid_block(self.conv_in(codes))
        for index in reversed(range(len(self.up))):
            if hasattr(self, "adaptive"):
                x = self.adaptive[index](x, codes)
            x = self.up[index](x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Tokenizer(nn.Module):
    """Encoder, LFQ and decoder."""

    def __init__(self, spec: ConvolutionalSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, *size) and latent (B, Z, *grid) of images (B, 3, *size) in
        [-1, 1]."""
        latent = self.encoder(image)
        return self.decoder(self.quantize(latent)), latent

    def quantize(self, latent: Tensor) -> Tensor:
        """(B, Z, *grid) latent -> codes in {-1, +1}; the gradient passes straight through."""
        return lfq.quantize(latent)

    def tokens(self, codes: Tensor, vocabularies: tuple[int, ...]) -> Tensor:
        """(B, Z, *grid) codes -> (B, *grid, K) int64 tokens."""
        return lfq.tokens_from_codes(codes, bits_of(vocabularies), self.spec.bit_order)

    @torch.no_grad()
    def codes(self, image: Tensor) -> Tensor:
        """Codes (B, Z, *grid) in {-1, +1} of images (B, 3, *size) in [-1, 1]."""
        return self.quantize(self.encoder(image))
