from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from m2kit.errors import FolderError, InputError
from m2kit.runtime.images import (
    check_grid,
    cropped,
    padded,
    psnr,
    read_image,
    read_images,
    uint8_from_images,
    write_grid,
)


def test_pixels_are_truncated_not_rounded():
    values = np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0], np.float32)
    image = np.broadcast_to(values, (1, 3, 1, 6))
    assert uint8_from_images(image)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_a_picture_survives_reading_and_writing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 5)
    assert image.dtype == np.float32
    back = uint8_from_images(image[None] + 1e-4)[0]  # the tiny lift undoes truncation
    np.testing.assert_array_equal(back, pixels)


def test_a_grid_holds_the_images_row_by_row(tmp_path):
    images = np.stack([np.full((3, 2, 2), v, np.float32) for v in (-1, 0, 1)])
    write_grid(tmp_path / "g.png", images, columns=2, scale=2)
    grid = picture(tmp_path / "g.png")
    assert grid.shape == (10, 10, 3)
    assert (grid[0, 0, 0], grid[0, 6, 0], grid[6, 0, 0], grid[9, 9, 0]) == (0, 127, 255, 255)


def test_what_is_not_a_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(InputError, match="expected a picture"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such image"):
        read_image(tmp_path / "b.png")
    with pytest.raises(FolderError, match=r"ending in \.png, \.jpg, \.jpeg, \.webp"):
        write_grid(tmp_path / "g.gif", np.zeros((1, 3, 2, 2), np.float32), columns=1)


def test_a_grid_is_written_as_its_suffix_says(tmp_path):
    shade = np.linspace(-0.9, 0.9, 3 * 16 * 16, dtype=np.float32).reshape(1, 3, 16, 16)
    images = np.concatenate([shade, -shade])
    for name, format_, error in (
        ("a.png", "PNG", 0), ("a.webp", "WEBP", 0), ("a.jpg", "JPEG", 8), ("a.JPEG", "JPEG", 8),
    ):  # fmt: skip
        write_grid(tmp_path / name, images, columns=2)
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format_, (34, 16))
            found = np.asarray(image.convert("RGB")).astype(int)
        expected = np.asarray(uint8_from_images(images)[1]).astype(int)
        assert np.abs(found[:, 18:] - expected).max() <= error, name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.JPEG", "a.jpg", "a.png", "a.webp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count", "columns", "words"),
    [
        ("a.png", 10**9, 8, r"1,000,000,000 images would have .* write each into a folder"),
        ("a.png", 8065, 1, None),
        ("a.jpg", 1928, 1, "65,535 along a side"),
        ("a.webp", 482, 482, "16,383 along a side"),
        ("a.png", 2**13, 90, None),
        ("a.png", 2**17, 360, r"\.png holds 134,217,728"),
    ],
)
def test_a_grid_too_large_is_refused_before_its_images_are_made(name, count, columns, words):
    if words is None:
        check_grid(Path(name), count, (32, 32), columns=columns)
        return
    with pytest.raises(InputError, match=words):
        check_grid(Path(name), count, (32, 32), columns=columns)


def test_images_of_two_sizes_are_refused(tmp_path):
    for name, side in (("a.png", 4), ("b.png", 5)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"4 x 4, .*b\.png has 5 x 5"):
        read_images([tmp_path / "a.png", tmp_path / "b.png"])


def test_psnr_of_one_grey_level():
    image = np.zeros((1, 3, 2, 2), np.float32)
    assert psnr(image, image + 2 / 255) == pytest.approx(48.13, abs=0.01)


@pytest.mark.parametrize(("size", "frame"), [((5, 8), (1, 0)), ((8, 9), (0, 1)), ((4, 4), (0, 0))])
def test_padding_frames_in_grey_with_the_smaller_half_first_and_cropping_undoes_it(size, frame):
    images = np.random.default_rng(0).random((2, 3, *size), np.float32) - 0.5
    whole = padded(images, (4, 4))
    assert whole.dtype == np.float32
    assert [side % 4 for side in whole.shape[2:]] == [0, 0]
    assert all(0 <= a - b < 4 for a, b in zip(whole.shape[2:], size, strict=True))
    top, left = frame
    np.testing.assert_array_equal(whole[:, :, top : top + size[0], left : left + size[1]], images)
    assert np.abs(whole).sum() == np.abs(images).sum()  # the frame is 0
    np.testing.assert_array_equal(cropped(whole, size), images)
