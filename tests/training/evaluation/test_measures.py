import numpy as np

from m2kit.training.evaluation.measures import near_copies, share_of_copies


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
