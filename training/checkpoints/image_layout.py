"""How a checkpoint tells the image family's spec: what its tensors' names and shapes say."""

from __future__ import annotations

from m2kit.errors import CheckpointError
from m2kit.training.checkpoints.shapes import Fields, Shapes, count_of, shape_of

_FIRST = "encoder.conv_in.weight"
_MOST_LEVELS, _MOST_BLOCKS = 16, 64


class ImageLayout:
    """The names of the released image tokenizers."""

    def recognises(self, shapes: Shapes) -> bool:
        """Whether the tensors are of this family: its first convolution is 2-D."""
        return len(shapes.get(_FIRST, ())) == 4

    def fields(self, shapes: Shapes) -> Fields:
        """The fields of the spec that shapes tell.

        Raises:
            CheckpointError: A tensor that tells one is missing or impossible.
        """
        base = shape_of(shapes, _FIRST, 4)[0]
        multipliers = []
        for level in range(count_of(shapes, "encoder.down", _MOST_LEVELS)):
            name = f"encoder.down.{level}.block.0.conv1.weight"
            width = shape_of(shapes, name, 4)[0]
            if width % base:
                raise CheckpointError(
                    f"the tensor {name} has {width} output channels, "
                    f"expected a multiple of {base} (encoder.conv_in)"
                )
            multipliers.append(width // base)
        return {
            "base_channels": base,
            "channel_multipliers": tuple(multipliers),
            "blocks_per_level": count_of(shapes, "encoder.mid_block", _MOST_BLOCKS),
            "code_bits": shape_of(shapes, "encoder.conv_out.weight", 4)[0],
            "adaptive_norm": any(name.startswith("decoder.adaptive.") for name in shapes),
        }

    def assumed(self, fields: Fields) -> Fields:
        """The fields that shapes do not tell: the V0.1 release had no adaptive GroupNorm, and read
        bits MSB first."""
        return {"bit_order": "lsb" if fields["adaptive_norm"] else "msb"}


LAYOUT = ImageLayout()
