"""Class ids from what a user types: numbers, ranges of these, the names of the 1000 ImageNet
classes, or all.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from importlib.resources import files

from m2kit.errors import InputError

IMAGENET_CLASSES = 1000
_EXAMPLE = "class numbers such as 207, 1,5,9 or 0-9, or all"
_ALL = "all"


def class_ids(values: Sequence[str], classes: int) -> list[int]:
    """Class ids from values such as "207", "0-9,12", "golden retriever" or "all".

    Args:
        values: Each one or more classes, separated by commas. A name is any WordNet lemma of a
            class, all of them as the list has them, or its WordNet id, upper or lower case.
        classes: Classes of the model; names are known for 1000.

    Raises:
        InputError: A name that no class has, or several; a range that is none of this model's.
    """
    parts = [part.strip() for value in values for part in _split(value, classes)]
    return [class_id for part in parts for class_id in _class_ids(part, classes)]


def _split(value: str, classes: int) -> list[str]:
    """The parts between commas; a class's whole list of lemmas is one name."""
    whole = classes == IMAGENET_CLASSES and value.lower() in _ids_by_name()
    return [value] if whole else value.split(",")


def _class_ids(text: str, classes: int) -> Sequence[int]:
    if text.lower() == _ALL:
        return range(classes)
    ends = re.fullmatch(r"([0-9]{1,30})-([0-9]{1,30})", text)
    if ends is None:
        return [_class_id(text, classes)]
    first, last = map(int, ends.groups())
    if not first <= last < classes:
        raise InputError(
            f"--class takes ranges from a lower to a higher number in 0..{classes - 1}, found "
            f"{text!r:.60}"
        )
    return range(first, last + 1)


def _class_id(text: str, classes: int) -> int:
    if re.fullmatch(r"-?[0-9]{1,30}", text):
        return int(text)
    if classes != IMAGENET_CLASSES:
        raise InputError(
            f"--class takes {_EXAMPLE} (names are known for the {IMAGENET_CLASSES} ImageNet "
            f"classes, this model has {classes}), found {text!r}"
        )
    found = _ids_by_name().get(text.lower(), [])
    if len(found) == 1:
        return found[0]
    if found:
        choices = "; ".join(f"{i} ({_table()[i][2]})" for i in found)
        raise InputError(f"--class {text!r} is the name of several classes: give one of {choices}")
    near = difflib.get_close_matches(text.lower(), _ids_by_name(), n=3)
    raise InputError(
        f"--class takes {_EXAMPLE}, or ImageNet names; no class is named {text!r}"
        + (f", did you mean {' or '.join(near)}?" if near else "")
    )


@functools.cache
def _table() -> tuple[tuple[str, str, str], ...]:
    """WordNet id, lemmas and definition of each class, class 0 first."""
    text = files("m2kit.cli").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple((wordnet_id, lemmas, definition) for wordnet_id, lemmas, definition in rows)


@functools.cache
def _ids_by_name() -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for index, (wordnet_id, lemmas, _) in enumerate(_table()):
        for name in {wordnet_id, lemmas.lower(), *lemmas.lower().split(", ")}:
            ids.setdefault(name, []).append(index)
    return ids
