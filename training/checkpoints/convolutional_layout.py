"""How a checkpoint tells the spec of an image or video tokenizer: what its tensors' names and
shapes say. A video's convolutions are 3-D, and each is a module in a module.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2kit.errors import CheckpointError
from m2kit.families.convolutional import MOST_BLOCKS, MOST_LEVELS
from m2kit.families.video import video_spec
from m2kit.training.checkpoints.shapes import Fields, Shapes, count_of, shape_of


@dataclass(frozen=True, slots=True)
class ConvolutionalLayout:
    """The names of the released tokenizers.

    Attributes:
        convolution: What stands between the name of a convolution and that of its parameter.
        rank: Axes of a convolution's weight.
    """

    convolution: str
    rank: int

    def recognises(self, shapes: Shapes) -> bool:
        """Whether the tensors are of this family: its first convolution has this name and rank."""
        return len(shapes.get(self._weight("encoder.conv_in"), ())) == self.rank

    def fields(self, shapes: Shapes) -> Fields:
        """The fields of the spec that shapes tell.

        Raises:
            CheckpointError: A tensor that tells one is missing or impossible.
        """
        base = self._outputs(shapes, "encoder.conv_in")
        multipliers = []
        for level in range(count_of(shapes, "encoder.down", MOST_LEVELS)):
            name = f"encoder.down.{level}.block.0.conv1"
            width = self._outputs(shapes, name)
            if width % base:
                raise CheckpointError(
                    f"the tensor {self._weight(name)} has {width} output channels, "
                    f"expected a multiple of {base} (encoder.conv_in)"
                )
            multipliers.append(width // base)
        return {
            "base_channels": base,
            "channel_multipliers": tuple(multipliers),
            "blocks_per_level": count_of(shapes, "encoder.mid_block", MOST_BLOCKS),
            "code_bits": self._outputs(shapes, "encoder.conv_out"),
            "adaptive_norm": any(name.startswith("decoder.adaptive.") for name in shapes),
        }

    def assumed(self, fields: Fields) -> Fields:
        """The fields that shapes do not tell: the V0.1 release had no adaptive GroupNorm, and read
        bits MSB first."""
        return {"bit_order": "lsb" if fields["adaptive_norm"] else "msb"}

    def _weight(self, convolution: str) -> str:
        return f"{convolution}{self.convolution}.weight"

    def _outputs(self, shapes: Shapes, convolution: str) -> int:
        return shape_of(shapes, self._weight(convolution), self.rank)[0]


class VideoLayout(ConvolutionalLayout):
    """The same of a video tokenizer."""

    def assumed(self, fields: Fields) -> Fields:
        """And clips are as long as the released model's, or the next length that is taken."""
        assumed = super().assumed(fields)
        return assumed | {"frames": video_spec(**fields, **assumed).frames}


IMAGE = ConvolutionalLayout("", 4)
VIDEO = VideoLayout(".conv_1", 5)
