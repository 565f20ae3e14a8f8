import os

import numpy as np
import pytest
from PIL import Image

from m2kit.errors import InputError
from m2kit.runtime.picture_set import PictureSet


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


def test_pictures_are_read_when_they_are_asked_for(here):
    for index in range(3):
        paint(f"{index}.png", index)
    pictures = PictureSet([here / f"{index}.png" for index in range(3)])
    batches = pictures.batches(1)
    next(batches)
    paint("1.png", 200)
    assert next(batches)[0, 0, 0, 0] == pytest.approx(200 / 127.5 - 1)


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
