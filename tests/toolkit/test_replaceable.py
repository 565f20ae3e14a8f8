"""What export and build-engine replace: their own folders, with nothing of others in them."""

import json
import shutil

import pytest
from conftest import GOLDEN

from m2kit.errors import FolderError
from m2kit.hashes import sha256_of_json
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import check_replaceable


@pytest.fixture
def bundle(exported, tmp_path):
    shutil.copytree(exported(GOLDEN / "tokenizer_tiny.ckpt")[0], tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def test_a_folder_of_ours_is_replaced_damaged_or_old_as_it_may_be(bundle):
    check_replaceable(bundle, BUNDLE)
    (bundle / "weights.bin").unlink()
    (bundle / "reference.npz").write_bytes(b"cut sho")
    (bundle / ".bundle.m2kit-0123456789abcdef0123456789abcdef.json").write_text("of a killed run")
    check_replaceable(bundle, BUNDLE)
    value = json.loads((bundle / "bundle.json").read_text())
    del value["digest"]
    value["schema"] = 1
    value["digest"] = sha256_of_json(value)
    (bundle / "bundle.json").write_text(json.dumps(value))
    check_replaceable(bundle, BUNDLE)


def test_files_of_others_are_named(bundle):
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"bundle\.json does not list notes\.txt; move that away"):
        check_replaceable(bundle, BUNDLE)
    (bundle / "notes.txt").unlink()
    (bundle / "weights.bin").unlink()
    (bundle / "weights.bin").mkdir()  # a listed name, but a folder is never one of m2kit's files
    with pytest.raises(FolderError, match=r"does not list weights\.bin; move"):
        check_replaceable(bundle, BUNDLE)
    for number in range(9):
        (bundle / f"a{number}").mkdir()
    with pytest.raises(FolderError, match=r"does not list a0, a1, a2, \.\.\.; move"):
        check_replaceable(bundle, BUNDLE)


def test_the_other_kind_is_not_replaced(bundle):
    with pytest.raises(FolderError, match=r"will not be replaced: it holds no engine\.json"):
        check_replaceable(bundle, ENGINE)


@pytest.mark.parametrize("text", ["{}", "[1]", "", "not json", '{"files": [], "digest": ""}'])
def test_any_other_bundle_json_is_not_ours(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(FolderError, match=r"will not be replaced: its bundle\.json is not m2kit's"):
        check_replaceable(tmp_path, BUNDLE)
