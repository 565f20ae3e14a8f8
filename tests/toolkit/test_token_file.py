import os
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_spec

from m2kit.config import ModelSpec
from m2kit.errors import FolderError, InputError
from m2kit.families.sign_bits import codes_from_tokens
from m2kit.token_file import (
    converted_tokens,
    read_tokens,
    read_tokens_of,
    token_file_from_ids,
    write_tokens,
)

SPEC = tiny_spec()  # bits (2, 3), lsb, downsampling 2
IDS = np.arange(12).reshape(1, 2, 3, 2) % 4


@pytest.fixture
def path(tmp_path):
    write_tokens(tmp_path / "a.npz", token_file_from_ids(IDS, SPEC))
    return tmp_path / "a.npz"


def test_token_files_read_back_with_all_that_they_say(path):
    tokens = read_tokens_of(path, SPEC)
    np.testing.assert_array_equal(tokens.ids, IDS)
    assert (tokens.vocabularies, tokens.bit_order) == ((4, 8), "lsb")
    assert tokens.image_size == (4, 6)


def test_another_model_is_refused_with_the_command_that_converts(path):
    alone = ModelSpec(SPEC.tokenizer, None)
    with pytest.raises(InputError, match=r"\[2, 3\] bits, lsb .* --bits 5 --bit-order lsb`"):
        read_tokens_of(path, alone)
    msb = replace(SPEC, tokenizer=replace(SPEC.tokenizer, bit_order="msb"))
    with pytest.raises(InputError, match=r"convert-tokens .* --bits 2,3 --bit-order msb`"):
        read_tokens_of(path, msb)
    other = replace(SPEC, tokenizer=replace(SPEC.tokenizer, blocks_per_level=2))
    with pytest.raises(InputError, match="another tokenizer architecture"):
        read_tokens_of(path, other)


