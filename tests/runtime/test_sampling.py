from unittest.mock import patch

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from m2kit import Sampling
from m2kit.errors import InputError
from m2kit.runtime import sampling as module
from m2kit.runtime.arguments import image_numbers_of
from m2kit.runtime.sampling import (
    Sampler,
    Space,
    draw,
    drawn,
    guide,
    probabilities,
    uniforms,
)
from m2kit.sampling import SamplingDefaults


@pytest.mark.parametrize(
    ("seed", "number", "first"),
    [
        (0, 0, [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]),
        (1, 0, [0.3035680343067586, 0.8487087496857769, 0.1561347780434731]),
        (0, 1, [0.8133540609793564, 0.7513314251083365, 0.6716490436969984]),
        (0, 2**63, [0.5849458304897319, 0.5024474599984217, 0.09156485321371732]),
        (2**64 - 1, 2**64 - 1, [0.4268615279451663, 0.5715123063997486, 0.9912623766802293]),
    ],
)
def test_the_first_uniforms_never_change(seed, number, first):
    found = uniforms(seed, np.array([number], np.uint64), 3)[0]
    assert found.tolist() == first


def test_uniforms_of_an_image_do_not_depend_on_its_neighbours():
    alone = uniforms(7, np.array([5], np.uint64), 40)
    together = uniforms(7, np.array([9, 5, 2], np.uint64), 40)
    np.testing.assert_array_equal(alone[0], together[1])
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize(
    "name",
    sorted(key for key in np.load(GOLDEN / "ar_tiny.npz") if key.startswith("sampler_probs")),
)
def test_distributions_are_those_of_the_official_sampler(name, golden):
    data = golden("ar_tiny")
    temperature, top_k, top_p = (part[1:] for part in name.split("_")[2:])
    found = probabilities(
        data["sampler_logits"],
        temperature=float(temperature),
        top_k=int(top_k),
        top_p=float(top_p),
    )
    np.testing.assert_allclose(found, data[name], atol=1e-6)


