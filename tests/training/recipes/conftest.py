"""What the tests of the recipes share."""

import signal
from dataclasses import replace

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT

from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.checkpoints.writing import write_tokenizer_checkpoint
from m2kit.training.datasets.digits import DIGITS
from m2kit.training.datasets.pictures import Collection, SomePictures
from m2kit.training.datasets.table import DATASETS
from m2kit.training.recipes import loop, page
from m2kit.training.recipes.settings import settings_for


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """The digits example's tokenizer as a file of its own."""
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    tensors = model_from_checkpoint(checkpoint).tokenizer.state_dict()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.pt"
    spec = {"tokenizer": checkpoint.spec.to_json()["tokenizer"], "transformer": None}
    notes = {"spec": spec, "training": {"ema_decay": 0.9}}
    write_tokenizer_checkpoint(path, tensors, tensors, ema_decay=0.9, notes=notes)
    return path


@pytest.fixture
def ar_settings(tokenizer_file):
    """Makes the settings of a small AR run on that tokenizer; keywords replace some."""

    def make(**changes):
        values = {
            "data": "digits", "width": 32, "heads": 2, "inter_layers": 1, "intra_layers": 1,
            "ffn_width": 32, "bits": (3, 5), "epochs": 3, "batch": 128, "learning_rate": 1e-3,
            "weight_decay": 0.05, "dropout": 0.1, "class_dropout": 0.1, "ema_decay": 0.9,
            "versions": 1, "guidance": (2.0, 2.0), "seed": 3,
        }  # fmt: skip
        return settings_for(tokenizer_file, **values | changes)

    return make


@pytest.fixture(scope="module")
def few():
    """Puts the first images of digits into the table, under the name "few"."""
    whole = DIGITS.load()
    halves = (SomePictures(part, np.arange(128)) for part in (whole.train, whole.held_out))
    collection = Collection(*halves, whole.classes, whole.size)
    data = replace(DIGITS, name="few", loader=lambda: collection)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DATASETS, "few", data)
        yield data


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder of 12 films of 6 to 8 frames, of which two are held out; another one is too short,
    and what another file holds is no film."""
    pytest.importorskip("av")
    from doubles.film_files import LOSSLESS, moving, write_film

    folder = tmp_path_factory.mktemp("films")
    for part, count in (("train", 10), ("val", 2)):
        (folder / part).mkdir()
        for index in range(count):
            frames = moving(6 + index % 3, 32, 32 + 8 * (index % 2))
            write_film(folder / part / f"{index}.mp4", frames, **LOSSLESS)
    write_film(folder / "train" / "short.mp4", moving(3, 32, 32), **LOSSLESS)
    (folder / "val" / "damaged.mp4").write_bytes(b"none")
    return folder


@pytest.fixture
def uncurved(monkeypatch):
    """Runs draw no curves, which takes longer than their steps."""
    monkeypatch.setattr(loop, "plot_curves", lambda *_: None)
    monkeypatch.setattr(page, "curves_png", lambda *_, **__: b"")


@pytest.fixture(autouse=True)
def heeds_interrupts():
    """A process in the background of a shell ignores SIGINT, and so would the runs in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
