import numpy as np
import pytest
from PIL import Image

from m2kit.errors import InputError
from m2kit.runtime.images import (
    cropped,
    padded,
    psnr,
    read_image,
    read_images,
    uint8_from_images,
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


def test_what_is_not_a_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(InputError, match="expected a picture"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such image"):
        read_image(tmp_path / "b.png")


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
