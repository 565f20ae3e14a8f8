"""The judge of pictures."""

import numpy as np

from m2kit.training.datasets.judge import features, judge


def pictures(count, seed, size):
    """Of three classes: red, green with upright stripes, green with level stripes."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-0.1, 0.1, (count, 3, *size)).astype(np.float32)
    labels = np.arange(count) % 3
    images[labels == 0, 0] += 0.8
    images[labels > 0, 1] += 0.5
    images[labels == 1] += 0.4 * np.sign(np.sin(np.arange(size[1]) + seed))
    images[labels == 2] += 0.4 * np.sign(np.sin(np.arange(size[0]) + seed))[:, None]
    return images.clip(-1, 1), labels


def test_classes_are_known_by_their_colours_and_by_their_edges():
    recognise = judge(*pictures(30, 0, (24, 32)))
    images, labels = pictures(30, 1, (24, 32))
    assert (recognise(images) == labels).all()


def test_features_are_means_over_cells_of_any_size():
    image = np.full((1, 3, 20, 30), -1.0, np.float32)
    image[0, 0, :10] = 1.0
    found = features(image)
    assert found.shape == (1, 832)
    colours = found[0, :192].reshape(3, 8, 8)
    assert (colours[0, :4] == 1).all()
    assert (colours[0, 4:] == -1).all()
    assert (colours[1:] == -1).all()
