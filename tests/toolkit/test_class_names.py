import pytest

from m2kit.class_names import _imagenet, class_ids, names_in_notes
from m2kit.errors import InputError


def test_numbers_names_and_wordnet_ids_in_any_case_name_classes():
    values = ["207,1", "Golden Retriever, tench", "n02099601", "tinca tinca"]
    assert class_ids(values, 1000) == [207, 1, 207, 0, 207, 0]
    assert class_ids(["tench, Tinca tinca"], 1000) == [0]  # a label pasted whole
    assert class_ids([], 1000) == []


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("goldfish", 1),
        ("bald eagle", 22),
        ("tiger", 292),
        ("volcano", 980),
        ("bathroom tissue", 999),
        ("Felis concolor", 286),
    ],
)
def test_numbers_are_those_of_the_published_models(name, number):
    assert class_ids([name], 1000) == [number]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crane", r"several classes: give one of 134 \(large long-necked .*; 517 \(lifts"),
        ("golden retreiver", "did you mean golden retriever"),
        ("", "no class is named ''"),
        ("#", "no class is named '#'"),
        ("1_0", "no class is named '1_0'"),
    ],
)
def test_a_name_of_no_class_or_several_is_one_error(name, words):
    with pytest.raises(InputError, match=words):
        class_ids([name], 1000)


def test_a_models_own_names_are_its_classes():
    own = ("Food & Drink", "Sun, Moon", "flags", "Flags")
    assert class_ids(["food & drink,0-1", "sun, moon"], 4, own) == [0, 0, 1, 1]
    with pytest.raises(InputError, match=r"several classes: give one of 2 \(flags\); 3 \(Flags\)"):
        class_ids(["FLAGS"], 4, own)
    with pytest.raises(InputError, match="no class is named 'foods & drink', did you mean food"):
        class_ids(["foods & drink"], 4, own)


def test_folders_named_by_wordnet_ids_are_classes_of_imagenet_and_others_are_not():
    folders = tuple(wordnet_id for wordnet_id, *_ in _imagenet())
    assert class_ids(["tench", "n02099601"], 1000, folders) == [0, 207]
    with pytest.raises(InputError, match="no class is named 'tench'"):
        class_ids(["tench"], 1000, folders[::-1])


def test_names_in_notes_are_taken_where_they_fit():
    assert names_in_notes({"classes": ["a", "b"]}, 2) == ("a", "b")
    for odd in ({}, {"classes": "ab"}, {"classes": ["a"]}, {"classes": ["a", 1]}):
        assert names_in_notes(odd, 2) == ()


def test_a_model_without_names_takes_numbers():
    with pytest.raises(InputError, match=r"this model has 10\), found 'tench'"):
        class_ids(["tench"], 10)


def test_ranges_and_all_name_classes():
    assert class_ids(["0-3,7", "9-9"], 10) == [0, 1, 2, 3, 7, 9]
    assert class_ids(["all"], 10) == list(range(10))
    assert class_ids(["tench, 2-4", "volcano"], 1000) == [0, 2, 3, 4, 980]
    assert len(class_ids(["All"], 1000)) == 1000


@pytest.mark.parametrize("text", ["3-1", "0-10", "5-99999999999999999999"])
def test_a_range_that_is_not_of_this_model_is_one_error(text):
    with pytest.raises(InputError, match=rf"a range of classes .* in 0\.\.9, found '{text}"):
        class_ids([text], 10)


@pytest.mark.parametrize("text", ["1-", "1-2-3", "--1", "1..3"])
def test_what_looks_like_a_range_and_is_none_is_one_error(text):
    with pytest.raises(InputError, match="expected class numbers such as"):
        class_ids([text], 10)
