"""The loop, on a backend whose logits depend on everything it was fed."""

import numpy as np
import pytest
from conftest import tiny_spec
from doubles.fake_backend import FakeBackend, FakeStep, FakeSteps

from m2kit import Sampling, contract
from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.runtime.engine import Engine

SPECS = [tiny_spec(), tiny_spec(bits=(5,)), tiny_spec(bits=(1, 2, 1)), tiny_spec(bits=(1, 1, 2, 1))]


def engine(spec=SPECS[0]):
    return Engine(spec, FakeBackend(spec))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"K{spec.sub_tokens}")
def test_an_image_does_not_depend_on_batch_order_or_neighbours(spec):
    sampling = Sampling(seed=3, guidance=2.0)
    together = engine(spec).sample([0, 1, 2, 3], sampling)
    reordered = engine(spec).sample([3, 1], sampling, image_numbers=[3, 1])
    np.testing.assert_array_equal(reordered, together[[3, 1]])
    alone = engine(spec).sample([2], sampling, image_numbers=[2])
    np.testing.assert_array_equal(alone, together[[2]])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"K{spec.sub_tokens}")
def test_what_no_later_sub_token_reads_is_not_committed(spec, monkeypatch):
    committed = []
    commit = FakeStep.commit
    monkeypatch.setattr(
        FakeStep,
        "commit",
        lambda step, at: (committed.append((contract.HIDDEN in step.inputs, at)), commit(step, at)),
    )
    engine(spec).sample([0])
    intra = [at for is_intra, at in committed if is_intra]
    assert intra == spec.transformer.positions * list(range(spec.sub_tokens - 1))
    assert len(committed) - len(intra) == spec.transformer.positions


def test_seed_image_number_and_class_each_change_the_image():
    base = engine().sample([1], Sampling(seed=3))
    assert (engine().sample([1], Sampling(seed=3)) == base).all()
    assert (engine().sample([1], Sampling(seed=4)) != base).any()
    assert (engine().sample([2], Sampling(seed=3)) != base).any()
    assert (engine().sample([1], Sampling(seed=3), image_numbers=[1]) != base).any()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"K{spec.sub_tokens}")
def test_scoring_greedy_tokens_finds_them_likeliest(spec):
    tokens = engine(spec).sample([0, 3], Sampling(greedy=True))
    logits = engine(spec).score([0, 3], tokens)
    for k, part in enumerate(logits):
        assert part.shape == (2, 2, 3, spec.vocabularies[k])
        np.testing.assert_array_equal(part.argmax(-1), tokens[..., k])


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0), (0.0, 0.5)])
def test_mixed_guidance_scales_are_applied_per_sub_token(scales):
    tokens = engine().sample([1], Sampling(greedy=True, guidance=scales))
    conditional = engine().score([1], tokens)
    unconditional = engine().score([4], tokens)
    for k, scale in enumerate(scales):
        c, u = conditional[k], unconditional[k]
        np.testing.assert_array_equal((u + scale * (c - u)).argmax(-1), tokens[..., k])


def test_no_unconditional_rows_are_computed_without_guidance(monkeypatch):
    rows = []
    monkeypatch.setattr(
        FakeBackend,
        "open_steps",
        lambda self, r: (rows.append(r), FakeSteps(SPECS[0].transformer, r))[1],
    )
    engine().sample([0, 1, 2])
    engine().sample([0, 1, 2], Sampling(guidance=(1.0, 1.0)))
    engine().sample([0, 1, 2], Sampling(guidance=(1.0, 1.5)))
    assert rows == [3, 3, 6]


def test_generate_yields_every_position_and_fills_up():
    seen = [(step.position, step.tokens.copy()) for step in engine().generate([1], Sampling())]
    assert [position for position, _ in seen] == list(range(6))
    final = seen[-1][1].reshape(6, 2)
    for position, tokens in seen:
        flat = tokens.reshape(6, 2)
        np.testing.assert_array_equal(flat[: position + 1], final[: position + 1])
        assert (flat[position + 1 :] == 0).all()
    np.testing.assert_array_equal(engine().sample([1]), seen[-1][1])


def test_the_double_notices_calls_out_of_order():
    step = FakeSteps(SPECS[0].transformer, 1).inter
    with pytest.raises(RuntimeError, match="out of order"):
        step.run(1)
    step.run(0)
    step.commit(0)
    with pytest.raises(RuntimeError, match="without run"):
        step.commit(1)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([4], r"class 4 is out of range: this model has classes 0\.\.3"),
        ([-1], "class -1 is out of range"),
        ([], "non-empty"),
        ([0.5], "integers"),
        ([[0]], "list of integers"),
        (["a"], "list of integers"),
        ([2**70], "out of range"),
    ],
)
def test_bad_classes_are_refused_before_any_work(classes, words):
    with pytest.raises(InputError, match=words):
        engine().generate(classes)


