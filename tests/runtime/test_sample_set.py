"""Large sets: the same bytes however they were drawn, and nothing taken for a part that is none."""

import json
import tarfile
import tracemalloc
import zipfile
from itertools import permutations

import numpy as np
import pytest
from conftest import tiny_spec
from doubles.fake_backend import FakeBackend
from PIL import Image

from m2kit import Sampling
from m2kit.errors import FolderError, InputError
from m2kit.runtime import sample_files, sample_set
from m2kit.runtime.drawing import DrawnImages, draw_images
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.sample_files import merge_npz, merge_tar, open_samples
from m2kit.runtime.sample_set import draw_parts, find_set, keep_parts, part_path, set_of

SAMPLING = Sampling(seed=7)
CLASSES = (0, 2, 3)


def engine(**transformer):
    spec = tiny_spec(**transformer)
    return Engine(spec, FakeBackend(spec))


def drawn(folder, *, shards=1, order=None, model=None, classes=CLASSES, per_class=7, **options):
    model = model or engine()
    wanted = set_of(model, classes, per_class, SAMPLING, **{"batch": 2} | options)
    for shard in order or range(shards):
        list(draw_parts(model, find_set(folder, wanted), (shard, shards)))
    return find_set(folder, wanted)


def merged(folder, **options):
    return merge_npz(drawn(folder, **options)).read_bytes()


def test_a_set_has_the_images_of_its_numbers_in_order_of_class_and_number(tmp_path):
    drawn(tmp_path, classes=(3, 0, 2, 0))
    merge_npz(find_set(tmp_path))
    parts = list(draw_images(engine(), CLASSES, 7, SAMPLING))
    pixels = uint8_from_images(np.concatenate([part.images for part in parts]))
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(arrays["arr_0"], pixels)
        assert arrays["arr_1"].tolist() == [0] * 7 + [2] * 7 + [3] * 7
        np.savez(tmp_path / "again.npz", **arrays)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "samples.npz").read_bytes()


@pytest.mark.parametrize("shards", [2, 5, 40])  # 11 parts, 21 images
def test_shards_in_any_order_give_the_bytes_of_one_process(tmp_path, shards):
    one = merged(tmp_path / "one")
    orders = [range(shards), [*reversed(range(shards))]]
    orders += [*permutations(range(shards))][1:3] if shards == 2 else []
    for number, order in enumerate(orders):
        assert merged(tmp_path / str(number), shards=shards, order=order) == one


def test_a_shard_goes_on_with_what_other_shards_left_however_many_they_were(tmp_path):
    wanted = drawn(tmp_path, shards=3, order=[1]).set
    found = find_set(tmp_path, wanted)
    assert [*found.parts] == [1, 4, 7, 10] and found.shards == 3
    counts = list(draw_parts(engine(), found, (0, 2)))
    assert counts == [2, 2, 2, 2]  # 0, 2, 6, 8; not 4 and 10 again
    drawn(tmp_path)
    assert merge_npz(find_set(tmp_path)).read_bytes() == merged(tmp_path / "one")


def test_parts_are_whole_batches_and_do_not_depend_on_the_shards():
    model = engine(classes=1000)
    for per_class, batch, images in ((50, 16, 64), (50, 20, 60), (50, 256, 256), (1, 4, 12)):
        wanted = set_of(model, range(1000), per_class, batch=batch)
        assert wanted.images_of_part == images
        numbers = [n for part in range(wanted.parts) for n in wanted.numbers(part)]
        assert numbers == [c * 2**32 + i for c in range(1000) for i in range(per_class)]


