import numpy as np
import pytest

from m2kit.runtime.images import (
    cropped,
    images_from_pixels,
    padded,
    psnr,
    uint8_from_images,
)


def test_pixels_are_truncated_not_rounded():
    values = np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0], np.float32)
    image = np.broadcast_to(values, (1, 3, 1, 6))
    assert uint8_from_images(image)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_pixels_survive_being_images():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    images = images_from_pixels(pixels)
    assert (images.shape, images.dtype) == ((2, 3, 4, 5), np.float32)
    back = uint8_from_images(images + 1e-4)  # the tiny lift undoes truncation
    np.testing.assert_array_equal(back, pixels)


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
