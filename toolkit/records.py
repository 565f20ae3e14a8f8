"""Frozen dataclasses as JSON and back: what a file says is checked field by field when it is read.

A record's types are its schema. Known are bool, int, float, str, None, Literal, enumerations, other
records, tuple[X, ...], tuple[X, Y], dict[str, X], unions of these, Annotated with a Range or a
Pattern, and Any, which is left as JSON has it. Whole numbers fit into 64 bits, signed, or into
their Range; numbers are finite.
A class with `from_json` and `to_json` is read and written by these.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import numbers
import re
import stat
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from m2kit.errors import M2KitError

Record = TypeVar("Record")
JsonObject = dict[str, Any]  # what json.loads makes of an object, and json.dumps takes
_SHOWN = 60  # characters of a value that is shown
_MOST_BYTES = 16 << 20  # of a JSON file
_WORDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}


class BadRecord(Exception):
    """A value that is not what its record's types say; the message names the field's path."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of an annotated number, or length of an annotated tuple."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """What an annotated str must match, whole, and what that is in words."""

    text: str
    words: str


Text = Annotated[str, Pattern(r"[ -~]{0,200}", "printable text")]
Count = Annotated[int, Range(0, 2**62)]


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        BadRecord: Not readable JSON, no regular file, or unreasonably large.
        OSError: It cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadRecord("expected a regular file")  # others may never end
    size = status.st_size
    if size > _MOST_BYTES:
        raise BadRecord(f"expected {_MOST_BYTES} bytes of JSON at most, found {size}")
    try:
        return json_from_text(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord(f"not readable JSON ({error})") from error


def json_from_text(text: str) -> Any:
    """The value of JSON text.

    Raises:
        BadRecord: Not readable JSON.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # refuses halves of characters
        return value
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not readable JSON ({error})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def read_record(record: type[Record], value: Any, path: str = "") -> Record:
    """A record of what `to_json` wrote.

    Args:
        record: A dataclass.
        value: A JSON value; fields that have a default may be missing.
        path: Of the value, for messages.

    Raises:
        BadRecord: A field is missing, unknown, of another type or out of range, or the record
            itself refuses (an M2KitError in __post_init__).
    """
    if not isinstance(value, dict):
        raise _bad(path, "an object", value)
    kind: Any = record
    hints = _hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise BadRecord(f"{_join(path, unknown[0])}: a field that is not known")
    read = {}
    for field in fields(kind):
        name = field.name
        if name in value:
            read[name] = _read(hints[name], value[name], _join(path, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise BadRecord(f"{_join(path, name)}: is missing")
    try:
        return record(**read)
    except M2KitError as error:
        raise BadRecord(f"{path}: {error}" if path else str(error)) from error


def checked_fields(record: Any, path: str, error: type[M2KitError]) -> JsonObject:
    """The fields of a record that was not read, held to its types as a file's are; lists stand for
    tuples, values for members of enumerations.

    Raises:
        error: A field is of another type or out of range.
    """
    try:
        return {
            name: _read(hint, plain(getattr(record, name)), _join(path, name))
            for name, hint in _hints(record.__class__).items()
        }
    except BadRecord as bad:
        raise error(str(bad)) from bad


def to_json(record: Any) -> JsonObject:
    """A record as plain JSON values; a field that is None by default is left out while it is."""
    value = {}
    for field in fields(record):
        item = getattr(record, field.name)
        if item is not None or field.default is not None:
            value[field.name] = plain(item)
    return value


def plain(value: Any) -> Any:
    """A value of a record's field as JSON has it."""
    if is_dataclass(value):
        return value.to_json() if hasattr(value, "to_json") else to_json(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    hints = typing.get_type_hints(record, include_extras=True)
    return {field.name: hints[field.name] for field in fields(record)}


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, constraint = arguments
        whole = kind is int and is_integer(value)  # its range may go beyond 64 bits, signed
        return _constrained(value if whole else _read(kind, value, path), constraint, path)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, path)
    if choices := _choices(hint):
        if isinstance(value, str) and value in choices:
            return choices[value]
        raise _bad(path, f"one of {', '.join(choices)}", value)
    if origin is tuple:
        return _read_tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise _bad(path, "an object", value)
        return {
            _read(arguments[0], name, path): _read(arguments[1], item, _join(path, name))
            for name, item in value.items()
        }
    if is_dataclass(hint):
        own: Any = getattr(hint, "from_json", None)
        return own(value) if own else read_record(typing.cast("type[Any]", hint), value, path)
    if hint is Any or (hint in (bool, str, type(None)) and isinstance(value, hint)):
        return value
    if hint is int and _is_whole(value):
        return value
    if hint is float and (_is_whole(value) or (isinstance(value, float) and math.isfinite(value))):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        raise _bad(path, "a whole number of 64 bits, signed", value)
    raise _bad(path, _WORDS.get(hint, "null"), value)


def _choices(hint: Any) -> dict[str, Any]:
    """What a Literal or an enumeration takes, by its name in JSON; empty for other types."""
    if typing.get_origin(hint) is typing.Literal:
        return {name: name for name in typing.get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {member.value: member for member in hint}
    return {}


def _read_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first of the types that takes the value; the first one's complaint is the one told, with
    the choices of all where it is of choices."""
    errors = []
    for argument in arguments:
        try:
            return _read(argument, value, path)
        except BadRecord as error:
            errors.append(error)
    if _choices(arguments[0]):
        choices = [name for argument in arguments for name in _choices(argument)]
        raise _bad(path, f"one of {', '.join(choices)}", value)
    raise errors[0]


def _read_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _bad(path, "a list", value)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise _bad(path, f"a list of {len(arguments)}", value)
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(_read(argument, item, f"{path}[{n}]") for n, (argument, item) in pairs)


def _constrained(value: Any, constraint: Range | Pattern, path: str) -> Any:
    if isinstance(constraint, Pattern):
        right, words = bool(re.fullmatch(constraint.text, value)), constraint.words
    else:
        several = isinstance(value, tuple)
        right = constraint.least <= (len(value) if several else value) <= constraint.most
        what = "a list of" if several else f"{_WORDS[type(value)]} in"
        words = f"{what} {constraint.least}..{constraint.most}"
    if not right:
        raise _bad(path, words, value)
    return value


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number of Python or numpy (True and False are not)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _bad(path: str, expected: str, found: Any) -> BadRecord:
    return BadRecord(f"{path or 'the record'}: expected {expected}, found {_short(repr(found))}")


def _join(path: str, name: str) -> str:
    shown = _short(name if name.isprintable() else repr(name))
    return f"{path}.{shown}" if path else shown


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
