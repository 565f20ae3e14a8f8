"""A number carries the protocol it was measured by, and is compared with no other's."""

import json
from dataclasses import replace

import pytest

from m2kit.errors import InputError
from m2kit.records import BadRecord
from m2kit.training.evaluation.protocol import (
    Drawn,
    Network,
    Protocol,
    Result,
    check_same_protocol,
    model_labels,
    read_result,
    result_from_json,
)

NETWORK = Network("efficientnet-lite0", "a" * 64, (224, 224), "bilinear", "mean 0.5, std 0.5")
PROTOCOL = Protocol(
    name="open-magvit2",
    task="reconstruction",
    data="digits",
    data_sha256="b" * 64,
    split="held-out",
    images=360,
    unread=0,
    crop="centre",
    resize="Pillow bilinear, the shorter side",
    size=(32, 32),
    uint8="truncate",
    features_of="float",
    weights="ema",
    network=NETWORK,
    perceptual=None,
    classifier=None,
    reference="the originals",
    reference_sha256=None,
    per_class=None,
    seed=None,
    model="digits.engine",
    model_sha256="c" * 64,
    precision="float32",
    backend="onnxruntime",
    sampling=None,
)
RESULT = Result(PROTOCOL, {"psnr_db": 21.5, "lpips": None}, {"lpips": "vgg is missing"}, 360)


@pytest.mark.parametrize(
    "changed",
    [
        {"uint8": "round"},
        {"crop": "none", "size": None},
        {"size": (64, 64)},
        {"weights": "live"},
        {"features_of": "uint8"},
        {"split": "all"},
        {"data_sha256": "d" * 64},
        {"unread": 1},
        {"network": None},
        {"network": replace(NETWORK, sha256="e" * 64)},
        {"network": replace(NETWORK, resize="PIL bicubic float")},
        {"name": "clean"},
        {"reference_sha256": "f" * 64},
        {"seed": 1},
        {"clip": "the middle frames"},
        {"short": 2},
        {"classes": (1, 2)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_measured_otherwise_has_another_id_and_is_not_compared(changed):
    other = replace(RESULT, protocol=replace(PROTOCOL, **changed))
    assert other.protocol.id != PROTOCOL.id
    assert other.protocol.id.startswith(f"{other.protocol.name}-")
    with pytest.raises(InputError, match=rf"different protocols.*{next(iter(changed))}"):
        check_same_protocol({"a": RESULT, "b": other})
    with pytest.raises(InputError, match=rf"different protocols.*{next(iter(changed))}"):
        check_same_protocol({"b": other, "a": RESULT})


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "int8"},
        {"backend": "torch"},
        {"sampling": Drawn((2.0,), (1.0,), (0,), (1.0,), greedy=False)},
        {"model": "other", "model_sha256": "d" * 64},
        {"data": "the same pictures in another folder"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_models_are_compared(changed):
    other = replace(RESULT, protocol=replace(PROTOCOL, **changed))
    assert other.protocol.id == PROTOCOL.id
    check_same_protocol({"a": RESULT, "b": other})


def test_a_field_that_could_not_be_read_again_is_refused_before_anything_is_measured():
    for changed in ({"size": (64,)}, {"weights": "a\nb"}, {"uint8": "floor"}):
        with pytest.raises(InputError, match=f"protocol.{next(iter(changed))}: expected"):
            replace(PROTOCOL, **changed)
    with pytest.raises(InputError, match=r"protocol\.network\.name: expected"):
        replace(PROTOCOL, network=replace(NETWORK, name="a\nb"))


def test_labels_tell_what_differs_and_no_more():
    eight = replace(RESULT, protocol=replace(PROTOCOL, precision="int8"))
    assert model_labels([RESULT, eight]) == [
        "digits.engine, precision float32",
        "digits.engine, precision int8",
    ]
    again = replace(RESULT, protocol=replace(PROTOCOL, model_sha256="d" * 64))
    assert model_labels([RESULT, again]) == [f"digits.engine ({c * 10})" for c in ("c", "d")]
    drawn = [Drawn((g,), (1.0,), (0,), (1.0,), greedy=False) for g in (1.0, 2.0)]
    results = [replace(RESULT, protocol=replace(PROTOCOL, sampling=s)) for s in drawn]
    assert model_labels(results)[1] == "digits.engine, guidance [2.0]"


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT.to_json()))
    assert read_result(path) == RESULT
    assert set(RESULT.to_json()) == {"protocol", "metrics", "reasons", "images"}


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("protocol", "uint8"), "round", "protocol.id"),
        (("protocol", "id"), None, "protocol.id"),
        (("protocol", "uint8"), "floor", "protocol.uint8"),
        (("protocol", "network", "sha256"), "x", "protocol.network"),
        (("protocol", "sampling"), {"": 5}, "protocol.sampling"),
        (("metrics",), {"a\x1b[2Jb": 1.0}, "metrics"),
        (("protocol", "images"), "many", "protocol.images"),
        (("protocol",), [], "protocol"),
        (("metrics", "psnr_db"), "high", "metrics.psnr_db"),
        (("metrics", "psnr_db"), None, "psnr_db"),
        (("metrics", "lpips"), 1.0, "lpips"),
        (("images",), 359, "images"),
        (("more",), 1, "more"),
    ],
)
def test_a_forged_result_is_refused_by_its_field(tmp_path, where, value, named):
    forged = json.loads(json.dumps(RESULT.to_json()))
    place = forged
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    with pytest.raises(BadRecord, match=named):
        result_from_json(forged)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(forged))
    with pytest.raises(InputError, match=rf"result.json: expected a result .*{named}"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"protocol": 1}', '{"metrics": NaN}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="expected a result"):
        read_result(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot read"):
        read_result(tmp_path / "none.json")
