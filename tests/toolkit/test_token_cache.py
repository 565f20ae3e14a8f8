import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_spec

from m2kit.cache_file import CacheFile, Making, read_cache_file, write_cache_file
from m2kit.errors import InputError
from m2kit.token_cache import is_token_cache, open_cache, part_name
from m2kit.token_file import read_tokens_of, token_file_from_ids, write_tokens

SPEC = tiny_spec()  # bits (2, 3), lsb, downsampling 2
MAKING = Making(
    tokenizer_sha256="a" * 64, tokenizer_weights="ema", precision="float32",
    data="shapes", data_sha256="b" * 64, crops=2, place="random", flip=False, seed=0, parts=2,
)  # fmt: skip


def content(part, *, pictures=3, held_out=2):
    """A file with two crops of three pictures, and one of two others."""
    random = np.random.default_rng(part)
    count = 2 * pictures + held_out
    ids = random.integers(0, (4, 8), (count, 2, 3, 2))
    names = [*np.repeat(range(pictures), 2).tolist(), *range(pictures, pictures + held_out)]
    return CacheFile(
        token_file_from_ids(ids, SPEC),
        labels=np.array(names) % 4,
        crops=np.array([*[0, 1] * pictures, *[0] * held_out]),
        held_out=np.arange(count) >= 2 * pictures,
        groups=np.array([f"{part}/{name}" for name in names]),
        classes=("a", "b", "ç", "d"),
        making=replace(MAKING, part=part),
    )


@pytest.fixture
def cache(tmp_path):
    for part in range(2):
        write_cache_file(tmp_path / "cache" / part_name(part), content(part))
    return tmp_path / "cache"


def test_a_cache_reads_every_crop_from_where_it_stands(cache):
    told = []

    def begin(stage, total):
        told.append((stage, total))
        return told.append

    opened = open_cache(cache, begin)
    assert told == [("checking tokens", 2), 1, 1]
    assert opened.classes == ("a", "b", "ç", "d")
    assert (opened.making.crops, opened.tokens.image_size) == (2, (4, 6))
    assert opened.train.groups == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
    assert opened.held_out.labels.tolist() == [3, 0, 3, 0]
    for index in range(6):
        part, picture = divmod(index, 3)
        for crop in range(2):
            expected = content(part).tokens.ids[2 * picture + crop]
            np.testing.assert_array_equal(opened.train.read(index, crop), expected)
    np.testing.assert_array_equal(opened.held_out.read(3, 0), content(1).tokens.ids[7])


def test_a_file_of_a_cache_is_a_token_file(cache):
    found = read_tokens_of(cache / part_name(1), SPEC)
    np.testing.assert_array_equal(found.ids, content(1).tokens.ids)
    with zipfile.ZipFile(cache / part_name(1)) as archive:
        assert archive.getinfo("ids.npy").file_size == 128 + 8 * 12  # a byte an id


