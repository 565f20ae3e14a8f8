import itertools
import tracemalloc

import numpy as np
import pytest

from m2kit.errors import InputError
from m2kit.families.sign_bits import tokens_from_codes
from m2kit.runtime import codebook
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
    matrix = np.corrcoef(codes.T)
    pairs = sorted(itertools.combinations(range(5), 2), key=lambda pair: -abs(matrix[pair]))
    assert [(pair.first, pair.second) for pair in found.correlated_bits] == pairs[:5]
    values = [pair.correlation for pair in found.correlated_bits]
    assert values == pytest.approx([matrix[pair] for pair in pairs[:5]])
    assert found.dead_bits == ()
    assert found.expected_used == pytest.approx(32 * (1 - (31 / 32) ** 40))


def test_a_dead_bit_is_found_and_correlates_with_nothing():
    codes = random_codes(1000)
    codes[:, 3] = -1
    codes[:, 1] = codes[:, 4]
    codes[:, 2] = -codes[:, 0]
    found = report(codes)
    assert found.dead_bits == (3,)
    assert found.ones[3] == 0
    named = {(pair.first, pair.second): pair.correlation for pair in found.correlated_bits}
    assert set(list(named)[:2]) == {(0, 2), (1, 4)}
    assert (named[0, 2], named[1, 4]) == pytest.approx((-1, 1))
    assert all(3 not in pair for pair in named)
    assert (found.used, found.usage) == (4, 4 / 32)


def test_one_code_alone():
    found = report(-np.ones((3, 5)))
    assert (found.used, found.perplexity) == (1, 1)
    assert found.dead_bits == (0, 1, 2, 3, 4)
    assert found.correlated_bits == ()


def test_memory_grows_with_the_codes_that_occur_and_not_with_the_codebook():
    codes = np.random.default_rng(0).choice([-1.0, 1.0], (500, 40))
    tracemalloc.start()
    found = report(codes, bits=(20, 20))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.codes, found.used) == (2**40, 500)
    assert (found.expected_used, found.perplexity) == pytest.approx((500, 500))
    assert most < 20e6


def test_counts_that_were_divided_among_processes_are_joined(monkeypatch):
    monkeypatch.setattr(codebook, "_KEPT_APART", 10)  # batches are merged on the way, too
    tokens = np.random.default_rng(1).integers(0, 4, (30, 2, 3, 2))
    whole, *parts = (CodebookCount((4, 4), "lsb") for _ in range(3))
    for number, image in enumerate(tokens):
        whole.add(image[None])
        parts[number % 2].add(image[None])
    parts[0].join(parts[1])
    assert parts[0].report() == whole.report()
    assert whole.report().tokens == 180


def test_sub_tokens_that_are_no_bits_are_counted_as_codes_alone():
    count = CodebookCount((3, 5), "")
    count.add(np.array([[[0, 0], [2, 4], [2, 4]]]))
    found = count.report()
    assert (found.codes, found.used, found.tokens) == (15, 2, 3)
    assert found.ones == found.dead_bits == found.correlated_bits == ()


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="tokens of one image"):
        CodebookCount((4,), "lsb").report()
    with pytest.raises(InputError, match="2\\^62 codes at most"):
        CodebookCount((2**32, 2**32), "lsb")
