"""What the image and the video tokenizer share: levels of residual blocks with strided convolutions
between them, Lookup-Free Quantization, and a decoder with adaptive GroupNorm (arXiv 2409.04410).
They differ in their axes: a video's first is time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from m2kit.errors import InputError, SpecError
from m2kit.families import sign_bits
from m2kit.families.convolution import Convolution
from m2kit.families.sizes import size_of_grid
from m2kit.records import JsonObject, Pattern, Range, checked_fields

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GROUPS = 32  # of every GroupNorm in the tokenizer
TIME = "T"  # the axis of frames; convolutions along it are causal
MOST_LEVELS, MOST_BLOCKS = 16, 64
_MOST_CHANNELS = 2**14  # of a level
_Channels = Annotated[int, Range(1, _MOST_CHANNELS)]


@dataclass(frozen=True, slots=True)
class ConvolutionalSpec:
    """Encoder, LFQ, decoder.

    Attributes:
        base_channels: Channels after the first convolution.
        channel_multipliers: One per level, full resolution first; level l has base_channels times
            channel_multipliers[l] channels. Every level but the last halves h and w; it halves t,
            too, unless its multiplier is 1.
        blocks_per_level: Residual blocks per level, and in the middle.
        code_bits: Z, the latent channels; the codebook has 2^Z entries.
        adaptive_norm: Whether the decoder has adaptive GroupNorm (not in the V0.1 release).
        bit_order: "lsb" where code channel 0 of a sub-token is its lowest bit, "msb" where it is
            the highest (V0.1).
    """

    family: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    picture: ClassVar[str]
    quantizer: ClassVar[str] = "lfq"
    untold: ClassVar[tuple[str, ...]] = ("bit_order",)

    base_channels: _Channels
    channel_multipliers: Annotated[tuple[_Channels, ...], Range(1, MOST_LEVELS)]
    blocks_per_level: Annotated[int, Range(1, MOST_BLOCKS)]
    code_bits: Annotated[int, Range(1, sign_bits.MOST_BITS)]
    adaptive_norm: bool
    bit_order: Annotated[str, Pattern("|".join(sign_bits.BIT_ORDERS), "lsb or msb")]

    def __post_init__(self) -> None:
        """Refuse an architecture that cannot be built."""
        checked_fields(self, "tokenizer", SpecError)
        if max(self.channels) > _MOST_CHANNELS:
            raise SpecError(
                f"the tokenizer's levels may have {_MOST_CHANNELS} channels, "
                f"found {max(self.channels)}"
            )
        if self.base_channels % GROUPS:
            raise SpecError(
                f"tokenizer.base_channels must be a multiple of {GROUPS} (GroupNorm's groups), "
                f"found {self.base_channels}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def entering(self) -> tuple[int, ...]:
        """Channels that enter each level of the decoder, full resolution first."""
        return (*self.channels[1:], self.channels[-1])

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """By how much every level but the last shrinks each axis, full resolution first."""
        return tuple(
            tuple(1 if axis == TIME and multiplier == 1 else 2 for axis in self.axes)
            for multiplier in self.channel_multipliers[:-1]
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per latent position along each axis."""
        levels = self.level_strides
        return tuple(math.prod(level[i] for level in levels) for i in range(len(self.axes)))

    @property
    def first_strides(self) -> tuple[int, ...]:
        """Those of the first position: time is causal, so that it is one frame."""
        return tuple(1 if a == TIME else s for a, s in zip(self.axes, self.strides, strict=True))

    @property
    def code_channels(self) -> int:
        """Z."""
        return self.code_bits

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """One sub-token of all bits."""
        return (2**self.code_bits,)

    def check_split(self, vocabularies: tuple[int, ...]) -> None:
        """Raise SpecError unless the sub-tokens' bits sum to the code's."""
        bits = sign_bits.bits_of(vocabularies)
        if sum(bits) != self.code_bits:
            raise SpecError(
                f"the sub-tokens' bits {list(bits)} must sum to the tokenizer's "
                f"{self.code_bits} code bits, found {sum(bits)}"
            )

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Raise InputError for a single position: adaptive GroupNorm needs a variance."""
        if self.adaptive_norm and math.prod(grid) < 2:
            found, enough = (size_of_grid(self, (*grid[:-1], n)) for n in (1, 2))
            raise InputError(
                f"{self.picture} of {_by(found)} pixels is a single latent position, and adaptive "
                f"GroupNorm needs two; use at least {_by(enough)}"
            )

    def codes_from_tokens(
        self, tokens: npt.NDArray[np.int64], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """(B, *grid, K) ids -> (B, Z, *grid) codes in {-1, +1}."""
        return sign_bits.codes_from_tokens(tokens, sign_bits.bits_of(vocabularies), self.bit_order)

    def tokens_from_codes(
        self, codes: npt.NDArray[np.floating], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        """(B, Z, *grid) codes -> (B, *grid, K) ids; a code is 1 where it is > 0."""
        return sign_bits.tokens_from_codes(codes, sign_bits.bits_of(vocabularies), self.bit_order)

    def architecture(self) -> JsonObject:
        """The fields that tensors tell: how bits are counted is recorded apart."""
        return {name: value for name, value in asdict(self).items() if name not in self.untold}

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of encoder and decoder."""
        layers = self.convolutions(self.strides)  # parameters are the same for any size
        counts = {name: sum(layer.parameters for layer in part) for name, part in layers.items()}
        if self.adaptive_norm:
            counts["decoder"] += sum(2 * (self.code_bits + 1) * width for width in self.entering)
        return counts

    def convolutions(self, size: tuple[int, ...]) -> dict[str, tuple[Convolution, ...]]:
        """The convolutions of encoder and decoder, in order, for a picture of that size."""
        sizes = [size]  # of each level
        for strides in self.level_strides:
            sizes.append(tuple(-(-n // s) for n, s in zip(sizes[-1], strides, strict=True)))
        return {"encoder": tuple(self._encoder(sizes)), "decoder": tuple(self._decoder(sizes))}

    def _blocks(
        self, channels_in: int, channels_out: int, size: tuple[int, ...]
    ) -> Iterator[Convolution]:
        for _ in range(self.blocks_per_level):
            yield Convolution(channels_in, channels_out, size, normed=True)
            yield Convolution(channels_out, channels_out, size, normed=True)
            if channels_in != channels_out:
                yield Convolution(channels_in, channels_out, size, kernel=1)
            channels_in = channels_out

    def _encoder(self, sizes: list[tuple[int, ...]]) -> Iterator[Convolution]:
        entering, last = self.base_channels, self.channels[-1]
        yield Convolution(3, entering, sizes[0])
        for level, width in enumerate(self.channels):
            yield from self._blocks(entering, width, sizes[level])
            if level < len(self.level_strides):
                strides = self.level_strides[level]
                yield Convolution(width, width, sizes[level + 1], strides=strides, bias=True)
            entering = width
        yield from self._blocks(last, last, sizes[-1])
        yield Convolution(last, self.code_bits, sizes[-1], kernel=1, bias=True, normed=True)

    def _decoder(self, sizes: list[tuple[int, ...]]) -> Iterator[Convolution]:
        channels, last = self.channels, self.channels[-1]
        yield Convolution(self.code_bits, last, sizes[-1], bias=True)
        yield from self._blocks(last, last, sizes[-1])
        for level in reversed(range(len(channels))):
            width = channels[level]
            yield from self._blocks(self.entering[level], width, sizes[level])
            if level:
                larger = math.prod(self.level_strides[level - 1]) * width
                yield Convolution(width, larger, sizes[level], bias=True)
        yield Convolution(channels[0], 3, sizes[0], bias=True, normed=True)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
