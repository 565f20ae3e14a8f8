import torch

from m2kit.training.datasets.digits import DIGITS, features, warped


def test_digits_are_split_once_and_by_class():
    train, held_out = DIGITS.load()
    assert (len(train.labels), len(held_out.labels)) == (1437, 360)
    assert held_out.labels.bincount().min() >= 34
    assert train.images.shape[1:] == (3, 32, 32)
    assert train.images.min() == -1
    known = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in known for image in held_out.images)
    assert features(train.images[:2].numpy()).shape == (2, 64)


def test_warping_moves_but_keeps_an_image():
    train, _ = DIGITS.load()
    moved = warped(train.images[:50], torch.Generator().manual_seed(0))
    assert moved.shape == (50, 3, 32, 32)
    assert moved.min() >= -1
    assert moved.max() <= 1
    change = (moved - train.images[:50]).abs().mean()
    other = (train.images[:50] - train.images[50:100]).abs().mean()
    assert 0.02 < change < 0.7 * other
