"""Settings are held to their ranges wherever they come from."""

import math
import re
from dataclasses import MISSING, fields, replace

import numpy as np
import pytest

from m2kit.errors import InputError
from m2kit.records import to_json
from m2kit.training.recipes.settings import TokenizerSettings

TOKENIZER = TokenizerSettings(
    data="digits", base_channels=32, channel_multipliers=(1, 1), blocks_per_level=1, code_bits=4,
    epochs=2, batch=32, learning_rate=1e-3, ema_decay=0.5, entropy_weight=0.1,
    entropy_temperature=0.01, commitment_weight=0.25, seed=0,
)  # fmt: skip
ODD = [math.nan, math.inf, -math.inf, None, "1", True, -1, 2**70, {}, (math.nan,), np.float32(1)]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_number_of_a_run_may_be_what_is_no_number_of_its_range(ar_settings, odd):
    for settings in (TOKENIZER, ar_settings()):
        for field in fields(settings):
            fine = field.type in ("Text", "Text | None") or (
                odd is None and field.default is not MISSING
            )
            if not fine and not (odd is True and field.type == "bool"):
                with pytest.raises(InputError) as caught:
                    replace(settings, **{field.name: odd})
                assert str(caught.value).startswith(field.name)
                assert re.search(": expected | must be ", str(caught.value))


def test_guidance_that_does_not_fit_the_sub_tokens_is_refused_before_the_training(ar_settings):
    with pytest.raises(InputError, match="guidance takes one value, or one for each of the 2"):
        ar_settings(guidance=(2.0,))


def test_what_is_written_of_settings_does_not_depend_on_how_they_were_given():
    given = replace(TOKENIZER, learning_rate=1, channel_multipliers=[1, 1])
    assert given == replace(TOKENIZER, learning_rate=1.0)
    assert to_json(given)["learning_rate"] == 1.0


@pytest.mark.parametrize("name", ["ema_decay", "entropy_temperature", "learning_rate"])
def test_an_average_that_never_changes_and_a_division_by_zero_are_refused(name):
    with pytest.raises(InputError, match=f"{name}: expected a number in"):
        replace(TOKENIZER, **{name: 1.0 if name == "ema_decay" else 0.0})
