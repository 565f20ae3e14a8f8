"""The image tokenizer of Open-MAGVIT2 (arXiv 2409.04410; the V0.1 release has no adaptive
GroupNorm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from m2kit.families.convolutional import ConvolutionalSpec
from m2kit.families.family import Family, register


@dataclass(frozen=True, slots=True)
class ImageTokenizerSpec(ConvolutionalSpec):
    """The image tokenizer: its fields are those of ConvolutionalSpec."""

    family: ClassVar[str] = "image"
    axes: ClassVar[tuple[str, ...]] = ("H", "W")
    picture: ClassVar[str] = "an image"


register(
    Family(
        spec=ImageTokenizerSpec,
        model="m2kit.training.models.tokenizer:Tokenizer",
        layout="m2kit.training.checkpoints.convolutional_layout:IMAGE",
        graphs="m2kit.export.graphs.tokenizer:GRAPHS",
    )
)
