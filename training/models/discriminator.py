"""What tells pictures and clips from reconstructions, patch by patch: the discriminators of the
published recipes, with the parameter names of the official training files (`loss.discriminator.*`).

Facts from TencentARC/SEED-Voken, src/Open_MAGVIT2/modules/discriminator/model.py: layers, slopes,
initial weights and padding. Where padding is odd, the larger half stands right and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from m2kit.errors import InputError
from m2kit.families.convolutional import GROUPS

Kind = Literal["patch", "blur"]
_INITIAL_DEVIATION = 0.02
_BLUR = (1.0, 3.0, 3.0, 1.0)
_LEAST_PIXELS = 24  # of a side of pictures, of which PatchGAN's layers leave one position
_LEAST_OF_CLIPS = 16  # of which those of clips leave four, as BatchNorm needs more than one


class PatchDiscriminator(nn.Module):
    """PatchGAN: 4 x 4 convolutions, the first `layers` of stride 2, with BatchNorm between.

    Args:
        width: Channels after the first convolution; they double up to 8 times.
        layers: Convolutions of stride 2.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.main = _patches(nn.Conv2d, nn.BatchNorm2d, 4, width, (*[2] * layers, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w); above 0 is "real"."""
        logits: Tensor = self.main(images)
        return logits


class ClipDiscriminator(nn.Module):
    """PatchGAN of the video tokenizer: 3 x 3 x 3 convolutions, of which three halve height and
    width and the first two time as well. BatchNorm is each process's own.

    Args:
        width: Channels after the first convolution; they double three times.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.main = _patches(nn.Conv3d, nn.BatchNorm3d, 3, width, (2, 2, (1, 2, 2), 1))

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [-1, 1] -> logits (B, 1, t, h, w); above 0 is "real"."""
        logits: Tensor = self.main(clips)
        return logits


def _patches(
    convolution: type[nn.Conv2d | nn.Conv3d],
    norm: type[nn.BatchNorm2d | nn.BatchNorm3d],
    side: int,
    width: int,
    strides: Sequence[Any],
) -> nn.Sequential:
    """PatchGAN's layers: a convolution of each stride, and one of stride 1 to the logits; all are
    padded by 1, and a norm follows those between the first and the last."""
    widths = [width * min(2**index, 8) for index in range(len(strides))]
    parts: list[nn.Module] = [convolution(3, width, side, strides[0], 1), nn.LeakyReLU(0.2)]
    for index in range(1, len(strides)):
        parts += [
            convolution(widths[index - 1], widths[index], side, strides[index], 1, bias=False),
            norm(widths[index]),
            nn.LeakyReLU(0.2),
        ]
    main = nn.Sequential(*parts, convolution(widths[-1], 1, side, 1, 1))
    for part in main:
        if isinstance(part, convolution):
            nn.init.normal_(part.weight, 0, _INITIAL_DEVIATION)
        elif isinstance(part, norm):
            nn.init.normal_(part.weight, 1, _INITIAL_DEVIATION)
    return main


class BlurDiscriminator(nn.Module):
    """The discriminator of MaskBit (arXiv 2409.16211), which blurs before it drops pixels.

    Args:
        width: Channels after the first convolution; they double from the second stage on.
        stages: Halvings.
    """

    def __init__(self, width: int = 128, stages: int = 3) -> None:
        super().__init__()
        widths = [width, *(width * 2**index for index in range(stages))]
        self.block_in = nn.Sequential(_convolution(3, width, 5), nn.LeakyReLU(0.1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                _convolution(widths[index], widths[index + 1], 3),
                _Blur(),
                nn.GroupNorm(GROUPS, widths[index + 1]),
                nn.LeakyReLU(0.1),
            )
            for index in range(stages)
        )
        self.to_logits = nn.Sequential(
            _convolution(widths[-1], widths[-1], 1),
            nn.LeakyReLU(0.1),
            _convolution(widths[-1], 1, 5),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w); above 0 is "real"."""
        x: Tensor = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.to_logits(x)
        return logits


class _Blur(nn.Module):
    """Halves h and w under a fixed, normalised 4 x 4 filter."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor(_BLUR)
        self.register_buffer("kernel", (torch.outer(row, row) / row.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))."""
        channels, size = x.shape[1], x.shape[2:]
        missing = [2 * ((n - 1) // 2) + len(_BLUR) - n for n in reversed(size)]
        x = functional.pad(x, [part for m in missing for part in (m // 2, m - m // 2)])
        kernel = self.kernel.expand(channels, -1, -1, -1)
        return functional.conv2d(x, kernel, stride=2, groups=channels)


def _convolution(channels_in: int, channels_out: int, side: int) -> nn.Conv2d:
    """A convolution of odd side that keeps h and w."""
    return nn.Conv2d(channels_in, channels_out, side, padding=side // 2)


def discriminator(kind: Kind, width: int | None = None, *, of_clips: bool = False) -> nn.Module:
    """A new discriminator, of the published width unless another one is named; of clips there is
    PatchGAN alone."""
    of_pictures = PatchDiscriminator if kind == "patch" else BlurDiscriminator
    make = ClipDiscriminator if of_clips else of_pictures
    return make() if width is None else make(width)


def check_judged(kind: str, size: tuple[int, ...]) -> None:
    """Refuse pictures (H, W) or clips (T, H, W) of which a discriminator is left nothing.

    Raises:
        InputError: They are too small for PatchGAN.
    """
    least, what = (_LEAST_PIXELS, "pictures") if len(size) == 2 else (_LEAST_OF_CLIPS, "clips")
    if kind == "patch" and min(size[-2:]) < least:
        raise InputError(
            f"PatchGAN judges {what} of {least} x {least} pixels and more, found "
            f"{' x '.join(map(str, size[-2:]))}; take larger ones, or another discriminator",
            option="--size, --adversary",
        )
