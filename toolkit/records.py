"""Frozen dataclasses as JSON and back: what a file says is checked field by field when it is read.

A record's types are its schema. Known are bool, int, float, str, None, Literal, enumerations, other
records, tuple[X, ...], tuple[X, Y], dict[str, X], unions of these, Annotated with a Range or a
Pattern, and Any, which is left as JSON has it. Whole numbers fit into 64 bits, numbers are finite.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import re
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from m2kit.errors import M2KitError

Record = TypeVar("Record")
JsonObject = dict[str, Any]  # what json.loads makes of an object, and json.dumps takes
_SHOWN = 60  # characters of a value that is shown
_MOST_BYTES = 16 << 20  # of a JSON file


class BadRecord(Exception):
    """A value that is not what its record's types say; the message names the field's path."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of an annotated number."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Pattern:
    """What an annotated str must match, whole, and what that is in words."""

    text: str
    words: str


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        BadRecord: Not readable JSON, or unreasonably large.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise BadRecord(f"expected {_MOST_BYTES} bytes of JSON at most, found {size}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # refuses halves of characters
        return value
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not readable JSON ({error})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def read_record(
    record: type[Record], value: Any, path: str = "", *, given: JsonObject | None = None
) -> Record:
    """A record of what `to_json` wrote.

    Args:
        record: A dataclass.
        value: A JSON value; fields that have a default may be missing.
        path: Of the value, for messages.
        given: Fields that the caller has read already; the value must not have them.

    Raises:
        BadRecord: A field is missing, unknown, of another type or out of range, or the record
            itself refuses (an M2KitError in __post_init__).
    """
    if not isinstance(value, dict):
        raise _bad(path, "an object", value)
    kind: Any = record
    hints = _hints(kind)
    own = dict(given or {})
    unknown = sorted(set(value) - (set(hints) - set(own)))
    if unknown:
        raise BadRecord(f"{_join(path, unknown[0])}: a field that is not known")
    read = own
    for name, hint in hints.items():
        if name in own:
            continue
        if name in value:
            read[name] = _read(hint, value[name], _join(path, name))
        elif name not in _with_default(kind):
            raise BadRecord(f"{_join(path, name)}: is missing")
    try:
        return record(**read)
    except M2KitError as error:
        raise BadRecord(f"{path}: {error}" if path else str(error)) from error


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
        return to_json(value)
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
    return {field.name: hints[field.name] for field in fields(record) if field.init}


@functools.cache
def _with_default(record: type) -> frozenset[str]:
    return frozenset(
        field.name
        for field in fields(record)
        if field.default is not MISSING or field.default_factory is not MISSING
    )


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _constrained(_read(arguments[0], value, path), arguments[1], path)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, path)
    if origin is typing.Literal:
        if type(value) in map(type, arguments) and value in arguments:
            return value
        raise _bad(path, f"one of {', '.join(map(str, arguments))}", value)
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
        return read_record(typing.cast("type[Any]", hint), value, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        choices = {member.value: member for member in hint}
        if isinstance(value, str) and value in choices:
            return choices[value]
        raise _bad(path, f"one of {', '.join(map(str, choices))}", value)
    return _read_plain(hint, value, path)


def _read_plain(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint is int and _is_whole(value):
        return value
    if hint is float and (_is_whole(value) or (isinstance(value, float) and math.isfinite(value))):
        return float(value)
    if hint is type(None) and value is None:
        return None
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    raise _bad(path, words.get(hint, "null"), value)


def _read_union(arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first of the types that takes the value; a record's own complaint is the one told."""
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in arguments:
        try:
            return _read(argument, value, path)
        except BadRecord as error:
            errors.append(error)
    raise errors[0]


def _read_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _bad(path, "a list", value)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise _bad(path, f"a list of {len(arguments)}", value)
    return tuple(
        _read(argument, item, f"{path}[{index}]")
        for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
    )


def _constrained(value: Any, constraint: Range | Pattern, path: str) -> Any:
    if isinstance(constraint, Range):
        if not constraint.least <= value <= constraint.most:
            raise _bad(path, f"a number in {constraint.least}..{constraint.most}", value)
    elif not re.fullmatch(constraint.text, value):
        raise _bad(path, constraint.words, value)
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _bad(path: str, expected: str, found: Any) -> BadRecord:
    text = repr(found)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return BadRecord(f"{path or 'the record'}: expected {expected}, found {shown}")


def _join(path: str, name: str) -> str:
    shown = name if name.isprintable() else repr(name)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{path}.{shown}" if path else shown
