import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2kit.errors import InputError
from m2kit.families.sign_bits import codes_from_tokens, tokens_from_codes
from m2kit.tokens import check_tokens

SPLITS = st.lists(st.integers(1, 20), min_size=1, max_size=4).filter(lambda b: sum(b) <= 62)


@given(SPLITS, st.sampled_from(["lsb", "msb"]), st.integers(0, 2**32))
def test_tokens_and_codes_are_inverse(bits, order, seed):
    draw = np.random.default_rng(seed)
    tokens = np.stack([draw.integers(0, 2**b, (2, 3, 2)) for b in bits], axis=-1)
    codes = codes_from_tokens(tokens, tuple(bits), order)
    assert codes.shape == (2, sum(bits), 3, 2)
    assert set(np.unique(codes)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(tokens_from_codes(codes, tuple(bits), order), tokens)


def test_every_index_of_the_published_codebook_survives_in_both_bit_orders():
    for bits in [(18,), (6, 12), (9, 9), (6, 6, 6), (3, 5, 4, 6)]:
        index = np.arange(2**18).reshape(4, 256, 256)
        low = np.concatenate(([0], np.cumsum(bits)[:-1]))
        tokens = np.stack([index >> s & (2**b - 1) for s, b in zip(low, bits, strict=True)], -1)
        for order in ("lsb", "msb"):
            codes = codes_from_tokens(tokens, bits, order)
            np.testing.assert_array_equal(tokens_from_codes(codes, bits, order), tokens)


def test_bit_order_says_which_channel_is_the_lowest_bit():
    one = np.full((1, 3, 1, 1), -1.0)
    one[0, 0] = 1
    assert tokens_from_codes(one, (3,), "lsb").item() == 1
    assert tokens_from_codes(one, (3,), "msb").item() == 4


def test_a_latent_of_zero_is_minus_one():
    assert tokens_from_codes(np.zeros((1, 2, 1, 1)), (2,), "lsb").item() == 0


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((1, 2, 2), int), "shape"),
        (np.zeros((0, 2, 2, 2), int), "shape"),
        (np.zeros((1, 2, 2, 3), int), r"\(B, h, w, 2\)"),
        (np.zeros((1, 2, 2, 2)), "float64"),
        (np.full((1, 2, 2, 2), 4), r"ids of sub-token 0 lie in 0\.\.3, found 4\.\.4"),
        (np.full((1, 2, 2, 2), -1), "found -1..-1"),
    ],
)
def test_bad_tokens_are_refused(tokens, words):
    with pytest.raises(InputError, match=words):
        check_tokens(tokens, (4, 8), ("h", "w"))
