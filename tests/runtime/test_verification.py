"""Arg max and trajectory: what counts as the same, on logits made by hand."""

import numpy as np

from m2kit.runtime.verification import _likeliest, _tie

LOGITS = np.array([[[0.0, 3.0, 1.0], [5.0, 4.9999, 0.0]]])  # (B, N, V): the second is a near tie
TIE = _tie(LOGITS, 1.0, 1e-4)


def tokens(*ids):
    return np.array(ids).reshape(1, 2, 1)


def outcome(check):
    return check["mismatches"], check["passed"]


def test_a_tie_is_as_wide_as_the_tolerance_lets_logits_move():
    assert TIE == 2 * 1e-4 * 5
    assert _tie(LOGITS, 3.0, 1e-4) == 5 * TIE  # guidance u + 3 (c - u) moves by up to 2 + 3


def test_an_arg_max_may_be_missed_only_at_a_tie():
    assert outcome(_likeliest([LOGITS], [TIE], tokens(1, 0))) == (0, True)
    assert outcome(_likeliest([LOGITS], [TIE], tokens(1, 1))) == (1, True)
    assert outcome(_likeliest([LOGITS], [TIE], tokens(2, 0))) == (1, False)
