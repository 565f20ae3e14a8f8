"""The video tokenizer of Open-MAGVIT2 (arXiv 2409.04410, section 3.1): the image tokenizer with a
third axis, in which convolutions are causal, so that one frame is a clip, too.

It is not strictly causal: normalisation pools over time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from m2kit.errors import SpecError
from m2kit.families.convolutional import TIME, ConvolutionalSpec
from m2kit.families.family import Family, register
from m2kit.families.sizes import misfit
from m2kit.records import JsonObject, Range

FRAMES = 17  # of the released model's clips


@dataclass(frozen=True, slots=True)
class VideoTokenizerSpec(ConvolutionalSpec):
    """The video tokenizer: the fields of ConvolutionalSpec, and one more.

    Attributes:
        frames: Of the clips it was trained on; films are coded in such chunks.
    """

    family: ClassVar[str] = "video"
    axes: ClassVar[tuple[str, ...]] = (TIME, "H", "W")
    picture: ClassVar[str] = "a clip"
    untold: ClassVar[tuple[str, ...]] = (*ConvolutionalSpec.untold, "frames")

    frames: Annotated[int, Range(1, 2**16)]

    def __post_init__(self) -> None:
        """Refuse an architecture that cannot be built, and clips that it does not take."""
        ConvolutionalSpec.__post_init__(self)
        if wrong := misfit(self, (self.frames, *self.strides[1:])):
            raise SpecError(f"tokenizer.frames: {wrong}")

    def architecture(self) -> JsonObject:
        """As of an image tokenizer, which this is not."""
        return {"family": self.family, **ConvolutionalSpec.architecture(self)}


def video_spec(**fields: Any) -> VideoTokenizerSpec:
    """The spec of these fields, of clips as long as the released model's or of the next length that
    is taken."""
    spec = VideoTokenizerSpec(**fields, frames=1)
    time = spec.strides[0]
    return replace(spec, frames=1 + -(-(FRAMES - 1) // time) * time)


register(
    Family(
        spec=VideoTokenizerSpec,
        model="m2kit.training.models.tokenizer:Tokenizer",
        layout="m2kit.training.checkpoints.convolutional_layout:VIDEO",
        graphs="m2kit.export.graphs.tokenizer:GRAPHS",
    )
)
