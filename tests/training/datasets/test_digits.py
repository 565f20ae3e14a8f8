import numpy as np

from m2kit.training.datasets.crops import cut_out, images_of
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.digits import DIGITS, features


def test_digits_are_split_once_and_by_class():
    collection = DIGITS.load()
    train, _ = images_of(collection.train, 32)
    held_out, labels = images_of(collection.held_out, 32)
    assert (len(train), len(held_out)) == (1437, 360)
    assert labels.bincount().min() >= 34
    assert train.shape[1:] == (3, 32, 32)
    assert train.min() == -1
    known = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in known for image in held_out)
    assert features(train[:2].numpy()).shape == (2, 64)


def test_warping_moves_but_keeps_an_image():
    pictures, random = DIGITS.load().train, np.random.default_rng(0)
    plain = np.stack([cut_out(pictures.read(n), Cut((32, 32)), random) for n in range(100)])
    cut = Cut((32, 32), warp=1.0)
    moved = np.stack([cut_out(pictures.read(n), cut, random) for n in range(50)])
    assert moved.min() >= -1
    assert moved.max() <= 1
    change = np.abs(moved - plain[:50]).mean()
    assert 0.02 < change < 0.7 * np.abs(plain[:50] - plain[50:]).mean()