def test_scoring_checks_its_tokens():
    with pytest.raises(InputError, match=r"shape \(1, 2, 3, 2\), found \(1, 1, 3, 2\)"):
        engine().score([0], np.zeros((1, 1, 3, 2), int))


def test_a_tokenizer_alone_encodes_and_decodes_but_does_not_generate():
    alone = engine(ModelSpec(SPECS[0].tokenizer, None))
    tokens = alone.encode(np.zeros((1, 3, 4, 6), np.float32))
    assert tokens.shape == (1, 2, 3, 1)
    assert alone.decode(tokens).shape == (1, 3, 4, 6)
    with pytest.raises(InputError, match="tokenizer only"):
        alone.sample([0])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((3, 4, 4), np.float32), r"\(B, 3, H, W\), B at least 1, found \(3, 4, 4\)"),
        (np.zeros((1, 1, 4, 4), np.float32), "shape"),
        (np.zeros((0, 3, 4, 4), np.float32), "B at least 1"),
        (np.zeros((1, 3, 4, 4), np.int32), "or uint8, found int32"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"shape \(B, 3, H, W\)"),
        ([[1.0], [1.0, 2.0]], "numpy cannot read this list"),
        (None, "shape"),
        (np.full((1, 3, 4, 4), 255.0), r"\[-1, 1\], found 255"),
        (np.full((1, 3, 4, 4), np.nan), r"\[-1, 1\]"),
        (np.zeros((1, 3, 4, 5), np.float32), "multiples of 2, found 4 x 5"),
        (np.zeros((1, 3, 2, 2), np.float32), "single latent position"),
    ],
)
def test_bad_images_are_refused(images, words):
    with pytest.raises(InputError, match=words):
        engine().encode(images)


def test_an_engine_closes_its_backend():
    backend = FakeBackend(SPECS[0])
    with Engine(SPECS[0], backend):
        assert not backend.closed
    assert backend.closed


EACH = [
    Sampling(seed=3, guidance=2.0),
    Sampling(seed=3),
    Sampling(seed=4, guidance=2.0, temperature=0.7),
    Sampling(seed=3, guidance=2.0, top_k=3, top_p=0.8),
    Sampling(greedy=True),
    Sampling(seed=9, guidance=2.0),
    Sampling(seed=5, guidance=(1.0, 3.0)),
]


def drawn(engine, samplings, numbers, stopped=lambda: ()):
    classes = [number % 4 for number in numbers]
    return [*engine.generate(classes, samplings, image_numbers=numbers, stopped=stopped)][-1]


def test_images_of_one_batch_are_each_drawn_by_their_own_options():
    together = drawn(engine(), EACH, range(7)).tokens
    for number, sampling in enumerate(EACH):
        alone = drawn(engine(), sampling, [number]).tokens
        np.testing.assert_array_equal(together[[number]], alone, str(sampling))
    with pytest.raises(InputError, match="one for each of the 2 images, found 7"):
        engine().generate([0, 1], EACH)


def test_guided_images_alone_have_rows_without_a_class():
    rows = engine().rows_of(
        np.array([1, 2, 3]), [s.resolve(2, None) for s in (EACH[1], EACH[0], EACH[2])]
    )
    assert rows.classes.tolist() == [1, 2, 3, 4, 4]
    assert rows.images.tolist() == [0, 1, 2, 1, 2]
    kept, which = rows.of_images(np.array([0, 2]))
    assert which.tolist() == [0, 2, 4]
    assert kept.classes.tolist() == [1, 3, 4] and kept.images.tolist() == [0, 1, 1]


def test_a_stopped_image_leaves_the_others_as_they_were():
    whole = drawn(engine(), EACH, range(7)).tokens.reshape(7, 6, 2)
    for at in (0, 3):
        asked = []

        def stopped(asked=asked, at=at):
            asked.append(len(asked))
            return {0, 2, 5} if len(asked) > at else set()

        last = drawn(engine(), EACH, range(7), stopped)
        found = last.tokens.reshape(7, 6, 2)
        assert asked == list(range(6)) and last.position == 5
        np.testing.assert_array_equal(found[[1, 3, 4, 6]], whole[[1, 3, 4, 6]])
    everything = engine().generate([0, 1], stopped=lambda: (1, 0))
    assert list(everything) == []