def test_ties_at_the_kth_logit_are_all_kept():
    logits = np.array([[3.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    kept = probabilities(logits, temperature=1.0, top_k=2, top_p=1.0)[0] > 0
    assert kept.tolist() == [True, True, True, True, False]


def test_the_token_that_crosses_p_is_kept():
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    for p, count in ((0.4, 1), (0.6, 2), (0.85, 3), (1.0, 3)):
        kept = probabilities(logits, temperature=1.0, top_k=0, top_p=p)[0] > 0
        assert kept.sum() == count


def test_draw_takes_the_first_id_past_the_uniform():
    probability = np.array([[0.0, 0.25, 0.0, 0.75, 0.0]] * 4)
    uniform = np.array([0.0, 0.2499, 0.25, 1 - 2.0**-53])
    assert draw(probability, uniform).tolist() == [1, 1, 3, 3]


@given(st.integers(0, 2**32))
def test_draw_never_takes_an_id_without_probability(seed):
    random = np.random.default_rng(seed)
    probability = random.random((8, 33)) * (random.random((8, 33)) < 0.2)
    probability[:, 7] += 1e-300
    ids = draw(probability, np.full(8, 1 - 2.0**-53))
    assert (probability[np.arange(8), ids] > 0).all()


def odd_logits(random, rows, size):
    """Logits of several kinds: equal ones, those of half precision, whole, some -Inf, one far above
    the others, some NaN."""
    logits = random.standard_normal((rows, size)) * random.choice([0, 0.01, 1, 20, 1000])
    kind = random.integers(7)
    if kind == 1:
        logits = logits.astype(np.float16)
    elif kind == 2:
        logits = np.rint(logits)
    elif kind == 3:
        logits[random.random(logits.shape) < 0.3] = -np.inf
        logits[:, -1] = 1
    elif kind == 4:
        logits[:, random.integers(size)] += 50
    elif kind == 5:
        logits[0, 0] = np.nan
    return logits.astype(np.float32)


def odd_top_p(random, logits, temperature):
    """One in the middle, at an end, or at the very probability that the first row's largest few
    have together, or beside it."""
    with np.errstate(invalid="ignore"):
        own = probabilities(logits[:1], temperature=temperature[:1], top_k=0, top_p=1.0)[0]
    sums = np.cumsum(np.sort(own)[::-1])
    at = sums[random.integers(len(sums))] if np.isfinite(sums).all() else 0.5
    p = random.choice([1, 0.9, random.random(), 1e-12, 1 - 1e-15, at, np.nextafter(at, 0)])
    return float(np.clip(p, 1e-12, 1))


def odd_uniform(random, probability):
    """Any, the ends of the range, or the very numbers at which one id ends and the next begins."""
    sums = np.cumsum(probability, axis=-1)
    at = (sums / sums[:, -1:])[:, random.integers(probability.shape[-1])]
    chosen = random.choice(5)
    ends = [random.random(len(at)), at, np.nextafter(at, 0), np.zeros(len(at)), np.ones(len(at))]
    return np.clip(np.nan_to_num(ends[chosen]), 0, 1 - 2.0**-53)


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_the_fast_way_draws_the_same_ids(seed):
    random = np.random.default_rng(seed)
    rows, size = random.choice([1, 3, 8]), random.choice([2, 5, 64, 100, 1000, 4096])
    logits = odd_logits(random, rows, size)
    temperature = random.choice([1e-3, 0.7, 1, 1, 1e4], (rows, 1))
    options = {
        "temperature": temperature,
        "top_k": int(random.choice([0, 0, 1, 5, size // 2, size - 1, size, 2**40])),
        "top_p": odd_top_p(random, logits, temperature),
    }
    probability = probabilities(logits, **options)
    uniform = odd_uniform(random, probability)
    with patch.object(module, "_MANY", 0):
        found = drawn(logits, uniform, **options, space=Space())
    np.testing.assert_array_equal(found, draw(probability, uniform))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("top_k", [0, 600])
def test_ordinary_draws_take_the_fast_way(top_k, top_p):
    random = np.random.default_rng(3)
    logits = random.standard_normal((32, 4096)).astype(np.float16).astype(np.float32)  # many equal
    options = {"temperature": np.ones((32, 1)), "top_k": top_k, "top_p": top_p}
    uniform = random.random(32)
    expected = draw(probabilities(logits, **options), uniform)
    with patch.object(module, "probabilities", side_effect=AssertionError("the slow way")):
        found = drawn(logits, uniform, **options, space=Space())
    np.testing.assert_array_equal(found, expected)


def test_every_image_of_a_batch_is_drawn_by_its_own_options():
    random = np.random.default_rng(4)
    ways = [
        {"guidance": 4}, {"guidance": 4, "top_k": 9}, {"top_p": 0.8, "temperature": 1.2},
        {"guidance": (1, 3), "top_p": 0.8}, {"guidance": 0}, {"top_k": 9, "top_p": 0.8},
        {"greedy": True, "guidance": 2}, {},
    ]  # fmt: skip
    samplings = [Sampling(seed=i, **way).resolve(2, None) for i, way in enumerate(ways * 3)]
    twice = [sampling.guided for sampling in samplings]
    sampler = Sampler(samplings, np.arange(len(samplings), dtype=np.uint64), positions=3)
    for position, size in ((0, 2000), (1, 30), (2, 2000)):
        logits = random.standard_normal((len(samplings) + sum(twice), size)).astype(np.float32)
        under_no_class = iter(logits[len(samplings) :])
        found = sampler.draw(position, 1, logits)
        for image, (own, id_) in enumerate(zip(samplings, found, strict=True)):
            rows = [logits[image], next(under_no_class)] if own.guided else [logits[image]]
            guided = guide(np.stack(rows), 1, own.guidance[1])
            options = {"temperature": own.temperature[1], "top_k": own.top_k[1]}
            probability = probabilities(guided, **options, top_p=own.top_p[1])
            uniform = uniforms(own.seed, np.array([image], np.uint64), 6)[:, 2 * position + 1]
            assert id_ == (guided.argmax() if own.greedy else draw(probability, uniform))


def test_guidance_mixes_conditional_and_unconditional_rows():
    logits = np.array([[1.0, 2.0], [0.5, 0.0]], np.float32)
    np.testing.assert_allclose(guide(logits, 1, 3.0), [[2.0, 6.0]])
    np.testing.assert_array_equal(guide(logits, 1, 1.0), logits[:1])
    np.testing.assert_array_equal(guide(logits, 1, 0.0), logits[1:])
    np.testing.assert_array_equal(guide(logits, 2, 1.0), logits)


def test_defaults_come_from_the_model_and_then_from_m2kit():
    own = SamplingDefaults.of({"guidance": [1.9, 2.0], "temperature": [3, 3]}, 2)
    found = Sampling(temperature=0.5).resolve(2, own)
    assert found.guidance == (1.9, 2.0)
    assert found.temperature == (0.5, 0.5)
    assert found.top_k == (0, 0)
    assert found.top_p == (1.0, 1.0)
    assert found.guided
    assert not Sampling(guidance=1).resolve(2, None).guided
    assert Sampling(guidance=(1, 3)).resolve(2, None).guided


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"guidance": (1, 2, 3)}, "each of the 2 sub-tokens; found 3"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"top_k": 2**70}, "top_k must be"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"guidance": "2"}, "guidance must be"),
        ({"temperature": 1e-310}, "temperature must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"top_p": 1.1}, "top_p must be"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Sampling(**options).resolve(2, None)


def test_image_numbers_are_checked():
    assert image_numbers_of(None, 3).tolist() == [0, 1, 2]
    assert image_numbers_of([2**64 - 1], 1).tolist() == [2**64 - 1]
    for bad in ([1], [-1, 0], [0, 2**64], [0, 1.7], [0, "x"], [0, True]):
        with pytest.raises(InputError, match="image_numbers must be 2 integers"):
            image_numbers_of(bad, 2)


def test_greedy_takes_the_arg_max_of_guided_logits():
    sampling = Sampling(greedy=True, guidance=2.0).resolve(1, None)
    sampler = Sampler([sampling], np.array([0], np.uint64), positions=1)
    logits = np.array([[1.0, 1.5], [0.0, 1.2]], np.float32)  # conditional alone would take 1
    assert sampler.draw(0, 0, logits).tolist() == [0]
