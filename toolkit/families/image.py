"""The image tokenizer of Open-MAGVIT2: strided convolutions, Lookup-Free Quantization, a decoder
with adaptive GroupNorm (arXiv 2409.04410; the V0.1 release has no adaptive GroupNorm).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from m2kit.errors import InputError, SpecError
from m2kit.families import sign_bits
from m2kit.families.family import Family, register
from m2kit.records import JsonObject, Pattern, Range, checked_fields

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GROUPS = 32  # of every GroupNorm in the tokenizer
_MOST_CHANNELS = 2**14  # of a level
_Channels = Annotated[int, Range(1, _MOST_CHANNELS)]


@dataclass(frozen=True, slots=True)
class ImageTokenizerSpec:
    """The image tokenizer: encoder, LFQ, decoder.

    Attributes:
        base_channels: Channels after the first convolution.
        channel_multipliers: One per level, full resolution first; level l has base_channels times
            channel_multipliers[l] channels. Every level but the last halves h and w.
        blocks_per_level: Residual blocks per level, and in the middle.
        code_bits: Z, the latent channels; the codebook has 2^Z entries.
        adaptive_norm: Whether the decoder has adaptive GroupNorm (not in the V0.1 release).
        bit_order: "lsb" where code channel 0 of a sub-token is its lowest bit, "msb" where it is
            the highest (V0.1).
    """

    family: ClassVar[str] = "image"
    axes: ClassVar[tuple[str, ...]] = ("H", "W")
    quantizer: ClassVar[str] = "lfq"
    untold: ClassVar[tuple[str, ...]] = ("bit_order",)

    base_channels: _Channels
    channel_multipliers: Annotated[tuple[_Channels, ...], Range(1, 16)]
    blocks_per_level: Annotated[int, Range(1, 64)]
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
    def strides(self) -> tuple[int, ...]:
        """Pixels per latent position along each axis."""
        return (2 ** (len(self.channel_multipliers) - 1),) * 2

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
        height, width = grid
        factor = self.strides[0]
        if self.adaptive_norm and height * width < 2:
            raise InputError(
                f"an image of {height * factor} x {width * factor} pixels is a single latent "
                f"position, and adaptive GroupNorm needs two; use at least {factor} x {2 * factor}"
            )

    def codes_from_tokens(
        self, tokens: npt.NDArray[np.int64], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """(B, h, w, K) ids -> (B, Z, h, w) codes in {-1, +1}."""
        return sign_bits.codes_from_tokens(tokens, sign_bits.bits_of(vocabularies), self.bit_order)

    def tokens_from_codes(
        self, codes: npt.NDArray[np.floating], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        """(B, Z, h, w) codes -> (B, h, w, K) ids; a code is 1 where it is > 0."""
        return sign_bits.tokens_from_codes(codes, sign_bits.bits_of(vocabularies), self.bit_order)

    def architecture(self) -> JsonObject:
        """All fields but the bit order: how bits are counted is recorded apart."""
        fields = asdict(self)
        del fields["bit_order"]
        return fields

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of encoder and decoder."""
        return {"encoder": _encoder(self), "decoder": _decoder(self)}


def _conv(channels_in: int, channels_out: int, kernel: int = 3, bias: bool = True) -> int:
    return channels_in * channels_out * kernel**2 + (channels_out if bias else 0)


def _blocks(channels_in: int, channels_out: int, count: int) -> int:
    total = 0
    for _ in range(count):
        total += 2 * channels_in + 2 * channels_out  # the two norms
        total += _conv(channels_in, channels_out, bias=False)
        total += _conv(channels_out, channels_out, bias=False)
        if channels_in != channels_out:
            total += channels_in * channels_out
        channels_in = channels_out
    return total


def _encoder(spec: ImageTokenizerSpec) -> int:
    channels, blocks = spec.channels, spec.blocks_per_level
    entering = (spec.base_channels, *channels[:-1])
    total = _conv(3, spec.base_channels, bias=False)
    total += sum(_blocks(a, b, blocks) for a, b in zip(entering, channels, strict=True))
    total += sum(_conv(width, width) for width in channels[:-1])
    total += _blocks(channels[-1], channels[-1], blocks) + 2 * channels[-1]
    return total + _conv(channels[-1], spec.code_bits, kernel=1)


def _decoder(spec: ImageTokenizerSpec) -> int:
    channels, blocks = spec.channels, spec.blocks_per_level
    entering = (*channels[1:], channels[-1])
    total = _conv(spec.code_bits, channels[-1]) + _blocks(channels[-1], channels[-1], blocks)
    total += sum(_blocks(a, b, blocks) for a, b in zip(entering, channels, strict=True))
    total += sum(_conv(width, 4 * width) for width in channels[1:])
    if spec.adaptive_norm:
        total += sum(2 * (spec.code_bits + 1) * width for width in entering)
    return total + 2 * channels[0] + _conv(channels[0], 3)


register(
    Family(
        spec=ImageTokenizerSpec,
        model="m2kit.training.models.tokenizer:Tokenizer",
        layout="m2kit.training.checkpoints.image_layout:LAYOUT",
        graphs="m2kit.export.graphs.image:GRAPHS",
    )
)