def test_pixels_are_truncated_or_rounded_and_the_set_says_which(tmp_path):
    images = next(draw_images(engine(), CLASSES, 7, SAMPLING, batch=21)).images
    scaled = 255 * (images.transpose(0, 2, 3, 1) + 1) / 2  # float32, as the official code
    for rule, expected in (("truncate", np.floor(scaled)), ("round", np.floor(scaled + 0.5))):
        drawn(tmp_path / rule, uint8=rule)
        samples = open_samples(tmp_path / rule)
        assert samples.set.uint8 == rule
        pixels = np.concatenate([pixels for pixels, _ in samples.batches(4)])
        np.testing.assert_array_equal(pixels, expected)
    assert (np.floor(scaled) != np.floor(scaled + 0.5)).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 8}, "per_class is 7, not 8"),
        ({"batch": 3}, "batch is 2, not 3"),
        ({"uint8": "round"}, "uint8 is truncate, not round"),
        ({"classes": (0, 1)}, r"classes is \[0, 2, 3\], not \[0, 1\]"),
        ({"model": engine(grid=(3, 3))}, r"image_size is \[4, 6\], not"),
    ],
)
def test_a_folder_of_another_set_is_refused_with_the_difference(tmp_path, options, words):
    drawn(tmp_path, order=[0], shards=11)
    with pytest.raises(FolderError, match=f"part-00000.npz is of another set: its {words}"):
        drawn(tmp_path, **options)
    assert len(list((tmp_path / "parts").iterdir())) == 1


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(seed=8), "sampling.seed is 7, not 8"),
        (Sampling(seed=7, top_k=2), r"sampling.top_k is \[0, 0\], not \[2, 2\]"),
    ],
)
def test_another_seed_or_sampling_is_refused(tmp_path, sampling, words):
    drawn(tmp_path, order=[0], shards=11)
    with pytest.raises(FolderError, match=words):
        find_set(tmp_path, set_of(engine(), CLASSES, 7, sampling, batch=2))


def test_parts_of_two_sets_or_under_another_name_are_no_set(tmp_path):
    drawn(tmp_path)
    drawn(tmp_path / "other", uint8="round")
    part_path(tmp_path, 3).write_bytes(part_path(tmp_path / "other", 3).read_bytes())
    with pytest.raises(FolderError, match=r"part-00003.npz is of another set: its uint8"):
        find_set(tmp_path)
    part_path(tmp_path, 3).write_bytes(part_path(tmp_path, 4).read_bytes())
    with pytest.raises(FolderError, match=r"part-00003.npz is of another set: its name is not"):
        find_set(tmp_path)


def test_a_set_that_lacks_a_part_is_neither_merged_nor_read(tmp_path):
    drawn(tmp_path)
    part_path(tmp_path, 3).unlink()
    for use in (merge_npz, merge_tar):
        with pytest.raises(FolderError, match="lacks 1 of 11 parts of its set, first 3"):
            use(find_set(tmp_path))
    with pytest.raises(FolderError, match="lacks 1 of 11"):
        open_samples(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    with pytest.raises(FolderError, match="expected parts of a set, in parts/, found none"):
        find_set(tmp_path / "none")


def rewritten(path, change):
    """Write a part again, with its record changed."""
    with np.load(path) as arrays:
        images = arrays["images"]
        texts = {name: json.loads(str(arrays[name])) for name in ("set", "part")}
    images = change(texts, images)
    np.savez(path, images=images, **{n: np.array(json.dumps(texts[n])) for n in texts})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a part"),
        lambda path: rewritten(path, lambda record, images: images[1:]),
        lambda path: rewritten(path, lambda record, images: images.astype(np.float32)),
        lambda path: rewritten(
            path, lambda record, images: record["part"].update(part=12) or images
        ),
        lambda path: rewritten(
            path, lambda record, images: record["part"].update(more=1) or images
        ),
        lambda path: rewritten(
            path, lambda record, images: record["set"].update(batch=True) or images
        ),
        lambda path: rewritten(
            path, lambda record, images: record["set"].update(classes=[2, 0]) or images
        ),
        lambda path: np.savez(path, images=np.zeros(3)),
    ],
)
def test_a_damaged_part_is_refused_and_drawn_again_when_it_is_removed(tmp_path, damage):
    one = merged(tmp_path)
    path = part_path(tmp_path, 4)
    damage(path)
    with pytest.raises(FolderError, match=r"part-00004.npz is no whole part of a set; remove it"):
        drawn(tmp_path)
    path.unlink()
    assert merged(tmp_path) == one


def test_a_pixel_that_was_changed_on_the_disk_is_found_when_it_is_read(tmp_path):
    drawn(tmp_path, model=engine(grid=(32, 32)), classes=(1,), per_class=3)
    path = part_path(tmp_path, 0)  # 2 images of 12,288 bytes
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(bytes(content))
    found = find_set(tmp_path)
    with pytest.raises(FolderError, match=r"part-00000.npz is no whole part"):
        merge_npz(found)
    assert [item.name for item in tmp_path.iterdir()] == ["parts"]
    with pytest.raises(FolderError, match=r"part-00000.npz is no whole part"):
        list(open_samples(tmp_path).batches())


