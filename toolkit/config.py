"""Specs: what a model is, as plain frozen records, and the table of published presets.

Shape letters, used everywhere: B images, R rows (2B with guidance, else B), K sub-tokens,
V_k entries of sub-vocabulary k (2^bits[k]), N positions (h*w), S cache capacity (= N), D width,
L layers, H heads, d head size, Z code bits, H W pixels of an image, h w latent grid.

The facts behind the presets: arXiv 2409.04410 (tables 1 to 5) and the official configurations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from m2kit.errors import SpecError

GROUPS = 32  # of every GroupNorm in the tokenizer
BIT_ORDERS = ("lsb", "msb")
UNTOLD_OF_TRANSFORMER = ("heads", "grid", "rope_base")
UNTOLD = (*UNTOLD_OF_TRANSFORMER, "bit_order")  # fields that a checkpoint's shapes do not tell
MOST_POSITIONS = 65_536  # 256 x 256; a file's notes could otherwise ask for any amount of memory


def _positive(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**40:
            raise SpecError(f"{owner}.{name} must be a whole number >= 1, found {value!r}")


def _positive_list(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, tuple) or not value:
            raise SpecError(
                f"{owner}.{name} must be a list of at least one number, found {value!r}"
            )
        for item in value:
            _positive(owner, **{name: item})


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
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

    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    code_bits: int
    adaptive_norm: bool
    bit_order: str

    def __post_init__(self) -> None:
        """Refuse an architecture that cannot be built."""
        _positive(
            "tokenizer",
            base_channels=self.base_channels,
            blocks_per_level=self.blocks_per_level,
            code_bits=self.code_bits,
        )
        _positive_list("tokenizer", channel_multipliers=self.channel_multipliers)
        if not isinstance(self.adaptive_norm, bool):
            raise SpecError(
                f"tokenizer.adaptive_norm must be true or false, found {self.adaptive_norm!r}"
            )
        if self.base_channels % GROUPS:
            raise SpecError(
                f"tokenizer.base_channels must be a multiple of {GROUPS} (GroupNorm's groups), "
                f"found {self.base_channels}"
            )
        if self.code_bits > 62:
            raise SpecError(f"tokenizer.code_bits must be at most 62, found {self.code_bits}")
        if self.bit_order not in BIT_ORDERS:
            raise SpecError(f"tokenizer.bit_order must be lsb or msb, found {self.bit_order!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along each side."""
        return int(2 ** (len(self.channel_multipliers) - 1))


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """The autoregressive model: an inter transformer over positions, an intra one over sub-tokens.

    Attributes:
        width: D.
        heads: H, in both transformers.
        inter_layers: Layers over positions.
        intra_layers: Layers over the sub-tokens of one position.
        ffn_width: Hidden width of the SwiGLU feed-forward.
        grid: (h, w) of the latent; N = h*w positions.
        classes: Number of classes; row `classes` of the embedding is the unconditional one.
        bits: Bits of each sub-token, in the order they are drawn. Sub-token k is the code channels
            sum(bits[:k]) up to sum(bits[:k+1]).
        rope_base: Base of the 2-D rotary embedding.
    """

    width: int
    heads: int
    inter_layers: int
    intra_layers: int
    ffn_width: int
    grid: tuple[int, int]
    classes: int
    bits: tuple[int, ...]
    rope_base: float

    def __post_init__(self) -> None:
        """Refuse an architecture that cannot be built."""
        _positive(
            "transformer",
            width=self.width,
            heads=self.heads,
            inter_layers=self.inter_layers,
            intra_layers=self.intra_layers,
            ffn_width=self.ffn_width,
            classes=self.classes,
        )
        _positive_list("transformer", bits=self.bits, grid=self.grid)
        if len(self.grid) != 2:
            raise SpecError(f"transformer.grid must be [h, w], found {list(self.grid)}")
        if self.positions > MOST_POSITIONS:
            raise SpecError(
                f"transformer.grid may have at most {MOST_POSITIONS} positions, found "
                f"{self.grid[0]} x {self.grid[1]}"
            )
        if self.width % self.heads or self.head_size % 4:
            raise SpecError(
                "transformer.width must be heads times a multiple of 4 (2-D rotary pairs), "
                f"found width {self.width} and heads {self.heads}"
            )
        if len(self.bits) > self.positions + 1:
            raise SpecError(
                f"transformer.bits holds {len(self.bits)} sub-tokens, but the rotary table of a "
                f"{self.grid[0]} x {self.grid[1]} grid has {self.positions + 1} rows"
            )
        base = self.rope_base
        if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 < base < 1e12:
            raise SpecError(f"transformer.rope_base must be a number above 1, found {base!r}")

    @property
    def positions(self) -> int:
        """N = h*w."""
        return self.grid[0] * self.grid[1]

    @property
    def head_size(self) -> int:
        """d = D / H."""
        return self.width // self.heads

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """V_k = 2^bits[k] for each sub-token."""
        return tuple(2**bits for bits in self.bits)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole model: a tokenizer, and the transformer over its tokens where there is one."""

    tokenizer: TokenizerSpec
    transformer: TransformerSpec | None

    def __post_init__(self) -> None:
        """Refuse a transformer whose sub-tokens do not make up the tokenizer's code."""
        if self.transformer and sum(self.transformer.bits) != self.tokenizer.code_bits:
            raise SpecError(
                f"transformer.bits {list(self.transformer.bits)} must sum to the tokenizer's "
                f"{self.tokenizer.code_bits} code bits, found {sum(self.transformer.bits)}"
            )

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each sub-token; a tokenizer alone has one sub-token of all its bits (K = 1)."""
        return self.transformer.bits if self.transformer else (self.tokenizer.code_bits,)

    @property
    def positions(self) -> int | None:
        """N of the transformer, None for a tokenizer alone."""
        return self.transformer.positions if self.transformer else None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of a generated image, None for a tokenizer alone."""
        if self.transformer is None:
            return None
        factor = self.tokenizer.downsampling
        return self.transformer.grid[0] * factor, self.transformer.grid[1] * factor

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values."""
        return {
            "tokenizer": asdict(self.tokenizer),
            "transformer": asdict(self.transformer) if self.transformer else None,
        }

    @classmethod
    def from_json(cls, value: Any) -> ModelSpec:
        """The spec that `to_json` wrote.

        Raises:
            SpecError: A field is missing, unknown or impossible.
        """
        if not isinstance(value, Mapping) or set(value) != {"tokenizer", "transformer"}:
            raise SpecError("a spec must be an object with the fields tokenizer and transformer")
        transformer = value["transformer"]
        return cls(
            tokenizer=_record(TokenizerSpec, "tokenizer", value["tokenizer"]),
            transformer=transformer and _record(TransformerSpec, "transformer", transformer),
        )


def field_names(record: type) -> frozenset[str]:
    """The field names of one of the spec classes."""
    return frozenset(field.name for field in fields(record))


def _record(record: type, owner: str, value: Any) -> Any:
    names = field_names(record)
    if not isinstance(value, Mapping) or set(value) != names:
        found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise SpecError(f"{owner} must have the fields {sorted(names)}, found {found}")
    return record(**{name: freeze(item) for name, item in value.items()})


def freeze(value: Any) -> Any:
    """JSON lists as tuples, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def overrides_from_text(text: str) -> dict[str, Any]:
    """The flat object of a --spec file: only fields that a checkpoint's shapes do not tell.

    Args:
        text: JSON such as {"heads": 20}.

    Raises:
        SpecError: Not a flat JSON object, or a field that no spec has.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(
            f'--spec must hold a JSON object such as {{"heads": 20}}: {error}'
        ) from error
    if not isinstance(value, dict):
        raise SpecError(f'--spec must hold a JSON object such as {{"heads": 20}}, found {value!r}')
    known = field_names(TokenizerSpec) | field_names(TransformerSpec)
    unknown = sorted(set(value) - known)
    if unknown:
        raise SpecError(f"--spec names unknown fields {unknown}; it takes {', '.join(UNTOLD)}")
    return {name: freeze(item) for name, item in value.items()}


@dataclass(frozen=True, slots=True)
class Preset:
    """A published model.

    Attributes:
        spec: The architecture.
        split: Bits of the sub-tokens into which its authors split a token; not known for the
            tokenizer of 14 bits.
        guidance: The authors' guidance, one value per sub-token (AR models).
        temperature: Likewise.
    """

    spec: ModelSpec
    split: tuple[int, ...]
    guidance: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of m2kit.Sampling that the authors set; none for a tokenizer."""
        options = {"guidance": self.guidance, "temperature": self.temperature}
        return {name: value for name, value in options.items() if value}


