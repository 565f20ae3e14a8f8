"""Archives of arrays as no friend would have them: each is one clear line, and nothing in them is
ever unpickled."""

import io
import os
import zipfile

import numpy as np
import pytest
from hostile.data_sets import check

RANDOM = np.random.default_rng(0)


class Unpickled:
    """What would show that an object array was unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


RIGHT = {
    "images": RANDOM.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8),
    "labels": np.arange(12) % 2,
    "categories": np.array(["a", "b"]),
    "names": np.arange(12).astype(str),
}
WRONG = [
    np.array([Unpickled()] * 12, dtype=object), np.zeros(0), np.float32(1), np.array("x"),
    np.zeros(12), np.zeros((12, 2), int), np.zeros(11, int), np.full(12, -1), np.full(12, 2**62),
    np.full(12, 2**63, np.uint64), np.array([b"\xff\xfe"] * 12), np.zeros(12, bool),
    np.zeros((12, 16, 16, 3), np.float32), np.zeros((12, 3, 16, 16), np.uint8),
    np.zeros((12, 16, 16), np.uint8), np.zeros((12, 0, 16, 3), np.uint8), np.zeros(12, "V8"),
    np.array("2020", "M8[D]"), np.zeros((1,) * 32, int), None,
]  # fmt: skip


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("field", RIGHT)
@pytest.mark.parametrize("wrong", range(len(WRONG)))
def test_an_array_of_another_kind_is_one_line(tmp_path, field, wrong):
    if WRONG[wrong] is None and field == "names":
        pytest.skip("names may be missing")
    arrays = RIGHT | {field: WRONG[wrong]}
    data = npz(**{name: array for name, array in arrays.items() if array is not None})
    (tmp_path / "x.npz").write_bytes(data)
    check(tmp_path / "x.npz", r"x\.npz: expected .*found|x\.npz: expected an intact .npz")


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({"labels": np.arange(12)}, r"expected labels of 0\.\.1, .*found 0\.\.11"),
        ({"labels": (np.arange(12) % 2).astype(">i2")}, {}),
        ({"names": np.array(["\ud800", "é", "a\nb", ""] * 3)}, {}),
        ({"names": np.array(["one/1", "one/2"] * 6)}, "12 pictures to train on and 0 held out"),
        ({"images": np.asfortranarray(RIGHT["images"]), "notes": np.zeros(3)}, {}),
    ],
)
def test_an_array_that_disagrees_is_one_line_and_an_odd_one_is_read(tmp_path, changed, outcome):
    (tmp_path / "x.npz").write_bytes(npz(**RIGHT | changed))
    check(tmp_path / "x.npz", outcome)


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name.replace("_npy", ".npy"), data)
    return file.getvalue()


WHOLE = npz(**RIGHT)


@pytest.mark.parametrize(
    "data",
    [
        *(WHOLE[:size] for size in (0, 1, 100, len(WHOLE) // 2, len(WHOLE) - 1)),
        b"text" * 100,
        archive(images_npy=bytes(50_000_000)),
        archive(images=b"raw", labels=b"raw", categories=b"raw"),
        archive(images_npy=b"raw", labels_npy=b"raw", categories_npy=b"raw"),
    ],
)
def test_a_damaged_archive_is_one_line(tmp_path, data):
    (tmp_path / "x.npz").write_bytes(data)
    check(tmp_path / "x.npz", r"x\.npz: expected an intact \.npz|expected an array categories")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_archive_that_is_no_file_is_one_line(tmp_path, make):
    make(tmp_path / "x.npz")
    check(tmp_path / "x.npz", r"expected a regular file|expected pictures")
