"""Which images a command or a caller gets, whatever else is drawn beside them."""

import numpy as np
import pytest
from conftest import tiny_spec
from doubles.fake_backend import FakeBackend

from m2kit import Sampling
from m2kit.errors import InputError
from m2kit.runtime.drawing import draw_images, filled, notes_of_drawing
from m2kit.runtime.engine import Engine

SAMPLING = Sampling(seed=7)


def engine(**transformer):
    spec = tiny_spec(**transformer)
    return Engine(spec, FakeBackend(spec))


def tokens_of(class_id, classes, count, **options):
    parts = list(draw_images(engine(), classes, count, SAMPLING, **options))
    tokens = np.concatenate([part.tokens for part in parts])
    return tokens[np.concatenate([part.class_ids for part in parts]) == class_id]


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_class_draws_the_same_whatever_else_is_drawn(batch):
    alone = tokens_of(2, [2], 4)
    for classes in ([1, 2], [3, 2, 0], [2, 3]):
        np.testing.assert_array_equal(tokens_of(2, classes, 4, batch=batch), alone)


def test_an_image_has_the_number_class_times_2_32_plus_place():
    numbers = [
        n for batch in draw_images(engine(), [3, 0], 2, first_image=5) for n in batch.numbers
    ]
    assert numbers == [3 * 2**32 + 5, 3 * 2**32 + 6, 5, 6]
    model = engine(classes=2**24)
    (batch,) = draw_images(model, [2**24 - 1], 1, first_image=2**32 - 1)
    assert batch.numbers.tolist() == [2**56 - 1]
    alone = model.sample([2**24 - 1], image_numbers=[2**56 - 1])
    np.testing.assert_array_equal(batch.tokens, alone)


def test_ids_of_a_seed_and_an_image_number_stay_what_they_are():
    """Images 0.. of class 0 have the numbers they always had."""
    by_number = engine().sample([0, 0, 0], SAMPLING, image_numbers=[0, 1, 2])
    np.testing.assert_array_equal(tokens_of(0, [1, 0], 3), by_number)


def test_shards_are_parts_of_the_whole():
    whole = tokens_of(1, [0, 1], 5)
    np.testing.assert_array_equal(tokens_of(1, [1], 2, first_image=3), whole[3:])


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        ([1], {"first_image": -1}, "first_image: a class has images"),
        ([1], {"first_image": 2**32 - 2}, "choose a lower one, or fewer"),
        ([1], {"first_image": True}, "first_image"),
        ([2, 1, 2], {}, "class 2 stands there several times"),
        ([4], {}, "class 4 is out of range"),
    ],
)
def test_what_cannot_be_numbered_is_refused_before_the_first_batch(classes, options, words):
    with pytest.raises(InputError, match=words):
        draw_images(engine(), classes, 3, **options)


def test_numbers_to_be_skipped_are_left_out_and_the_others_stay_what_they_are():
    whole = tokens_of(1, [0, 1], 4)
    skip = {0, 1, 3, 2**32 + 1}
    advanced = []
    begun = list(
        draw_images(
            engine(), [0, 1], 4, SAMPLING, skip=skip, batch=3,
            begin=lambda stage, total: advanced.append(total) or (lambda count: None),
        )
    )  # fmt: skip
    numbers = np.concatenate([batch.numbers for batch in begun])
    assert numbers.tolist() == [2, 2**32, 2**32 + 2, 2**32 + 3]
    assert advanced == [4 * 6]
    tokens = np.concatenate([batch.tokens for batch in begun])
    np.testing.assert_array_equal(tokens[1:], whole[[0, 2, 3]])


def test_notes_have_the_sampling_with_the_models_defaults():
    notes = notes_of_drawing(engine(), Sampling(seed=3, top_k=2))
    assert notes["sampling"] == {
        "seed": 3, "greedy": False, "guidance": [1.0, 1.0], "temperature": [1.0, 1.0],
        "top_k": [2, 2], "top_p": [1.0, 1.0],
    }  # fmt: skip


def test_the_rest_of_a_picture_is_its_drawn_rows_folded_back():
    tokens = np.arange(24).reshape(1, 6, 4, 1)
    found = filled(tokens, 10)[0, :, :, 0]
    assert found[:2].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[2].tolist() == [8, 9, 6, 7]
    assert found[3:].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert filled(tokens, 3)[0, :2, :, 0].tolist() == [[0, 1, 2, 0], [1, 2, 0, 1]]
    np.testing.assert_array_equal(filled(tokens, 24), tokens)
