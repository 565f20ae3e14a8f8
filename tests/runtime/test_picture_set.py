import os
import threading
import time

import numpy as np
import pytest
from doubles.until import until
from PIL import Image

from m2kit.errors import InputError
from m2kit.runtime import picture_set
from m2kit.runtime.picture_set import PictureSet
from m2kit.runtime.pictures import read_picture


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paint(path, level, size=(4, 4)):
    Image.new("RGB", size, (level,) * 3).save(path)


def levels(pictures, at_once=2):
    """The grey level of each picture, and how many came at once."""
    parts = list(pictures.batches(at_once))
    found = np.concatenate(parts)
    assert found.dtype == np.float32
    return np.rint((found[:, 0, 0, 0] + 1) * 127.5).tolist(), [len(part) for part in parts]


def test_a_folder_gives_its_pictures_by_name_and_nothing_else(here):
    (here / "some" / "deeper").mkdir(parents=True)
    paint("some/deeper/a.png", 9)
    for level, name in enumerate(["b.png", "a.PNG", "c.jpg", "d.webp", ".e.png"], 1):
        paint(f"some/{name}", 10 * level)
    (here / "some" / "notes.txt").write_text("no picture")
    (here / "some" / "f.png").mkdir()
    (here / "some" / "linked.png").symlink_to("b.png")
    paint("first.png", 100)
    pictures = PictureSet([here / "first.png", here / "some", here / "first.png"])
    assert len(pictures) == 7
    assert [path.name for path in pictures.paths] == [
        "first.png", "a.PNG", "b.png", "c.jpg", "d.webp", "linked.png", "first.png",
    ]  # fmt: skip
    assert levels(pictures) == ([100, 20, 10, 30, 40, 10, 100], [2, 2, 2, 1])


class Reading:
    """Counts what is read, and how much of it at the same time."""

    def __init__(self, seconds=0.0):
        self.done, self.now, self.most = 0, 0, 0
        self._seconds, self._lock = seconds, threading.Lock()

    def __call__(self, *given):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self._seconds)
        picture = read_picture(*given)
        with self._lock:
            self.now, self.done = self.now - 1, self.done + 1
        return picture


@pytest.fixture
def forty(here, monkeypatch):
    """A set of forty pictures, of three cores."""
    for index in range(40):
        paint(f"{index:02}.png", index)
    monkeypatch.setattr(picture_set, "available_cores", lambda: 3)
    return PictureSet([here])


def test_the_next_batch_is_read_while_one_is_used_and_no_more(forty, monkeypatch):
    monkeypatch.setattr(picture_set, "read_picture", reading := Reading())
    batches = forty.batches(4)
    for used in range(1, 4):
        assert len(next(batches)) == 4
        until(lambda: reading.done >= 4 * (used + 1))  # noqa: B023
        time.sleep(0.02)
        assert (reading.done, reading.most) == (4 * (used + 1), 1)
    batches.close()
    assert reading.done == 16


def test_slow_reading_is_shared_by_the_cores_in_order(forty, monkeypatch):
    monkeypatch.setattr(picture_set, "read_picture", reading := Reading(0.003))
    assert levels(forty, 4) == (list(range(40)), [4] * 10)
    assert reading.most == 3


def test_reading_ends_when_nobody_asks_for_more(forty, monkeypatch):
    monkeypatch.setattr(picture_set, "read_picture", reading := Reading(0.003))
    batches = forty.batches(1)
    for _ in range(6):
        next(batches)
    batches.close()
    read = reading.done
    time.sleep(0.03)
    assert reading.done == read <= 6 + 3


def test_a_broken_picture_is_told_when_all_before_it_were_handed_out(forty):
    for broken in (37, 38, 21):
        forty.paths[broken].write_bytes(b"no picture")
    batches = forty.batches(4)
    assert sum(len(next(batches)) for _ in range(5)) == 20
    with pytest.raises(InputError, match=r"21\.png: expected a picture"):
        next(batches)


def test_what_cannot_be_one_set_is_one_error(here):
    (here / "empty").mkdir()
    os.mkfifo(here / "pipe")
    with pytest.raises(InputError, match=r"empty: expected a folder with pictures \(\.png, "):
        PictureSet([here / "empty"])
    with pytest.raises(InputError, match="no such image file"):
        PictureSet([here / "none.png"])
    paint("a.png", 0, (4, 4))
    for name, words in (("none.png", "no such image file"), ("pipe", "found a pipe or device")):
        with pytest.raises(InputError, match=words):  # before anything is computed
            PictureSet([here / "a.png", here / name])
    paint("b.png", 0, (6, 5))
    with pytest.raises(InputError, match=r"4 x 4, .*b\.png has 5 x 6; scale them") as caught:
        list(PictureSet([here / "a.png", here / "b.png"]).batches(2))
    assert caught.value.option == "--resize"
    assert PictureSet([here / "a.png", here / "b.png"], side=4).size == (4, 4)


def test_a_large_side_is_refused_before_its_pixels_are_made(here):
    paint("long.png", 0, (2000, 1))
    for side in (2**20, 1000):
        with pytest.raises(InputError, match=r"scaled to .* pixels it would have"):
            PictureSet([here / "long.png"], side=side)


@pytest.mark.parametrize("size", [(40, 27), (27, 40), (33, 33), (9, 14)])
def test_scaling_is_what_torch_and_the_official_preprocessing_do(here, size):
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    (found,) = next(PictureSet([here / "a.png"], side=16).batches(1))
    shorter = min(size)
    width, height = (int(16 * n / shorter) for n in size)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(
        planes, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    expected = scaled[0, :, top : top + 16, left : left + 16].numpy() / 127.5 - 1
    assert np.abs(found - expected).max() < 2.5 / 127.5  # Pillow rounds after each axis