_TOKENIZER_128 = TokenizerSpec(128, (1, 2, 2, 4), 4, 18, True, "lsb")
_TOKENIZER_256 = TokenizerSpec(128, (1, 1, 2, 2, 4), 4, 18, True, "lsb")


def _ar(width: int, heads: int, inter: int, intra: int, ffn_width: int) -> ModelSpec:
    transformer = TransformerSpec(
        width, heads, inter, intra, ffn_width, (16, 16), 1000, (6, 12), 10000.0
    )
    return ModelSpec(_TOKENIZER_256, transformer)


PRESETS: dict[str, Preset] = {
    "tokenizer-128": Preset(ModelSpec(_TOKENIZER_128, None), (6, 12)),
    "tokenizer-256": Preset(ModelSpec(_TOKENIZER_256, None), (6, 12)),
    "tokenizer-pretrain-16384": Preset(
        ModelSpec(TokenizerSpec(128, (1, 1, 2, 2, 4), 4, 14, True, "lsb"), None), ()
    ),
    "tokenizer-pretrain-262144": Preset(ModelSpec(_TOKENIZER_256, None), (6, 12)),
    "tokenizer-128-v0.1": Preset(
        ModelSpec(TokenizerSpec(128, (1, 2, 2, 4), 2, 18, False, "msb"), None), (9, 9)
    ),
    "tokenizer-256-v0.1": Preset(
        ModelSpec(TokenizerSpec(128, (1, 1, 2, 2, 4), 2, 18, False, "msb"), None), (9, 9)
    ),
    "ar-b": Preset(_ar(1024, 16, 24, 2, 2816), (6, 12), (1.9, 2.0), (1.0, 1.0)),
    "ar-l": Preset(_ar(1280, 20, 36, 3, 3584), (6, 12), (1.9, 1.9), (1.1, 1.0)),
    "ar-xl": Preset(_ar(1536, 24, 48, 4, 4096), (6, 12), (1.75, 1.85), (1.1, 1.0)),
}
