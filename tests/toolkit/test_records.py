"""Records read from JSON: what is wrong is named by path, what is right comes back equal."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from m2kit.build import BuildOptions
from m2kit.errors import InputError
from m2kit.records import BadRecord, Pattern, Range, read_json, read_record, to_json


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Range(1, 10)]

    def __post_init__(self):
        if self.size == 7:
            raise InputError("7 is not to be had")


@dataclass(frozen=True)
class Outer:
    flag: bool
    share: float
    name: Annotated[str, Pattern("[a-z]+", "small letters")]
    colour: Colour
    kind: Literal["a", "b"]
    pair: tuple[int, str]
    many: tuple[Inner, ...]
    table: dict[str, Inner | None]
    free: Any = None
    listed: dict[str, Any] = field(default_factory=dict)


RIGHT = {
    "flag": True, "share": 0.5, "name": "abc", "colour": "red", "kind": "a", "pair": [1, "x"],
    "many": [{"size": 3}], "table": {"one": {"size": 1}, "none": None},
}  # fmt: skip


def changed(**values):
    return RIGHT | values


def test_a_record_comes_back_equal():
    record = read_record(Outer, changed(free={"a": [1, None]}))
    assert record.many == (Inner(3),)
    assert record.table == {"one": Inner(1), "none": None}
    assert read_record(Outer, to_json(record)) == record


def test_a_number_that_is_whole_serves_as_a_float_and_not_the_other_way():
    assert read_record(Outer, changed(share=1)).share == 1.0
    with pytest.raises(BadRecord, match=r"pair\[0\]: expected a whole number, found 1.0"):
        read_record(Outer, changed(pair=[1.0, "x"]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the record: expected an object"),
        ({k: v for k, v in RIGHT.items() if k != "kind"}, "kind: is missing"),
        (changed(extra=1), "extra: a field that is not known"),
        (changed(flag=1), "flag: expected true or false, found 1"),
        (changed(share=True), "share: expected a number"),
        (changed(share=float("nan")), "share: expected a number"),
        (changed(share=2**70), "share: expected a number"),
        (changed(name="ABC"), "name: expected small letters, found 'ABC'"),
        (changed(colour="blue"), "colour: expected one of red"),
        (changed(colour=["red"]), "colour: expected one of red"),
        (changed(kind="c"), "kind: expected one of a, b"),
        (changed(pair=[1]), "pair: expected a list of 2"),
        (changed(pair="1x"), "pair: expected a list of 2|pair: expected a list"),
        (
            changed(many=[{"size": 3}, {"size": 11}]),
            r"\[1\].size: expected a whole number in 1..10",
        ),
        (changed(many=[{"size": 7}]), r"many\[0\]: 7 is not to be had"),
        (
            changed(pair=[2**63, "x"]),
            r"pair\[0\]: expected a whole number of 64 bits, signed, found 9223372036854775808",
        ),
        (
            changed(table={"x": {"size": 2**63}}),
            "table.x.size: expected a whole number in 1..10, found 9223372036854775808",
        ),
        (changed(table={"x": {"size": "1"}}), "table.x.size: expected a whole number, found '1'"),
        (changed(table=[1]), "table: expected an object"),
        (changed(name="x" * 500), None),
    ],
)
def test_what_is_wrong_is_named_by_its_path(value, message):
    if message is None:
        read_record(Outer, value)
        return
    with pytest.raises(BadRecord, match=message) as caught:
        read_record(Outer, value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a": NaN}', '{"a": Infinity}', "\x00", '"\\ud800"']
)
def test_what_is_no_json_is_one_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadRecord, match="not readable JSON"):
        read_json(tmp_path / "a.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(BadRecord, match="expected a regular file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("wrong", ["int7", 7])
def test_all_choices_of_a_union_are_told(wrong):
    expected = "precision: expected one of float32, float16, int8, int4, auto, found"
    with pytest.raises(InputError, match=expected):
        BuildOptions(precision=wrong)


def test_bytes_that_are_no_text_are_one_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadRecord, match="not readable JSON"):
        read_json(tmp_path / "a.json")
