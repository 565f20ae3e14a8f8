import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from m2kit.errors import InputError
from m2kit.training.datasets.dataset import LabelledImages
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.datasets.table import DATASETS, dataset_named, register


def test_a_name_is_one_data_set():
    register(DIGITS)  # again, which changes nothing
    assert dataset_named("digits") is DIGITS is next(iter(DATASETS.values()))
    with pytest.raises(InputError, match="there is a data set named digits already"):
        register(replace(DIGITS, classes=3))
    with pytest.raises(InputError, match="no data set 'faces'; the data sets are digits"):
        dataset_named("faces")


@pytest.mark.parametrize(
    ("shape", "labels", "complaint"),
    [
        ((2, 3, 8, 8), [0, 1], r"images \[2, 3, 32, 32\], its loader gave \[2, 3, 8, 8\]"),
        ((2, 1, 32, 32), [0, 1], r"its loader gave \[2, 1, 32, 32\]"),
        ((3, 3, 32, 32), [0, 1], r"its loader gave \[3, 3, 32, 32\]"),
        ((0, 3, 32, 32), [], r"its loader gave \[0, 3, 32, 32\]"),
        ((2, 3, 32, 32), [0, 10], r"says 10 classes, its labels are 0\.\.10"),
        ((2, 3, 32, 32), [-1, 1], r"its labels are -1\.\.1"),
    ],
)
def test_a_loader_that_contradicts_its_record_is_refused(shape, labels, complaint):
    part = LabelledImages(torch.zeros(shape), torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(InputError, match=complaint):
        replace(DIGITS, loader=lambda: (part, part)).load()


@pytest.mark.parametrize("command", ["tokenizer", "ar"])
def test_help_lists_the_data_sets_without_torch_and_scikit_learn(command):
    script = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'sklearn', 'lightning'))\n"
        f"from m2kit.cli import cli; cli(['train', {command!r}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[digits]" in done.stdout
