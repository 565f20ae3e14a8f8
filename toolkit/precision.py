"""What graphs compute in, or what the step graphs' weights are stored in."""

from __future__ import annotations

import enum
from typing import Final, Literal


class Precision(str, enum.Enum):
    """float32 and float16 of a whole model, outside its float islands; int8 and int4 of the step
    graphs' weights alone."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def flag(self) -> str:
        """As the command line names it: fp32, fp16, int8, int4."""
        return self.value.replace("float", "fp")

    @property
    def quantized(self) -> bool:
        """Whether weights are integers, which a quality gate judges."""
        return self in (Precision.INT8, Precision.INT4)

    @property
    def compute(self) -> Literal["float32", "float16"]:
        """numpy's name of the graphs' compute type."""
        return "float16" if self is Precision.FLOAT16 else "float32"

    @classmethod
    def of_flag(cls, flag: str) -> Precision:
        """The precision that the command line names so."""
        return next(precision for precision in cls if precision.flag == flag)


AUTO: Final = "auto"  # the fastest precision that passes its quality gate