def test_only_token_files_are_taken_for_a_cache(cache, tmp_path):
    np.savez(tmp_path / "pictures.npz", images=np.zeros((1, 2, 2, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    found = [is_token_cache(path) for path in (cache, cache / part_name(0))]
    assert found == [True, True]
    found = [is_token_cache(tmp_path / name) for name in ("pictures.npz", "empty", "no.npz")]
    assert found == [False, False, False]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [("1.png", False), ("a-000.tar", False), ("class", False), (".DS_Store", True)],
)
def test_a_folder_is_a_cache_where_all_that_is_seen_in_it_are_token_files(cache, beside, expected):
    (cache / beside).touch() if "." in beside else (cache / beside).mkdir()
    assert is_token_cache(cache) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "expected labels, as a token cache has them"),
        ({"making": None}, "expected making, as a token cache has them"),
        ({"bit_order": None}, "it has no bit_order"),
        ({"labels": np.arange(8)}, r"expected labels of 0\.\.3, found 0\.\.7"),
        ({"labels": np.zeros(8)}, "expected labels of 8 whole numbers, found float64"),
        ({"labels": np.zeros(7, int)}, r"found int64 of shape \(7,\)"),
        ({"held_out": np.zeros(8, int)}, "expected held_out of 8 true or false"),
        ({"held_out": np.arange(8) < 2}, r"expected crops of 0\.\.1 of each picture, then 0"),
        ({"crops": np.zeros(8, int)}, r"expected crops of 0\.\.1 of each picture"),
        ({"groups": np.arange(8)}, "expected groups of 8 texts"),
        ({"classes": np.arange(4)}, "expected classes of a list of names"),
        ({"ids": np.zeros((8, 2, 3, 2))}, "tokens must be integers"),
        ({"ids": np.full((8, 2, 3, 2), 9)}, r"ids of sub-token 0 lie in 0\.\.3"),
        ({"making": "{"}, "not readable JSON"),
        ({"making": {"crops": 0}}, r"making\.crops: expected a whole number in 1\.\.1000"),
        ({"making": {"tokenizer_sha256": "x"}}, r"making\.tokenizer_sha256: expected a sha256"),
        ({"making": {"precision": "int8"}}, r"making\.precision: expected .*float16.*, found"),
        ({"making": {"part": 2}}, r"expected making\.part of 0\.\.1, found 2"),
    ],
)
def test_a_damaged_field_is_one_error_that_names_it(cache, change, words):
    path = cache / part_name(1)
    arrays = dict(np.load(path))
    for name, value in change.items():
        if isinstance(value, dict):
            arrays[name] = json.dumps(json.loads(str(arrays[name])) | value)
        else:
            arrays[name] = value
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=words) as caught:
        open_cache(cache)
    assert str(path) in str(caught.value)


def test_files_that_do_not_belong_together_are_one_error(cache):
    path = cache / part_name(1)
    whole = content(1)
    other = replace(whole, making=replace(whole.making, seed=5))
    for wrong, words in (
        (other, r"their making\.seed is 5 and 0"),
        (
            replace(whole, making=replace(whole.making, precision="float16")),
            r"their making\.precision is float16 and float32",
        ),
        (replace(whole, classes=("a", "b", "c", "d")), "their classes is"),
        (replace(whole, tokens=replace(whole.tokens, image_size=(4, 5))), "their image_size is"),
        (content(0), "hold the same pictures"),
    ):
        write_cache_file(path, wrong)
        with pytest.raises(InputError, match=words):
            open_cache(cache)
    path.unlink()
    with pytest.raises(InputError, match=r"expected 2 token files, found 1; tokens-00001\.npz is"):
        open_cache(cache)
    with pytest.raises(InputError, match="expected 2 token files, found 1"):
        open_cache(cache / part_name(0))


def test_a_cache_needs_both_halves(tmp_path):
    one = content(0, held_out=0)
    write_cache_file(tmp_path / "a.npz", replace(one, making=replace(one.making, parts=1)))
    with pytest.raises(InputError, match="3 pictures to train on and 0 held out; it needs both"):
        open_cache(tmp_path / "a.npz")


def test_a_truncated_file_and_one_without_labels_are_one_error(cache, tmp_path):
    write_tokens(tmp_path / "plain.npz", content(0).tokens)
    with pytest.raises(InputError, match="expected making, as a token cache has them"):
        open_cache(tmp_path / "plain.npz")
    path = cache / part_name(1)
    opened, data = open_cache(cache), path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"tokens-00001\.npz: is damaged or no token file"):
        open_cache(cache)
    path.write_bytes(data[:20])
    with pytest.raises(InputError, match="was changed while it was read; encode"):
        opened.train.read(3, 0)
    path.unlink()
    with pytest.raises(InputError, match="was changed while it was read: No such file"):
        opened.train.read(3, 0)


def test_ids_that_are_packed_are_refused(cache):
    path = cache / part_name(0)
    np.savez_compressed(path, **dict(np.load(path)))
    read_cache_file(path)  # it is whole
    with pytest.raises(InputError, match="expected ids of rows stored as they are"):
        open_cache(cache)
