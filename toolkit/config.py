"""Specs: what a model is, as plain frozen records, and the table of published presets.

Shape letters, used everywhere: B images, R rows (2B with guidance, else B), K sub-tokens,
V_k entries of sub-vocabulary k, N positions (h*w), S cache capacity (= N), D width, L layers,
H heads, d head size, Z code channels, H W pixels of an image, h w latent grid.

The facts behind the presets: arXiv 2409.04410 (tables 1 to 5) and the official configurations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any

from m2kit.errors import SpecError
from m2kit.families import sizes
from m2kit.families.family import FAMILIES, TokenizerSpec, family_named
from m2kit.families.image import ImageTokenizerSpec
from m2kit.families.video import FRAMES, VideoTokenizerSpec
from m2kit.records import BadRecord, JsonObject, Range, checked_fields, read_record, to_json

UNTOLD_OF_TRANSFORMER = ("heads", "grid", "rope_base")
UNTOLD = (*UNTOLD_OF_TRANSFORMER, *VideoTokenizerSpec.untold)  # what a checkpoint's shapes do not
MOST_POSITIONS = 65_536  # 256 x 256


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
        vocabularies: V_k, ids of each sub-token, in the order they are drawn.
        rope_base: Base of the 2-D rotary embedding.
    """

    width: Annotated[int, Range(1, 2**16)]
    heads: Annotated[int, Range(1, 2**12)]
    inter_layers: Annotated[int, Range(1, 512)]
    intra_layers: Annotated[int, Range(1, 512)]
    ffn_width: Annotated[int, Range(1, 2**20)]
    grid: tuple[Annotated[int, Range(1, MOST_POSITIONS)], ...]
    classes: Annotated[int, Range(1, 2**24)]
    vocabularies: Annotated[tuple[Annotated[int, Range(1, 2**24)], ...], Range(1, 62)]
    rope_base: float

    def __post_init__(self) -> None:
        """Refuse an architecture that cannot be built."""
        checked_fields(self, "transformer", SpecError)
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
        if self.sub_tokens > self.positions + 1:
            raise SpecError(
                f"transformer.vocabularies holds {self.sub_tokens} sub-tokens, but the rotary "
                f"table of a {self.grid[0]} x {self.grid[1]} grid has {self.positions + 1} rows"
            )
        if not 1 < self.rope_base < 1e12:
            raise SpecError(f"transformer.rope_base must be above 1, found {self.rope_base}")

    @property
    def positions(self) -> int:
        """N = h*w."""
        return math.prod(self.grid)

    @property
    def head_size(self) -> int:
        """d = D / H."""
        return self.width // self.heads

    @property
    def sub_tokens(self) -> int:
        """K."""
        return len(self.vocabularies)

    @property
    def layer_parameters(self) -> int:
        """Of one layer: attention, SwiGLU feed-forward and two norms."""
        return 4 * self.width**2 + 3 * self.width * self.ffn_width + 2 * self.width

    @property
    def weights_per_position(self) -> int:
        """Weight values that decoding one position needs, whatever the batch.

        The inter step once, the intra step once for each sub-token with the head that is read
        there, and of the embedding tables the rows that are looked up. Times the bytes of a value,
        divided by the memory's bandwidth, this is the least time a position can take.
        """
        inter = self.inter_layers * self.layer_parameters
        intra = self.sub_tokens * (self.intra_layers * self.layer_parameters + self.width)
        rows = 2 * self.sub_tokens - 1  # K for the inter step, one for each later sub-token
        return inter + intra + (sum(self.vocabularies) + rows) * self.width


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole model: a tokenizer, and the transformer over its tokens where there is one."""

    tokenizer: TokenizerSpec
    transformer: TransformerSpec | None

    def __post_init__(self) -> None:
        """Refuse a transformer whose sub-tokens or grid are not the tokenizer's."""
        if self.transformer is None:
            return
        self.tokenizer.check_split(self.transformer.vocabularies)
        if len(self.transformer.grid) != len(self.tokenizer.axes):
            raise SpecError(
                f"transformer.grid has {len(self.transformer.grid)} axes, the tokenizer's latent "
                f"has {len(self.tokenizer.axes)}"
            )

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """V_k of each sub-token; a tokenizer alone has one sub-token (K = 1)."""
        return self.transformer.vocabularies if self.transformer else self.tokenizer.vocabularies

    @property
    def sub_tokens(self) -> int:
        """K."""
        return len(self.vocabularies)

    @property
    def positions(self) -> int | None:
        """N of the transformer, None for a tokenizer alone."""
        return self.transformer.positions if self.transformer else None

    @property
    def image_size(self) -> tuple[int, ...] | None:
        """Pixels of a generated image along each axis, such as (height, width); None for a
        tokenizer alone."""
        return self.size_of_grid(self.transformer.grid) if self.transformer else None

    def size_of_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels along each axis that a latent grid covers."""
        return sizes.size_of_grid(self.tokenizer, grid)

    def grid_of_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The latent grid of a picture of a size that the model takes."""
        return sizes.grid_of_size(self.tokenizer, size)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of encoder and decoder, and of the inter and intra transformer.

        The sub-token embeddings, which both step graphs share, count with the inter transformer;
        final norm and heads with the intra transformer.
        """
        counts, spec = dict(self.tokenizer.parameter_counts()), self.transformer
        if spec is not None:
            ids, classes = sum(spec.vocabularies), spec.classes + 1
            inter = spec.inter_layers * spec.layer_parameters
            intra = spec.intra_layers * spec.layer_parameters
            counts["inter transformer"] = inter + (ids + classes) * spec.width
            counts["intra transformer"] = intra + (1 + ids) * spec.width
        return counts

    def to_json(self) -> JsonObject:
        """The spec as plain JSON values."""
        return {
            "tokenizer": {"family": self.tokenizer.family, **to_json(self.tokenizer)},
            "transformer": to_json(self.transformer) if self.transformer else None,
        }

    @classmethod
    def from_json(cls, value: Any) -> ModelSpec:
        """The spec that `to_json` wrote, or m2kit's trainers before there were families.

        Raises:
            SpecError: A field is missing, unknown or impossible.
        """
        if not isinstance(value, dict) or set(value) != {"tokenizer", "transformer"}:
            raise SpecError("a spec must be an object with the fields tokenizer and transformer")
        tokenizer, transformer = value["tokenizer"], value["transformer"]
        if not isinstance(tokenizer, dict):
            raise SpecError(f"tokenizer: expected an object, found {tokenizer!r:.60}")
        record = family_named(tokenizer.get("family", "image")).spec
        own = {name: item for name, item in tokenizer.items() if name != "family"}
        try:
            return cls(
                read_record(record, own, "tokenizer"),
                None
                if transformer is None
                else read_record(TransformerSpec, _with_vocabularies(transformer), "transformer"),
            )
        except BadRecord as error:
            raise SpecError(str(error)) from error


def _with_vocabularies(transformer: Any) -> Any:
    """What trainers wrote before sub-vocabularies were stored: bits of each sub-token."""
    bits = transformer.get("bits") if isinstance(transformer, dict) else None
    if not isinstance(bits, list) or not all(type(b) is int and 0 < b <= 62 for b in bits):
        return transformer
    rest = {name: item for name, item in transformer.items() if name != "bits"}
    return {**rest, "vocabularies": [2**b for b in bits]}


def overrides_from_json(value: Any) -> JsonObject:
    """The flat object of a --spec file: only fields that a checkpoint's shapes do not tell.

    Args:
        value: Such as {"heads": 20}.

    Raises:
        SpecError: Not a flat JSON object, or a field that no spec has.
    """
    if not isinstance(value, dict):
        raise SpecError(
            f'the spec must be a JSON object such as {{"heads": 20}}, found {value!r}',
            option="--spec",
        )
    records: list[type[Any]] = [TransformerSpec, *(family.spec for family in FAMILIES.values())]
    known = {field.name for record in records for field in fields(record)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise SpecError(
            f"the spec names unknown fields {unknown}; it takes {', '.join(UNTOLD)}",
            option="--spec",
        )
    return {n: tuple(item) if isinstance(item, list) else item for n, item in value.items()}


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
    def sampling(self) -> dict[str, tuple[float, ...]]:
        """The options of m2kit.Sampling that the authors set; none for a tokenizer."""
        options = {"guidance": self.guidance, "temperature": self.temperature}
        return {name: value for name, value in options.items() if value}


_TOKENIZER_128 = ImageTokenizerSpec(128, (1, 2, 2, 4), 4, 18, True, "lsb")
_TOKENIZER_256 = ImageTokenizerSpec(128, (1, 1, 2, 2, 4), 4, 18, True, "lsb")


def _ar(width: int, heads: int, inter: int, intra: int, ffn_width: int) -> ModelSpec:
    transformer = TransformerSpec(
        width, heads, inter, intra, ffn_width, (16, 16), 1000, (64, 4096), 10000.0
    )
    return ModelSpec(_TOKENIZER_256, transformer)


PRESETS: dict[str, Preset] = {
    "tokenizer-128": Preset(ModelSpec(_TOKENIZER_128, None), (6, 12)),
    "tokenizer-256": Preset(ModelSpec(_TOKENIZER_256, None), (6, 12)),
    "tokenizer-pretrain-16384": Preset(
        ModelSpec(ImageTokenizerSpec(128, (1, 1, 2, 2, 4), 4, 14, True, "lsb"), None), ()
    ),
    "tokenizer-pretrain-262144": Preset(ModelSpec(_TOKENIZER_256, None), (6, 12)),
    "tokenizer-128-v0.1": Preset(
        ModelSpec(ImageTokenizerSpec(128, (1, 2, 2, 4), 2, 18, False, "msb"), None), (9, 9)
    ),
    "tokenizer-256-v0.1": Preset(
        ModelSpec(ImageTokenizerSpec(128, (1, 1, 2, 2, 4), 2, 18, False, "msb"), None), (9, 9)
    ),
    "video-128": Preset(
        ModelSpec(VideoTokenizerSpec(128, (1, 2, 2, 4), 4, 18, True, "lsb", FRAMES), None), (18,)
    ),
    "ar-b": Preset(_ar(1024, 16, 24, 2, 2816), (6, 12), (1.9, 2.0), (1.0, 1.0)),
    "ar-l": Preset(_ar(1280, 20, 36, 3, 3584), (6, 12), (1.9, 1.9), (1.1, 1.0)),
    "ar-xl": Preset(_ar(1536, 24, 48, 4, 4096), (6, 12), (1.75, 1.85), (1.1, 1.0)),
}