def test_a_seed_that_could_not_be_read_again_is_refused_before_anything_is_drawn():
    with pytest.raises(InputError, match=r"sampling\.seed"):
        set_of(engine(), CLASSES, 7, Sampling(seed=2**63))


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_a_sets_folder_and_its_samples_npz_are_read_alike(tmp_path, at_once):
    path = merge_npz(drawn(tmp_path))
    with np.load(path) as arrays:
        pixels, labels = arrays["arr_0"], arrays["arr_1"]
        np.savez_compressed(tmp_path / "packed.npz", arr_0=pixels, arr_1=labels.astype(np.int32))
        np.savez(tmp_path / "unlabelled.npz", arr_0=pixels)
    for name in (".", "samples.npz", "packed.npz", "unlabelled.npz"):
        samples = open_samples(tmp_path / name)
        assert (samples.count, samples.size) == (21, pixels.shape[1:3])
        parts, own = zip(*samples.batches(at_once), strict=True)
        assert max(map(len, parts)) <= at_once
        np.testing.assert_array_equal(np.concatenate(parts), pixels)
        assert samples.labelled == (name != "unlabelled.npz")
        if samples.labelled:
            np.testing.assert_array_equal(np.concatenate(own), labels)
            assert own[0].dtype == np.int64
        else:
            assert set(own) == {None}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "found arr_0 of float64"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, r"found arr_0 of uint8, \[2, 3, 4, 4\]"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, r"\[0, 4, 4, 3\]"),
        (
            {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, np.int64)},
            r"found arr_1 of int64, \[3\]",
        ),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "intact .npz"),
        ({"arr_0": np.array([None])}, "intact .npz"),
    ],
)
def test_an_npz_of_another_form_is_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=words):
        open_samples(tmp_path / "x.npz")


def test_an_npz_whose_header_promises_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("arr_0.npy", "w") as m:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)}
        np.lib.format.write_array_header_1_0(m, header)
        m.write(b"few")
    with pytest.raises(InputError, match=r"intact \.npz"):
        open_samples(tmp_path / "x.npz")


def test_tar_shards_have_a_picture_and_a_class_number_each_and_repeat_their_bytes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sample_files, "_OF_A_TAR", 8)
    found = drawn(tmp_path)
    pixels = np.concatenate([part for part, _ in open_samples(tmp_path).batches()])
    paths = merge_tar(found)
    assert [path.name for path in paths] == [f"samples-0000{i}.tar" for i in range(3)]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in merge_tar(drawn(tmp_path, shards=4))] == before
    names = []
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".png"):
                    with Image.open(file) as image:
                        np.testing.assert_array_equal(np.asarray(image), pixels[len(names)])
                    names.append(member.name)
                else:
                    assert int(file.read()) == int(member.name.split("_")[0])
    assert names == [f"{c:05d}_{i:06d}.png" for c in CLASSES for i in range(7)]


def test_memory_does_not_depend_on_the_number_of_images(tmp_path, monkeypatch):
    """Drawing, merging and reading, of pictures that cost no time."""

    def blank(engine, numbers, count, sampling, *, batch, begin):
        for _ in range(0, count, batch):
            part = np.array([next(numbers) for _ in range(batch)], np.uint64)
            images = np.zeros((batch, 3, 64, 64), np.float32)
            yield DrawnImages(part, part.astype(np.int64), part.astype(np.int64), images)

    monkeypatch.setattr(sample_set, "draw_numbers", blank)
    peaks = []
    for per_class in (64, 128, 512):  # the first one imports what is needed
        tracemalloc.start()
        found = drawn(
            tmp_path / str(per_class),
            model=engine(grid=(32, 32)),
            classes=(1,),
            per_class=per_class,
            batch=16,
        )
        for _ in open_samples(merge_npz(found)).batches():
            pass
        merge_tar(found)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 512 * 1000  # an image has 12,288 bytes


def test_a_part_whose_batches_several_devices_drew_tells_all_of_them(tmp_path):
    wanted = set_of(engine(classes=1000), range(1000), 50, SAMPLING, batch=16)  # 4 batches a part
    found = find_set(tmp_path, wanted)
    pixels = np.zeros((16, *wanted.image_size, 3), np.uint8)
    drawn_by = iter([(pixels, device) for device in ("GPU B", "GPU A", "GPU B", "GPU B")])
    assert next(keep_parts(found, (0, 1), drawn_by)) == 64
    assert find_set(tmp_path).parts[0].device == "GPU A, GPU B"
