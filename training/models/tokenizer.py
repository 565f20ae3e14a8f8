"""The image tokenizer: strided-convolution encoder, LFQ, decoder with adaptive GroupNorm.

Parameter names are those of the released checkpoints (`encoder.*`, `decoder.*`). Numerics that
must be copied: GroupNorm of 32 groups with eps 1e-6; stride-2 convolutions with symmetric padding;
adaptive GroupNorm with the unbiased variance of the codes, once per decoder level before that
level's blocks; depth-to-space in DCR order (block offsets are the slow channel axes).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.families.image import GROUPS, ImageTokenizerSpec
from m2kit.families.sign_bits import bits_of
from m2kit.training.models import lfq

NORM_EPS = 1e-6


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm as every layer of the tokenizer uses it."""
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS, affine=affine)


class ResBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input (through a 1x1 conv if wider)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.norm2 = group_norm(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h, w)."""
        y: Tensor = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        shortcut: Tensor = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return y + shortcut


class Level(nn.Module):
    """The residual blocks of one resolution, and then the layer that changes the resolution."""

    downsample: nn.Conv2d
    upsample: Upsample

    def __init__(self, channels_in: int, channels_out: int, blocks: int) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * blocks]
        self.block = nn.Sequential(*(ResBlock(a, b) for a, b in itertools.pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h', w')."""
        x = self.block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Upsample(nn.Module):
    """Doubles h and w: 3x3 convolution to 4c channels, then depth-to-space (DCR)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c, 2h, 2w)."""
        y: Tensor = self.conv1(x)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(batch, channels // 4, 2 * height, 2 * width)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and shift are linear in the codes' standard deviation and mean."""

    def __init__(self, channels: int, code_bits: int) -> None:
        super().__init__()
        self.gn = group_norm(channels, affine=False)
        self.gamma = nn.Linear(code_bits, channels)
        self.beta = nn.Linear(code_bits, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """(B, C, h, w) and codes (B, Z, h', w') -> (B, C, h, w)."""
        flat = codes.flatten(2)
        scale: Tensor = self.gamma((flat.var(dim=2, unbiased=True) + NORM_EPS).sqrt())
        shift: Tensor = self.beta(flat.mean(dim=2))
        normed: Tensor = self.gn(x)
        return scale[:, :, None, None] * normed + shift[:, :, None, None]


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> latent (B, Z, h, w)."""

    def __init__(self, spec: ImageTokenizerSpec) -> None:
        super().__init__()
        channels, blocks = spec.channels, spec.blocks_per_level
        self.conv_in = nn.Conv2d(3, spec.base_channels, 3, padding=1, bias=False)
        self.down = nn.Sequential()
        for index, width in enumerate(channels):
            level = Level(channels[index - 1] if index else spec.base_channels, width, blocks)
            if index < len(channels) - 1:
                level.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(level)
        last = channels[-1]
        self.mid_block = nn.Sequential(*(ResBlock(last, last) for _ in range(blocks)))
        self.norm_out = group_norm(last)
        self.conv_out = nn.Conv2d(last, spec.code_bits, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, Z, h, w)."""
        x = self.mid_block(self.down(self.conv_in(image)))
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Decoder(nn.Module):
    """Codes (B, Z, h, w) in {-1, +1} -> image (B, 3, H, W)."""

    def __init__(self, spec: ImageTokenizerSpec) -> None:
        super().__init__()
        channels, blocks = spec.channels, spec.blocks_per_level
        last = channels[-1]
        self.conv_in = nn.Conv2d(spec.code_bits, last, 3, padding=1)
        self.mid_block = nn.Sequential(*(ResBlock(last, last) for _ in range(blocks)))
        entering = [*channels[1:], last]  # channels that enter each level
        self.up = nn.ModuleList()
        for index, width in enumerate(channels):
            level = Level(entering[index], width, blocks)
            if index > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        if spec.adaptive_norm:
            self.adaptive = nn.ModuleList(AdaptiveGroupNorm(c, spec.code_bits) for c in entering)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(codes))
        for index in reversed(range(len(self.up))):
            if hasattr(self, "adaptive"):
                x = self.adaptive[index](x, codes)
            x = self.up[index](x)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class Tokenizer(nn.Module):
    """Encoder, LFQ and decoder."""

    def __init__(self, spec: ImageTokenizerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction (B, 3, H, W) and latent (B, Z, h, w) of images (B, 3, H, W) in [-1, 1]."""
        latent = self.encoder(image)
        return self.decoder(self.quantize(latent)), latent

    def quantize(self, latent: Tensor) -> Tensor:
        """(B, Z, h, w) latent -> codes in {-1, +1}; the gradient passes straight through."""
        return lfq.quantize(latent)

    def tokens(self, codes: Tensor, vocabularies: tuple[int, ...]) -> Tensor:
        """(B, Z, h, w) codes -> (B, h, w, K) int64 tokens."""
        return lfq.tokens_from_codes(codes, bits_of(vocabularies), self.spec.bit_order)

    @torch.no_grad()
    def codes(self, image: Tensor) -> Tensor:
        """Codes (B, Z, h, w) in {-1, +1} of images (B, 3, H, W) in [-1, 1]."""
        return self.quantize(self.encoder(image))
