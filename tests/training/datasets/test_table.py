import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from m2kit.errors import InputError
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.datasets.pictures import ArrayPictures, Collection
from m2kit.training.datasets.table import DATASETS, dataset_named, register


def test_a_name_is_one_data_set():
    register(DIGITS)  # again, which changes nothing
    assert dataset_named("digits") is DIGITS is next(iter(DATASETS.values()))
    with pytest.raises(InputError, match="there is a data set named digits already"):
        register(replace(DIGITS, title="others"))
    with pytest.raises(InputError, match="no data set 'faces'; expected digits, or the path of"):
        dataset_named("faces")


def test_a_path_is_a_data_set_too(tmp_path):
    images = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    labels, categories = np.arange(20) % 2, np.array(["a", "b"])
    np.savez(tmp_path / "few.npz", images=images, labels=labels, categories=categories)
    data = dataset_named(str(tmp_path / "few.npz"))
    collection = data.load()
    assert (data.title, collection.classes, collection.size) == ("few.npz", ("a", "b"), 8)
    assert len(collection.train.labels) + len(collection.held_out.labels) == 20


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([], "has 0 pictures to train on and 0 held out"),
        ([0, 10], r"has 10 classes, its labels are 0\.\.10"),
        ([-1, 1], r"its labels are -1\.\.1"),
    ],
)
def test_a_loader_that_contradicts_its_record_is_refused(labels, complaint):
    images = np.zeros((len(labels), 8, 8, 3), dtype=np.uint8)
    part = ArrayPictures(images, np.array(labels, dtype=np.int64), [str(n) for n in labels])
    classes = DIGITS.load().classes
    with pytest.raises(InputError, match=complaint):
        replace(DIGITS, loader=lambda: Collection(part, part, classes)).load()


@pytest.mark.parametrize("command", ["tokenizer", "ar"])
def test_help_lists_the_data_sets_without_torch_and_scikit_learn(command):
    script = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'sklearn', 'lightning'))\n"
        f"from m2kit.cli import cli; cli(['train', {command!r}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout
