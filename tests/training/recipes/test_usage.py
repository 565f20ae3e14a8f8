"""What the values of options alone forbid is an error of usage, told before torch is loaded."""

import sys

import pytest
from conftest import run_m2kit

from m2kit.errors import InputError
from m2kit.training.datasets.cut import Cut
from m2kit.training.recipes.settings import RunSettings

TOKENIZER, AR = "train tokenizer", "train ar"


@pytest.fixture
def torchless(tmp_path):
    """An environment in which torch cannot be imported, as if it took forever."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    return {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (f"{TOKENIZER} --drops 3,4", "leave out --drops: without effect, as the learning rate f"),
        (f"{TOKENIZER} --decay drops", "found decay drops and no drops; give both or neither"),
        (f"{TOKENIZER} --decay drops --drops 3 --floor 0.1", "leave out --floor: without effect"),
        (f"{AR} --decay drops --drops 3 --flat 0.1", "leave out --flat: without effect"),
        (f"{TOKENIZER} --decay drops --drops 0", "drops[0]: expected a number in"),
        (f"{AR} --steps 7 --epochs 2", "leave out --epochs: without effect, as the run's length"),
        (f"{AR} --warm-up 0 --warm-up-from 0.5", "leave out --warm-up-from: without effect"),
        (
            f"{TOKENIZER} --adversary-width 32 --lecam-weight 1",
            "leave out --adversary-width, --lecam-weight: without effect, as there is no adversary",
        ),
        (f"{TOKENIZER} --perceptual-weight 2", "leave out --perceptual-weight: without effect"),
        (f"{TOKENIZER} --freeze-encoder", "a frozen encoder needs a checkpoint to start from"),
        (f"{TOKENIZER} --base-channels 33", "base_channels must be a multiple of 32"),
        (f"{TOKENIZER} --size 20", "image sides must be multiples of 8, found 20 x 20"),
        (f"{TOKENIZER} --frames 4", "T must be 1 plus a multiple of 2, found 4 (next valid: 3 and"),
        (f"{TOKENIZER} --frames 5 --one-of-group", "films are in no groups"),
        (
            f"{TOKENIZER} --frames 5 --adversary blur",
            "the blurring adversary judges pictures alone",
        ),
        (f"{TOKENIZER} --size 1000000", "1000000 is not in the range 1<=x<=4096"),
        (f"{TOKENIZER} --workers 100000", "100000 is not in the range 0<=x<=256"),
        (f"{TOKENIZER} --batch 30 --accumulate 4", "a batch of 30 cannot be divided among 1"),
        (f"{AR} --batch 30 --devices 4", "a batch of 30 cannot be divided among 4 processes"),
        (f"{AR} --bits 2000000000", "bits[0]: expected a whole number in 1..24"),
        (f"{AR} --heads 3", "width must be heads times a multiple of 4"),
        (f"{AR} --guidance 1,2,3", "guidance takes one value, or one for each of the 2"),
        ("describe x.pt --data digits --size 1000000", "1000000 is not in the range 1<=x<=4096"),
    ],
)
def test_mistakes_in_options_end_with_status_2_before_torch_is_loaded(
    tmp_path, torchless, command, told
):
    done = run_m2kit(*command.split(), cwd=tmp_path, check=False, env=torchless)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr.splitlines()[-1]


def test_what_a_preset_sets_is_not_told_to_be_left_out(tmp_path, torchless):
    """Drops go where another decay is chosen; the test ends at the import of torch."""
    for more in ("--decay linear", "--adversary none", "--perceptual none"):
        words = f"{TOKENIZER} --preset tokenizer-128 --batch 8 {more} --dry-run"
        done = run_m2kit(*words.split(), cwd=tmp_path, check=False, env=torchless)
        assert done.returncode == 1, done.stderr
        assert "training needs the package torch" in done.stderr


def test_python_is_refused_the_same():
    values = {"data": "x", "epochs": 2, "batch": 4, "learning_rate": 0.1, "ema_decay": 0.5}
    for decay, drops in (("linear", (1.0,)), ("drops", ())):
        with pytest.raises(InputError, match="give both or neither"):
            RunSettings(**values, seed=0, decay=decay, drops=drops)
    with pytest.raises(InputError, match="4,096 pixels at most, found 8 x 5,000"):
        Cut((8, 5000))
