import numpy as np

from m2kit.training.evaluation.measures import codebook_usage, share_of_copies


def test_copies_and_codebook_usage_are_counted():
    training = np.zeros((2, 1, 2, 2), np.int64)
    training[1, 0, 0] = (1, 1)
    tokens = np.stack([training[1], training[1] + 1])
    assert share_of_copies(tokens, training) == 0.5
    assert codebook_usage(training, (2, 2)) == 0.5  # codes 0 and 3 of four