@pytest.mark.parametrize("wrong", ["", "x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_no_sha256_of_an_architecture_is_refused(tmp_path, wrong):
    tokens = replace(token_file_from_ids(IDS, SPEC), spec_sha256=wrong)
    write_tokens(tmp_path / "a.npz", tokens)
    with pytest.raises(InputError, match="is not the hash of its"):
        read_tokens(tmp_path / "a.npz")


def test_an_image_size_that_the_grid_does_not_cover_is_refused(tmp_path):
    for size in ((5, 6), (2, 6)):  # of three axes: below
        write_tokens(tmp_path / "a.npz", replace(token_file_from_ids(IDS, SPEC), image_size=size))
        with pytest.raises(InputError, match=r"its grid covers \[4, 6\]"):
            read_tokens_of(tmp_path / "a.npz", SPEC)


def test_what_is_no_token_file_is_one_error(tmp_path, path):
    (tmp_path / "b.npz").write_text("no")
    np.save(tmp_path / "c.npy", IDS)
    right = dict(np.load(path))
    np.savez(tmp_path / "d.npz", **right | {"vocabularies": [[4], [8]]})
    np.savez(tmp_path / "e.npz", **right | {"vocabularies": [4.9, 8.0]})
    np.savez(tmp_path / "f.npz", **right | {"image_size": [np.inf, 6.0]})
    np.savez(tmp_path / "g.npz", **right | {"image_size": np.int64(4)})
    for name in ("b.npz", "c.npy", "d.npz", "e.npz", "f.npz", "g.npz"):
        with pytest.raises(InputError, match="expected a token file"):
            read_tokens(tmp_path / name)
    with pytest.raises(InputError, match="no such token file"):
        read_tokens(tmp_path / "none.npz")
    with pytest.raises(FolderError, match=r"ending in \.npz"):
        write_tokens(tmp_path / "a.txt", read_tokens(path))


def test_only_regular_files_are_read_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for path, words in (
        (tmp_path / "pipe", "expected a regular file, the token file, found a pipe or device"),
        (tmp_path / "zero.npz", "found a pipe or device"),
        (tmp_path, "found a folder"),
    ):
        with pytest.raises(InputError, match=words):
            read_tokens(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabularies": (4, 0)}, r"found sub-vocabularies \[4, 0\]"),
        ({"bit_order": "big"}, "bit order 'big'"),
        ({"image_size": (4, -1)}, r"image size \[4, -1\]"),
        ({"vocabularies": (2, 8)}, r"ids of sub-token 0 lie in 0\.\.1"),
        ({"vocabularies": (4, 8, 2)}, r"shape \(B, n0, n1, 3\)"),
    ],
)
def test_a_layout_that_cannot_be_is_one_error(tmp_path, change, words):
    write_tokens(tmp_path / "a.npz", replace(token_file_from_ids(IDS, SPEC), **change))
    with pytest.raises(InputError, match=words):
        read_tokens(tmp_path / "a.npz")


@pytest.mark.parametrize("bits", [(18,), (9, 9), (6, 12), (6, 6, 6), (3, 5, 4, 6)])
@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_conversion_keeps_every_code_of_the_published_codebook(bits, order):
    flat = np.arange(2**18).reshape(1, 512, 512, 1)
    tokens = replace(
        token_file_from_ids(IDS, SPEC), ids=flat, vocabularies=(2**18,), bit_order="msb"
    )
    found = converted_tokens(tokens, bits, order)
    np.testing.assert_array_equal(
        codes_from_tokens(found.ids, bits, order), codes_from_tokens(flat, (18,), "msb")
    )
    np.testing.assert_array_equal(converted_tokens(found, (18,), "msb").ids, flat)


def test_conversion_by_hand():
    """Codes 1, 1, -1, -1, 1: lsb (2, 3) -> 3, 4; msb (3, 2) -> 6, 1."""
    tokens = replace(token_file_from_ids(IDS, SPEC), ids=np.array([3, 4]).reshape(1, 1, 1, 2))
    assert converted_tokens(tokens, (3, 2), "msb").ids.tolist() == [[[[6, 1]]]]
    for bits in ((2, 2), (6,), (5, 0), ()):
        with pytest.raises(InputError, match="bits"):
            converted_tokens(tokens, bits, "lsb")


def test_files_of_another_model_are_refused_before_their_grid_is_used(tmp_path):
    content = token_file_from_ids(IDS, SPEC)
    write_tokens(tmp_path / "a.npz", replace(content, ids=IDS[:, :, :, None], image_size=(4, 6, 1)))
    with pytest.raises(InputError, match="pictures of 3 axes"):
        read_tokens_of(tmp_path / "a.npz", SPEC)
    write_tokens(tmp_path / "a.npz", replace(content, vocabularies=(8, 33)))
    with pytest.raises(InputError, match=r"a\.npz: .* power of two"):
        read_tokens(tmp_path / "a.npz")


def test_a_file_that_unpacks_to_far_more_than_it_is_costs_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", bytes(1 << 28))
    began = time.process_time()
    with pytest.raises(InputError, match="expected a token file"):
        read_tokens(tmp_path / "a.npz")
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    ("bits", "words"), [((2, 3), None), ((2, 0), r"found \[2, 0\]"), ((60, 60), "62 in all")]
)
def test_files_of_earlier_versions_name_bits(tmp_path, path, bits, words):
    arrays = dict(np.load(path))
    del arrays["vocabularies"]
    np.savez(tmp_path / "old.npz", **arrays, bits=np.array(bits))
    if words is None:
        np.testing.assert_array_equal(read_tokens_of(tmp_path / "old.npz", SPEC).ids, IDS)
        return
    with pytest.raises(InputError, match=words):
        read_tokens(tmp_path / "old.npz")


def test_token_files_keep_the_name_they_were_given(tmp_path):
    write_tokens(tmp_path / "a.NPZ", token_file_from_ids(IDS, SPEC))
    assert [path.name for path in tmp_path.iterdir()] == ["a.NPZ"]


def test_a_damaged_token_file_is_one_error_or_reads_right(path):
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        path.write_bytes(data[: random.integers(len(data) // 2, len(data) + 1)])
        try:
            np.testing.assert_array_equal(read_tokens(path).ids, IDS)
        except InputError:
            refused += 1
    assert refused > 200


def test_a_hash_that_is_not_of_the_architecture_it_stands_for_is_one_error(tmp_path, path):
    right = dict(np.load(path))
    for change in ({"spec_sha256": "0" * 64}, {"architecture": "{}"}, {"spec_sha256": "x"}):
        np.savez(tmp_path / "wrong.npz", **right | change)
        with pytest.raises(
            InputError, match=r"wrong\.npz: its spec_sha256, .* make the file again"
        ):
            read_tokens(tmp_path / "wrong.npz")
    del right["architecture"]  # a file of an earlier version
    np.savez(tmp_path / "old.npz", **right)
    np.testing.assert_array_equal(read_tokens_of(tmp_path / "old.npz", SPEC).ids, IDS)
    np.savez(tmp_path / "old.npz", **right | {"spec_sha256": "z" * 64})
    with pytest.raises(InputError, match="its spec_sha256"):
        read_tokens(tmp_path / "old.npz")
