import numpy as np

from m2kit.training.evaluation import measures
from m2kit.training.evaluation.measures import near_copies, share_of_copies, small


def test_copies_are_counted():
    training = np.zeros((2, 1, 2, 2), np.int64)
    training[1, 0, 0] = (1, 1)
    tokens = np.stack([training[1], training[1] + 1])
    assert share_of_copies(tokens, training) == 0.5


def test_what_is_nearly_a_training_image_or_its_mirror_image_is_counted():
    training = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    shifted = np.where(training < 128, training + 12, training - 12).astype(np.uint8)
    images = np.concatenate([shifted, shifted[:1, :, ::-1], shifted[:1, ::-1]])
    assert near_copies(images, training, within=12.001) == 0.8  # upside down is another
    assert near_copies(images, training, within=11.9) == 0


def test_images_are_compared_in_parts(monkeypatch):
    training = np.random.default_rng(1).integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    images = np.concatenate([training, 255 - training])
    monkeypatch.setattr(measures, "_AT_ONCE", 3)
    assert near_copies(images, training) == 0.5


def test_small_pictures_are_means_over_areas():
    pixels = np.random.default_rng(2).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    found = small(pixels)
    assert found.shape == (2, 32, 32, 3) and found.dtype == np.uint8
    expected = pixels.reshape(2, 32, 2, 32, 3, 3).mean((2, 4))
    assert np.abs(found - expected).max() <= 0.5 + 1e-4
    assert np.array_equal(small(found), found)
