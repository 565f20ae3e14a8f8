import json
from dataclasses import replace

import pytest

from m2kit.errors import InputError
from m2kit.training.recipes.run_folder import open_run

GONE = object()


def test_a_run_is_resumed_only_when_asked_and_with_its_own_settings(tmp_path, ar_settings):
    settings = ar_settings()
    with pytest.raises(InputError, match="no run to resume"):
        open_run(tmp_path / "run", settings, resume=True)
    assert open_run(tmp_path / "run", settings, resume=False) is None
    assert open_run(tmp_path / "run", settings, resume=True) is None  # killed before one epoch
    with pytest.raises(InputError, match="add --resume"):
        open_run(tmp_path / "run", settings, resume=False)
    with pytest.raises(InputError, match=r"seed 3 \(now 4\)"):
        open_run(tmp_path / "run", replace(settings, seed=4), resume=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seed": "3"}, "seed: expected a whole number, found '3'"),
        ({"seed": 2**70}, "seed: expected a whole number"),
        ({"epochs": True}, "epochs: expected a whole number, found True"),
        ({"learning_rate": None}, "learning_rate: expected a number, found None"),
        ({"bits": 8}, "bits: expected a list, found 8"),
        ({"bits": [3, "5"]}, r"bits\[1\]: expected a whole number, found '5'"),
        ({"guidance": {"a": 1}}, "guidance: expected a list"),
        ({"data": 1}, "data: expected text, found 1"),
        ({"tokenizer_sha256": []}, "tokenizer_sha256: expected text"),
        ({"odd": 1}, "odd: a field that is not known"),
        ({"width": GONE}, "width: is missing"),
    ],
    ids=str,
)
def test_forged_settings_are_one_line_that_names_the_field(
    tmp_path, ar_settings, change, complaint
):
    settings = ar_settings()
    open_run(tmp_path, settings, resume=False)
    values = json.loads((tmp_path / "settings.json").read_text()) | change
    kept = {name: value for name, value in values.items() if value is not GONE}
    (tmp_path / "settings.json").write_text(json.dumps(kept))
    refused(tmp_path, settings, complaint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"seed": NaN}', "\xff", "[" * 9999])
def test_what_is_no_settings_file_is_one_line(tmp_path, ar_settings, text):
    (tmp_path / "settings.json").write_text(text, encoding="latin-1")
    refused(tmp_path, ar_settings(), "holds no settings of such a run")


def refused(folder, settings, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        open_run(folder, settings, resume=True)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'settings.json'} holds no settings of such a run (")
    assert message.endswith("choose another folder with -o")
