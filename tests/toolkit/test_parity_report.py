"""What a report says of itself in one line."""

import pytest

from m2kit.parity_report import DIFFERENCE, ParityReport, measured
from m2kit.tolerances import ARG_MAX, KL

TOKENIZER = {"encoder": measured({DIFFERENCE: 5.5e-7}, {DIFFERENCE: 1e-4})}
FIRST = measured({KL: 0.0053, ARG_MAX: 0.0}, {KL: 0.01, ARG_MAX: 0.03})
SECOND = measured({KL: 0.001, ARG_MAX: 0.02}, {KL: 0.01, ARG_MAX: 0.03})


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({}, "1 of 1 checks passed, int8, largest difference 5.5e-07"),
        (
            {"a": FIRST, "b": SECOND},
            "3 of 3 checks passed, int8, KL divergence 0.0053, differing arg max 0.02",
        ),
        ({"a": measured({KL: 0.0}, {})}, "2 of 2 checks passed, int8, KL divergence 0"),
        (
            {"a": FIRST, "b": measured({KL: float("nan")}, {KL: 0.01})},
            "2 of 3 checks passed, int8, KL divergence not finite, differing arg max 0; failed: b",
        ),
        ({"a": measured({}, {})}, "2 of 2 checks passed, int8, largest difference 5.5e-07"),
    ],
    ids=["float steps", "two sub-tokens", "no arg max", "no number", "no measure"],
)
def test_a_summary_tells_what_integer_weights_changed_not_the_exact_tokenizer(steps, told):
    assert ParityReport("int8", {**TOKENIZER, **steps}).summary == told
