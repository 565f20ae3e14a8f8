"""Files that are not what they seem: one error, no crash, nothing run, little memory."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, ROOT

from m2kit.errors import CheckpointError
from m2kit.training.checkpoints.file import read_file

MUTATED_FILES = 500
MOST_BYTES = 2 * 10**9


def test_every_mutated_file_ends_in_one_error_or_a_right_load(tmp_path):
    """A zip that loads with its CRC-32s right holds the weights it held; where a mutation makes
    new checksums, and in plain pickles and safetensors, which have none, a changed value cannot
    be noticed: there the structure is checked, and NaN and Inf."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("mutations.py"), tmp_path, str(MUTATED_FILES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        timeout=600,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (results[-1:], done.stderr)
    assert len(results) == MUTATED_FILES
    assert max(result["peak_bytes"] for result in results) < MOST_BYTES
    unnoticed = [r for r in results if r["checked"] and r["outcome"] == "other"]
    assert not unnoticed
    assert not done.stderr
    assert not (tmp_path / "exploited").exists()


def save(path, content, change):
    """torch.save, then the zip written anew with changed (name, bytes) records and right CRCs."""
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


def the(records, end):
    (name,) = [name for name in records if name.endswith(end)]
    return name


def test_a_tensor_larger_than_its_record_is_refused(tmp_path):
    """torch.load would read the rest from the records that follow."""
    state = {"a": torch.ones(100), "b": torch.zeros(300)}

    def declare(records):
        name = the(records, "data.pkl")
        assert records[name].count(b"Kd") == 2  # 100: values of the storage, and of the tensor
        records[name] = records[name].replace(b"Kd", b"Kx")

    assert len(read_file(save(tmp_path / "a.pt", state, lambda r: None), check=True).tensors) == 2
    with pytest.raises(CheckpointError, match="tensors of other sizes than its records"):
        read_file(save(tmp_path / "b.pt", state, declare), check=True)

    def shorten(records):
        name = the(records, "data/0")
        records[name] = records[name][:-4]

    with pytest.raises(CheckpointError, match="tensors of other sizes than its records"):
        read_file(save(tmp_path / "c.pt", state, shorten), check=True)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x"])
def test_a_record_whose_name_leaves_the_archive_is_refused(tmp_path, name):
    path = save(tmp_path / "a.pt", {"a": torch.ones(2)}, lambda r: r.update({name: b"x"}))
    with pytest.raises(CheckpointError, match="it has a record named"):
        read_file(path, check=True)


def test_packed_records_and_two_of_one_name_are_refused(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.ones(2)}, lambda records: None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/zeros", bytes(10**6))
    with pytest.raises(CheckpointError, match="its records are packed"):
        read_file(path, check=True)
    path = save(tmp_path / "b.pt", {"a": torch.ones(2)}, lambda records: None)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(CheckpointError, match="two records of one name"):
        read_file(path, check=True)


@pytest.mark.parametrize("trailer", [b"PK\x05\x06", b"\0", b"PK\x05\x06" + bytes(17) + b"\1"])
def test_an_archive_that_zipfile_and_torch_see_differently_is_refused(tmp_path, trailer):
    path = save(tmp_path / "a.pt", {"a": torch.ones(2)}, lambda records: None)
    path.write_bytes(path.read_bytes() + trailer)
    with pytest.raises(CheckpointError, match="does not end with its list of records"):
        read_file(path, check=True)


def test_tied_tensors_views_and_nested_states_are_read(tmp_path):
    one = torch.arange(6.0)
    content = {
        "state_dict": {"a": one, "b": one[2:4], "c": one.view(2, 3).t(), "n": torch.zeros(0)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}],
        "epoch": 3,
    }
    torch.save(content, tmp_path / "a.pt")
    found = read_file(tmp_path / "a.pt", check=True).tensors
    assert {name: t.tolist() for name, t in found.items()} == {
        "a": [0, 1, 2, 3, 4, 5],
        "b": [2, 3],
        "c": [[0, 3], [1, 4], [2, 5]],
        "n": [],
    }


def test_a_flipped_bit_anywhere_in_a_record_is_found(tmp_path):
    whole = (GOLDEN / "ar_tiny.ckpt").read_bytes()
    with zipfile.ZipFile(GOLDEN / "ar_tiny.ckpt") as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    for place in (largest.file_size // 2, largest.file_size - 1):
        data = bytearray(whole)
        data[largest.header_offset + place] ^= 1
        (tmp_path / "a.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError, match="the CRC-32 of its record ar_tiny/data/"):
            read_file(tmp_path / "a.ckpt", check=True)
        read_file(tmp_path / "a.ckpt", check=False)
