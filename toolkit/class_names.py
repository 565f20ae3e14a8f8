"""Class ids from what a user types: numbers, ranges of these, names, or all. Names are those of the
classes that a model was trained on, which its training notes, or else of the 1000 of ImageNet.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from importlib.resources import files

from m2kit.errors import InputError
from m2kit.records import JsonObject

IMAGENET_CLASSES = 1000
_EXAMPLE = "class numbers such as 207, 1,5,9 or 0-9, or all"
_ALL = "all"


def class_ids(values: Sequence[str], classes: int, names: Sequence[str] = ()) -> list[int]:
    """Class ids from values such as "207", "0-9,12", "golden retriever" or "all".

    Args:
        values: Each one or more classes, separated by commas. A name is in upper or lower case; of
            ImageNet any WordNet lemma of a class, all of them as the list has them, or its id.
        classes: Classes of the model.
        names: Theirs, if they are known; without them, or where they are WordNet ids, 1000 classes
            are those of ImageNet.

    Raises:
        InputError: A name that no class has, or several; a range that is none of this model's.
    """
    known = _Known(classes, tuple(names))
    parts = [part.strip() for value in values for part in known.split(value)]
    return [class_id for part in parts for class_id in known.ids(part)]


def class_labels(classes: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    """What each class is called, for people: of ImageNet its first lemma; "" where nothing is
    known. Arguments as for `class_ids`."""
    if _is_imagenet(classes, tuple(names)):
        return tuple(lemmas.split(", ")[0] for _, lemmas, _ in _imagenet())
    return tuple(names) or ("",) * classes


def names_in_notes(training: JsonObject, classes: int) -> tuple[str, ...]:
    """Names of a model's classes, as its training noted them; empty where none fit."""
    names = training.get("classes")
    if isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names):
        return tuple(names)
    return ()


class _Known:
    """The classes of a model, by their numbers and names."""

    def __init__(self, classes: int, names: tuple[str, ...]) -> None:
        self._classes = classes
        self._about: Sequence[str] = names
        self._ids: dict[str, list[int]] = {}
        imagenet = _is_imagenet(classes, names)
        if names and not imagenet:
            for index, name in enumerate(names):
                self._ids.setdefault(name.lower(), []).append(index)
        elif imagenet:
            self._ids = _imagenet_ids()
            self._about = [definition for *_, definition in _imagenet()]

    def split(self, value: str) -> list[str]:
        """The parts between commas; a name that has some is one."""
        return [value] if value.lower() in self._ids else value.split(",")

    def ids(self, text: str) -> Sequence[int]:
        """Of a number, a range, a name or all."""
        if text.lower() == _ALL:
            return range(self._classes)
        ends = re.fullmatch(r"([0-9]{1,30})-([0-9]{1,30})", text)
        if ends is None:
            return [self._id(text)]
        first, last = map(int, ends.groups())
        if not first <= last < self._classes:
            raise InputError(
                f"a range of classes is from a lower to a higher number in 0..{self._classes - 1}, "
                f"found {text!r:.60}",
                option="--class",
            )
        return range(first, last + 1)

    def _id(self, text: str) -> int:
        if re.fullmatch(r"-?[0-9]{1,30}", text):
            return int(text)
        if not self._ids:
            raise InputError(
                f"expected {_EXAMPLE} (names are known of models that note them, and of the "
                f"{IMAGENET_CLASSES} ImageNet classes; this model has {self._classes}), found "
                f"{text!r:.60}",
                option="--class",
            )
        found = self._ids.get(text.lower(), [])
        if len(found) == 1:
            return found[0]
        if found:
            choices = "; ".join(f"{i} ({self._about[i]})" for i in found)
            raise InputError(
                f"{text!r:.60} is the name of several classes: give one of {choices}",
                option="--class",
            )
        near = [name for name in self._ids if text and text.lower() in name][:3]
        near = near or difflib.get_close_matches(text.lower(), self._ids, n=3)
        raise InputError(
            f"expected {_EXAMPLE}, or names; no class is named {text!r:.60}"
            + (f", did you mean {' or '.join(near)}?" if near else ""),
            option="--class",
        )


def _is_imagenet(classes: int, names: tuple[str, ...]) -> bool:
    return classes == IMAGENET_CLASSES and (not names or names == _wordnet_ids())


@functools.cache
def _imagenet() -> tuple[tuple[str, str, str], ...]:
    """WordNet id, lemmas and definition of each class, class 0 first."""
    text = files("m2kit").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple((wordnet_id, lemmas, definition) for wordnet_id, lemmas, definition in rows)


def _wordnet_ids() -> tuple[str, ...]:
    """Names of the folders of ImageNet's pictures."""
    return tuple(wordnet_id for wordnet_id, *_ in _imagenet())


@functools.cache
def _imagenet_ids() -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for index, (wordnet_id, lemmas, _) in enumerate(_imagenet()):
        for name in {wordnet_id, lemmas.lower(), *lemmas.lower().split(", ")}:
            ids.setdefault(name, []).append(index)
    return ids
