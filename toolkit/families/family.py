"""What a tokenizer family is: the one place that gives spec, token layout, model, graphs and
parameter names of a kind of tokenizer. Nothing outside it knows how many axes a picture has or
what a sub-token is made of.

A family is its spec class, which knows shapes and token layout in numpy, and three parts that need
packages a device does not have: they are named, as "module:attribute", and imported by `resolve`
(references.py) when they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from m2kit.errors import SpecError
from m2kit.families.convolution import Convolution
from m2kit.records import JsonObject

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class TokenizerSpec(Protocol):
    """The architecture of one tokenizer: a frozen dataclass of plain values.

    Attributes:
        family: Name of its family.
        axes: Names of a picture's axes, such as ("H", "W"); those of the latent grid are the same
            in small letters.
        picture: What a picture is, such as "an image".
        quantizer: Name of the graph that turns a latent into codes and tokens.
        untold: Fields that the names and shapes of a checkpoint's tensors do not tell.
    """

    family: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    picture: ClassVar[str]
    quantizer: ClassVar[str]
    untold: ClassVar[tuple[str, ...]]

    @property
    def bit_order(self) -> str:
        """Which way ids count where sub-tokens are bits, "" where they are not."""

    @property
    def code_channels(self) -> int:
        """Z: channels of the latent and of the codes."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per latent position along each axis."""

    @property
    def first_strides(self) -> tuple[int, ...]:
        """Pixels of the first position along each axis: `strides`, but where one is causal."""

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Sub-vocabularies of a tokenizer alone: one sub-token a position (K = 1)."""

    def check_split(self, vocabularies: tuple[int, ...]) -> None:
        """Raise SpecError unless these sub-vocabularies make up the codebook."""

    def check_grid(self, grid: tuple[int, ...]) -> None:
        """Raise InputError where the model cannot take a latent of that grid."""

    def codes_from_tokens(
        self, tokens: npt.NDArray[np.int64], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """(B, *grid, K) ids -> (B, Z, *grid) codes, the decoder's input."""

    def tokens_from_codes(
        self, codes: npt.NDArray[np.floating], vocabularies: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        """(B, Z, *grid) codes, or latents that quantize to them -> (B, *grid, K) ids."""

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of encoder and decoder."""

    def convolutions(self, size: tuple[int, ...]) -> dict[str, tuple[Convolution, ...]]:
        """The convolutions of encoder and decoder for a picture of that size; none of a part that
        computes otherwise."""

    def architecture(self) -> JsonObject:
        """What the meaning of a code depends on; a token file holds its hash."""


@dataclass(frozen=True, slots=True)
class Family:
    """A tokenizer family.

    Attributes:
        spec: Its spec class, a TokenizerSpec.
        model: The PyTorch module, made of a spec: `encoder(image)`, `quantize(latent)`,
            `tokens(codes, vocabularies)`, `decoder(codes)`.
        layout: How a checkpoint tells its spec: `recognises(shapes)`, `fields(shapes)` and,
            for what nothing tells, `assumed(fields)`.
        graphs: Graph name -> function (spec, weights) that writes it.
    """

    spec: type[Any]
    model: str | Any
    layout: str | Any
    graphs: str | Any


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family to the table, under the name its spec gives."""
    FAMILIES[family.spec.family] = family


def family_named(name: Any) -> Family:
    """The family of that name.

    Raises:
        SpecError: There is none.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise SpecError(
            f"tokenizer.family must be one of {', '.join(FAMILIES)}, found {name!r:.60}"
        )
    return FAMILIES[name]
