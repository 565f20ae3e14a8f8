import numpy as np
import pytest

from m2kit.errors import InputError
from m2kit.families.sign_bits import tokens_from_codes
from m2kit.runtime.codebook import CodebookCount


def report(codes, bits=(2, 3), order="lsb", parts=1):
    """Of codes (T, Z) of -1 and 1."""
    count = CodebookCount(tuple(2**b for b in bits), order)
    for part in np.array_split(np.asarray(codes, np.float32), parts):
        count.add(tokens_from_codes(part.T[None, :, :, None], bits, order))
    return count.report()


def random_codes(count, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (count, 5))


@pytest.mark.parametrize("order", ["lsb", "msb"])
def test_counts_are_those_of_the_codes(order):
    codes = random_codes(40)
    found = report(codes, order=order, parts=3)
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shares = counts / 40
    assert (found.tokens, found.codes, found.used) == (40, 32, len(counts))
    assert found.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.ones == pytest.approx(tuple((codes > 0).mean(0)))
    matrix = np.abs(np.corrcoef(codes.T)) - np.eye(5)
    assert found.correlation == pytest.approx(matrix.max())
    assert matrix[found.correlated_bits] == pytest.approx(matrix.max())
    assert found.dead_bits == ()
    assert found.expected_used == pytest.approx(32 * (1 - (31 / 32) ** 40))


def test_a_dead_bit_is_found_and_correlates_with_nothing():
    codes = random_codes(1000)
    codes[:, 3] = -1
    codes[:, 1] = codes[:, 4]
    found = report(codes)
    assert found.dead_bits == (3,)
    assert found.ones[3] == 0
    assert found.correlated_bits == (1, 4)
    assert found.correlation == pytest.approx(1)
    assert found.used == 8


def test_one_code_alone():
    found = report(-np.ones((3, 5)))
    assert (found.used, found.perplexity) == (1, 1)
    assert found.dead_bits == (0, 1, 2, 3, 4)
    assert (found.correlation, found.correlated_bits) == (0, ())


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="tokens of one image"):
        CodebookCount((4,), "lsb").report()
    with pytest.raises(InputError, match="found 2\\^30"):
        CodebookCount((2**15, 2**15), "lsb")
