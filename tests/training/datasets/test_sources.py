import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from m2kit.errors import InputError
from m2kit.training.datasets.pictures import ArrayPictures, split_by_group
from m2kit.training.datasets.sources import collection_at


def png(value, size=(4, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def values(pictures):
    """The red of each picture."""
    return [pictures.read(i).getpixel((0, 0))[0] for i in range(len(pictures.labels))]


def write_folders(root, classes, count=3):
    for label, name in enumerate(classes):
        (root / name / "deep").mkdir(parents=True)
        for index in range(count):
            folder = root / name / ("deep" if index else "")
            (folder / f"{index}.PNG").write_bytes(png(10 * label + index))
        (root / name / "notes.txt").write_text("no picture")


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(key, value, label=None):
    parts = [(f"{key}.png", png(value))]
    return parts if label is None else [*parts, (f"{key}.cls", str(label).encode() + b"\n")]


def test_imagenets_layout_is_divided_as_it_is(tmp_path):
    write_folders(tmp_path / "train", ["n01", "n02"])
    write_folders(tmp_path / "val", ["n01", "n02"], count=1)
    found = collection_at(tmp_path)
    assert found.classes == ("n01", "n02")
    assert sorted(values(found.train)) == [0, 1, 2, 10, 11, 12]
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert values(found.held_out) == [0, 10]


def test_undivided_folders_are_divided_by_class(tmp_path):
    write_folders(tmp_path, ["cats", "dogs"], count=20)
    found = collection_at(tmp_path)
    assert found.classes == ("cats", "dogs")
    assert np.bincount(found.held_out.labels).tolist() == [2, 2]
    assert sorted([*values(found.train), *values(found.held_out)]) == sorted(
        [*range(20), *range(10, 30)]
    )


def test_pictures_without_folders_are_of_one_class(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    found = collection_at(tmp_path)
    assert found.classes == ("",)
    assert sorted([*values(found.train), *values(found.held_out)]) == [0, 1, 2, 3]


def test_shards_are_read_in_place(tmp_path):
    write_shard(tmp_path / "train-0.tar", sample("a/x", 1, 0) + sample("b/x", 2, 1))
    write_shard(tmp_path / "train-1.tar", [*sample("a/y", 3, 1), ("a/y.json", b"{}")])
    write_shard(tmp_path / "val-0.tar", sample("c", 4, 2))
    found = collection_at(tmp_path)
    assert found.classes == ("0", "1", "2")
    assert values(found.train) == [1, 2, 3]
    assert found.train.labels.tolist() == [0, 1, 1]
    assert values(found.held_out) == [4]
    assert found.train.groups[0].endswith("train-0.tar:a/x")


def test_an_array_keeps_what_is_before_a_slash_together(tmp_path):
    names = [f"{name}/{tone}" for name in "abcdefghij" for tone in range(5)]
    images = np.arange(50, dtype=np.uint8)[:, None, None, None].repeat(12).reshape(50, 2, 2, 3)
    np.savez(
        tmp_path / "x.npz", images=images, labels=np.zeros(50, int), names=names, categories=["c"]
    )
    found = collection_at(tmp_path / "x.npz")
    assert len(found.held_out.labels) == 5
    assert len(set(found.held_out.groups)) == 1
    assert not set(found.held_out.groups) & set(found.train.groups)
    assert sorted([*values(found.train), *values(found.held_out)]) == list(range(50))


def test_a_division_does_not_depend_on_the_order_of_pictures():
    names = [f"p{i}" for i in range(40)]
    labels = np.arange(40) % 3
    found = []
    for order in (np.arange(40), np.arange(40)[::-1]):
        images = np.zeros((40, 2, 2, 3), np.uint8)
        pictures = ArrayPictures(images, labels[order], [names[i] for i in order])
        found.append(set(split_by_group(pictures, 0.25)[1].groups))
    assert found[0] == found[1]
    assert len(found[0]) == 4 + 3 + 3
    assert set(split_by_group(pictures, 0.25, seed=1)[1].groups) != found[0]


def no_class(root):
    write_folders(root, ["cats", "dogs"])
    (root / "cows").mkdir()


def classes_differ(root):
    write_folders(root / "train", ["cats", "dogs"])
    write_folders(root / "val", ["cats"])


def only_train(root):
    write_folders(root / "train", ["cats"])


def cut_off(root):
    write_shard(root / "0.tar", sample("a", 1, 0) + sample("b", 2, 0))
    (root / "0.tar").write_bytes((root / "0.tar").read_bytes()[:2500])


def cut_off_between(root):
    write_shard(root / "0.tar", sample("a", 1, 0) + sample("b", 2, 0))
    (root / "0.tar").write_bytes((root / "0.tar").read_bytes()[:2048])


def compressed(root):
    with tarfile.open(root / "0.tar", "w:gz"):
        pass


def no_number(root):
    write_shard(root / "0.tar", sample("a", 1, "cat"))


def one_without_label(root):
    write_shard(root / "0.tar", sample("a", 1, 0) + sample("b", 2))


def no_picture(root):
    write_shard(root / "0.tar", [("a.txt", b"x")])


def mixed_names(root):
    write_shard(root / "train.tar", sample("a", 1, 0))
    write_shard(root / "x.tar", sample("b", 1, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_class, "cows: expected pictures of a class, found none"),
        (classes_differ, "only one of them has dogs"),
        (only_train, "expected train and val"),
        (cut_off, "breaks off"),
        (cut_off_between, "breaks off after 1 pictures"),
        (compressed, "uncompressed"),
        (no_number, r"expected a class number .* in 'a\.cls', found 'cat'"),
        (one_without_label, "0.tar:b has none"),
        (no_picture, "hold no picture"),
        (mixed_names, "found 1, 0 and 1 others"),
    ],
)
def test_a_place_that_contradicts_itself_is_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        collection_at(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"images": np.zeros((3, 4, 4), np.uint8)},
        {"images": np.zeros((3, 4, 4, 3), np.float32)},
        {"labels": np.zeros(2, int)},
        {"labels": np.array([0, 1, 2])},
        {"labels": np.array([0, -1, 0])},
        {"labels": np.zeros(3)},
        {"categories": np.array([1, 2])},
        {"names": np.array(["a"])},
        {"images": np.zeros((0, 4, 4, 3), np.uint8), "labels": np.zeros(0, int)},
        {"categories": None},
    ],
)
def test_an_array_that_contradicts_itself_is_one_line(tmp_path, changed):
    right = {
        "images": np.zeros((3, 4, 4, 3), np.uint8),
        "labels": np.array([0, 1, 0]),
        "categories": np.array(["a", "b"]),
    }
    arrays = {name: array for name, array in (right | changed).items() if array is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=r"x\.npz: expected"):
        collection_at(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["missing", "missing.npz", "missing.tar", "notes.txt"])
def test_no_data_set_is_one_line(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"expected a folder|no such data set"):
        collection_at(tmp_path / name)
