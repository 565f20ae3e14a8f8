import os

import numpy as np
import pytest
from conftest import picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m2kit.errors import FolderError, InputError
from m2kit.runtime.saving import Sheet, notes_of_png, write_grid, write_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
NOTES = {"class": 5, "sampling": {"seed": 1, "guidance": [2.0, 1.5]}, "engine": "großes"}


def test_a_grid_holds_the_images_row_by_row(tmp_path):
    images = np.stack([np.full((3, 2, 2), v, np.float32) for v in (-1, 0, 1)])
    write_grid(tmp_path / "g.png", images, columns=2, scale=2)
    grid = picture(tmp_path / "g.png")
    assert grid.shape == (10, 10, 3)
    assert (grid[0, 0, 0], grid[0, 6, 0], grid[6, 0, 0], grid[9, 9, 0]) == (0, 127, 255, 255)


def test_stacked_images_of_an_item_stand_one_below_the_other(tmp_path):
    sheet = Sheet(tmp_path / "g.png", 3, (2, 2), columns=2, stacked=2)
    for item in range(3):
        for layer in range(2):
            sheet.put(item, np.full((2, 2, 3), 10 * item + layer, np.uint8), layer)
    sheet.write()
    shown = picture(tmp_path / "g.png")[::4, ::4, 0].tolist()
    assert shown == [[0, 10], [1, 11], [20, 255], [21, 255]]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp"])
def test_png_and_webp_keep_every_pixel(tmp_path, suffix):
    write_picture(tmp_path / f"a{suffix}", PIXELS)
    np.testing.assert_array_equal(picture(tmp_path / f"a{suffix}"), PIXELS)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_keeps_colours_at_full_resolution(tmp_path, suffix):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)  # colours of half the resolution would mix them
    write_picture(tmp_path / f"a{suffix}", stripes)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == "JPEG"
    assert np.abs(picture(tmp_path / f"a{suffix}").astype(int) - stripes).max() < 40


def test_notes_are_in_the_file_and_the_same_ones_give_the_same_bytes(tmp_path):
    for suffix in (".png", ".jpg", ".webp"):
        for name in ("a", "b"):
            write_picture(tmp_path / f"{name}{suffix}", PIXELS, NOTES)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert notes_of_png(tmp_path / "a.png") == NOTES
    for suffix in (".jpg", ".webp"):
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert '"guidance": [2.0, 1.5]' in image.getexif()[0x010E]


def test_pictures_of_others_have_no_notes(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no")
    write_picture(tmp_path / "a.jpg", PIXELS, NOTES)
    write_picture(tmp_path / "whole.png", PIXELS, NOTES)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name in ("plain.png", "text.png", "a.jpg", "cut.png", "none.png"):
        assert notes_of_png(tmp_path / name) is None, name


def test_whatever_stands_in_a_folder_has_no_notes_and_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    info = PngInfo()
    info.add_text("Description", "[" * 200_000)
    Image.fromarray(PIXELS).save(tmp_path / "deep.png", pnginfo=info)
    for name in ("pipe.png", "zero.png", "folder.png", "deep.png"):
        assert notes_of_png(tmp_path / name) is None, name
    write_picture(tmp_path / "large.png", PIXELS, NOTES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # 96 pixels: Pillow warns
    assert notes_of_png(tmp_path / "large.png") == NOTES
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # and here raises
    assert notes_of_png(tmp_path / "large.png") is None


def test_notes_too_long_for_a_jpeg_are_left_out_of_it(tmp_path):
    notes = {"classes": list(range(20_000))}
    for suffix, kept in ((".jpg", False), (".webp", True), (".png", True)):
        write_picture(tmp_path / f"a{suffix}", PIXELS, notes)
        with Image.open(tmp_path / f"a{suffix}") as image:
            told = image.info.get("Description") or image.getexif().get(0x010E)
        assert (told is not None) == kept, suffix


@pytest.mark.parametrize(
    ("name", "items", "columns"),
    [("a.png", 10**12, 10**9), ("a.png", 200_000, 8), ("a.webp", 5000, 1), ("a.jpg", 20_000, 1)],
)
def test_a_grid_that_no_picture_can_be_is_refused_at_once(tmp_path, name, items, columns):
    with pytest.raises(InputError, match="or write each into a folder") as caught:
        Sheet(tmp_path / name, items, (32, 32), columns=columns)
    assert caught.value.option == "-o NAME, without suffix"


def test_other_kinds_of_pictures_are_refused(tmp_path):
    with pytest.raises(FolderError, match=r"ending in \.png, \.jpg, \.jpeg, \.webp"):
        write_grid(tmp_path / "g.gif", np.zeros((1, 3, 2, 2), np.float32), columns=1)
