import json
from dataclasses import replace

import pytest
from conftest import tiny_spec

from m2kit.errors import FolderError
from m2kit.manifest import (
    BUNDLE,
    ENGINE,
    WEIGHTS_FILE,
    Manifest,
    check_files,
    files_table,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "x.bundle"
    path.mkdir()
    (path / WEIGHTS_FILE).write_bytes(bytes(1000))
    (path / "encoder.onnx").write_bytes(b"graph")
    empty = {"sampling": {}, "lowerings": {}, "source": {}, "versions": {}, "parity": {}}
    manifest = Manifest(BUNDLE, "x", tiny_spec(), files=files_table(path), **empty)
    write_manifest(path, manifest)
    return path


def test_an_intact_folder_reads_back(folder):
    manifest = read_manifest(folder, BUNDLE)
    assert manifest.spec == tiny_spec()
    check_files(folder, manifest, trust_seen_weights=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema version 2, this m2kit reads version 1"),
        ({"schema": None}, "schema version None"),
        ({"name": "y"}, "was changed after it was written"),
    ],
)
def test_another_schema_or_any_change_is_refused(folder, change, words):
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FolderError, match=words):
        read_manifest(folder, BUNDLE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_broken_manifest_is_one_error(folder, text):
    (folder / "bundle.json").write_text(text)
    with pytest.raises(FolderError, match="m2kit export"):
        read_manifest(folder, BUNDLE)


def test_the_wrong_kind_of_folder_is_named(folder, tmp_path):
    with pytest.raises(FolderError, match="expected an engine folder, found a bundle"):
        read_manifest(folder, ENGINE)
    with pytest.raises(FolderError, match="found nothing"):
        read_manifest(tmp_path / "none", BUNDLE)
    with pytest.raises(FolderError, match=r"found no bundle\.json"):
        read_manifest(tmp_path, BUNDLE)
    with pytest.raises(FolderError, match="found a file"):
        read_manifest(folder / "encoder.onnx", BUNDLE)


def test_every_damaged_file_is_named(folder):
    manifest = read_manifest(folder, BUNDLE)
    (folder / WEIGHTS_FILE).write_bytes(bytes(999) + b"\1")
    (folder / "encoder.onnx").unlink()
    with pytest.raises(FolderError, match=r"encoder\.onnx: missing; weights\.bin: its bytes"):
        check_files(folder, manifest, trust_seen_weights=True)
    (folder / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(FolderError, match="expected 1000 bytes, found 0"):
        check_files(folder, manifest, trust_seen_weights=True)


def test_a_manifest_cannot_reach_outside_its_folder(folder):
    (folder.parent / "secret").write_bytes(b"graph")
    manifest = read_manifest(folder, BUNDLE)
    escaped = replace(manifest, files={"../secret": manifest.files["encoder.onnx"]})
    with pytest.raises(FolderError, match="not a plain file name"):
        check_files(folder, escaped, trust_seen_weights=True)


def test_weights_are_hashed_once_per_file_unless_asked(folder, monkeypatch, home):
    manifest = read_manifest(folder, BUNDLE)
    hashed = []
    real = __import__("m2kit.folders", fromlist=["x"]).sha256_of_file
    monkeypatch.setattr(
        "m2kit.manifest.sha256_of_file", lambda path: (hashed.append(path.name), real(path))[1]
    )
    for _ in range(2):
        check_files(folder, manifest, trust_seen_weights=True)
    assert hashed.count(WEIGHTS_FILE) == 1
    check_files(folder, manifest, trust_seen_weights=False)
    assert hashed.count(WEIGHTS_FILE) == 2
    (home / ".cache" / "m2kit" / "hashed.json").write_text("not json")
    check_files(folder, manifest, trust_seen_weights=True)
    assert hashed.count(WEIGHTS_FILE) == 3
