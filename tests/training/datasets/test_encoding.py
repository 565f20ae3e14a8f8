"""Data sets as token caches, of an engine that runs the PyTorch tokenizer."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT
from PIL import Image

from m2kit.errors import FolderError, InputError
from m2kit.precision import Precision
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels
from m2kit.token_cache import open_cache
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets import encoding
from m2kit.training.datasets.cut import Cut, cut_pixels
from m2kit.training.datasets.encoding import encode_data
from m2kit.training.datasets.pictures import line_of_unread
from m2kit.training.datasets.table import dataset_named
from m2kit.training.torch_backend import TorchBackend

RANDOM = np.random.default_rng(0)


@pytest.fixture
def shapes(tmp_path):
    """Twelve pictures of two classes, wider than high, of which a fifth one is damaged."""
    for name in ("b", "a"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for index in range(6):
            pixels = RANDOM.integers(0, 256, (16, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shapes" / name / f"{index}.png")
    return tmp_path / "shapes"


@pytest.fixture(scope="module")
def model():
    checkpoint = read_checkpoint(DIGITS_CHECKPOINT)
    return model_from_checkpoint(checkpoint), checkpoint.source


@pytest.fixture
def encode(model, shapes):
    """Encodes the shapes; keywords replace options."""
    network, source = model

    def run(output, info=None, **changes):
        with Engine(network.spec, TorchBackend(network), info=info) as engine:
            options = {"crops": 3, "size": 16, "flip": True, "seed": 7} | changes
            return encode_data(engine, source, dataset_named(str(shapes)), output, **options)

    return run


def test_a_cache_has_the_crops_of_a_training_of_its_seed(encode, shapes, model, tmp_path):
    done = encode(tmp_path / "tokens.npz")
    assert (done.pictures, done.held_out, done.crops, done.files) == (10, 2, 32, 1)
    cache = open_cache(tmp_path / "tokens.npz")
    assert cache.classes == ("a", "b")
    collection = dataset_named(str(shapes)).load()
    assert cache.train.groups == list(collection.train.groups)
    assert cache.held_out.labels.tolist() == collection.held_out.labels.tolist() == [0, 1]
    network, source = model
    assert cache.making.tokenizer_sha256 == source.checkpoint_sha256
    cut = Cut((16, 16), "random", flip=True, seed=7)
    with Engine(network.spec, TorchBackend(network)) as engine:
        for index in (0, 9):
            picture = collection.train.read(index)
            pixels = [cut_pixels(picture, cut, cut.random(crop, index)) for crop in range(3)]
            expected = engine.encode(images_from_pixels(np.stack(pixels)))
            assert len({image.tobytes() for image in pixels}) > 1
            for crop in range(3):
                np.testing.assert_array_equal(cache.train.read(index, crop), expected[crop])
        middle = cut_pixels(collection.held_out.read(1), Cut((16, 16)), RANDOM)
        expected = engine.encode(images_from_pixels(middle[None]))[0]
        np.testing.assert_array_equal(cache.held_out.read(1, 0), expected)


def test_an_encoding_that_was_stopped_goes_on_and_ends_alike(encode, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_ROWS", 12)
    whole = encode(tmp_path / "whole", batch=4)
    assert (whole.files, whole.there_before) == (4, 0)
    stopped, calls = Engine.encode, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return stopped(*arguments, **options)

    monkeypatch.setattr(Engine, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "cut", batch=4)
    monkeypatch.setattr(Engine, "encode", stopped)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["tokens-00000.npz"]
    with pytest.raises(InputError, match=r"expected 4 token files, found 1; tokens-00001\.npz"):
        open_cache(tmp_path / "cut")
    assert encode(tmp_path / "cut", batch=4).there_before == 1
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    for change in ({"seed": 8}, {"crops": 2}, {"flip": False}, {"place": "centre"}):
        (name,) = change
        with pytest.raises(FolderError, match=f"is of another encoding: its {name} is "):
            encode(tmp_path / "cut", **change)
    for precision in (Precision.FLOAT32, Precision.INT8):  # int8 is of the step graphs alone
        info = SimpleNamespace(precision=precision)
        assert encode(tmp_path / "cut", info=info).there_before == 4
    half = SimpleNamespace(precision=Precision.FLOAT16)
    with pytest.raises(FolderError, match="its precision is float32, not float16; remove it"):
        encode(tmp_path / "cut", info=half)


def test_an_unreadable_picture_is_replaced_by_the_next_and_named(encode, shapes, tmp_path):
    train = dataset_named(str(shapes)).load().train
    (shapes / train.groups[3]).write_bytes(b"no")
    done = encode(tmp_path / "tokens.npz", crops=2)
    assert done.unread == (train.groups[3],)
    cache = open_cache(tmp_path / "tokens.npz")
    assert cache.train.groups[3] == cache.train.groups[4] == train.groups[4]
    for crop in range(2):
        np.testing.assert_array_equal(cache.train.read(3, crop), cache.train.read(4, crop))


def test_a_line_of_unread_pictures_is_short_and_printable():
    line = line_of_unread(["a.tar: \x1b[31m", "b" * 300, *"cdefghijkl"])
    assert line.startswith("12 pictures could not be read, and the next ones stood in for them: ")
    assert line.endswith(f"'a.tar: \\x1b[31m', {'b' * 200}, c, d, e, f, g, h, i, j and 2 more")


def test_what_cannot_be_noted_is_refused_before_anything_is_encoded(encode, shapes, tmp_path):
    with pytest.raises(InputError, match=r"crops: expected a whole number in 1\.\.1000"):
        encode(tmp_path / "tokens.npz", crops=1001)
    assert not (tmp_path / "tokens.npz").exists()


def test_pictures_of_several_sizes_need_one(encode, tmp_path):
    with pytest.raises(InputError, match="are of several sizes; name the one to encode"):
        encode(tmp_path / "tokens.npz", size=None)


def test_a_token_cache_is_no_data_set_of_pictures(encode, tmp_path):
    encode(tmp_path / "tokens.npz")
    with pytest.raises(InputError, match="holds tokens, of which an AR model alone is trained"):
        dataset_named(str(tmp_path / "tokens.npz"))


def test_an_engine_encodes_a_data_set_without_torch(digits_engine, shapes, tmp_path):
    (shapes / "a" / "0.png").rename(shapes / "a" / "\x1b[31m.png").write_bytes(b"no")
    script = (
        "import sys; from m2kit.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'torch', 'lightning', 'sklearn'} & set(sys.modules)"
    )
    words = ["encode", shapes, "--crops", 2, "--resize", 16, "--engine", digits_engine]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words), "-o", "tokens"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 picture could not be read" in done.stderr
    assert r"\x1b[31m.png'" in done.stderr
    assert "\x1b[31m" not in done.stderr
    cache = open_cache(tmp_path / "tokens")
    assert len(cache.train.labels) == 10
    assert replace(cache.making, parts=1).crops == 2
