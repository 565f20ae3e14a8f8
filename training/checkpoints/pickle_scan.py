"""Which names a pickle asks for, read off its opcodes: nothing is unpickled.

torch.load with weights_only runs nothing foreign, but it takes more than weights need: a few bytes
can have it build a bytearray of any size. Here only dense tensors and plain containers pass.
"""

from __future__ import annotations

import pickletools
import re
from typing import IO

_DENSE = re.compile(  # a learning-rate scheduler's state has a Counter
    r"collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.set"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(\w+Storage|Size|device|b?float\d*|double|half|u?int\d*|short|long|bool)"
)
_UNTYPED = "torch.UntypedStorage"  # callable, so that a pickle could make one of any size


def refused_name(stream: IO[bytes]) -> str | None:
    """The first name in one pickle that is more than dense tensors need, None if there is none.

    Args:
        stream: Read from its position up to the end of the pickle.

    Raises:
        ValueError: Not a whole pickle.
    """
    strings: list[str] = []  # what text opcodes pushed last: STACK_GLOBAL takes two of them
    memo: dict[int, str] = {}
    pushed, stored = "", 0
    for opcode, argument, _ in pickletools.genops(stream):
        name = None
        if opcode.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            name = ".".join(strings[-2:])
        elif opcode.name.startswith("EXT"):
            name = f"extension {argument}"
        if name is not None and (name == _UNTYPED or not _DENSE.fullmatch(name)):
            return name
        if opcode.name == "MEMOIZE":
            memo[stored], stored = pushed, stored + 1
            continue
        if "PUT" in opcode.name:
            memo[int(str(argument))] = pushed
            continue
        pushed = str(argument) if "UNICODE" in opcode.name or "STRING" in opcode.name else ""
        if "GET" in opcode.name:
            pushed = memo.get(int(str(argument)), "")
        if pushed:
            strings = [*strings[-1:], pushed]
    return None
