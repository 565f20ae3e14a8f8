"""What each command says of a video tokenizer: the right thing, or one line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import GOLDEN
from PIL import Image

import m2kit
from m2kit.cli import cli
from m2kit.token_file import token_file_from_ids, write_tokens

pytest.importorskip("torch")
VIDEO = GOLDEN / "video_tiny.ckpt"


@pytest.fixture
def here(exported, tmp_path, monkeypatch):
    """A folder with the engine, a picture, and tokens of a clip."""
    (tmp_path / "v.engine").symlink_to(exported(VIDEO)[1])
    (tmp_path / "v.bundle").symlink_to(exported(VIDEO)[0])
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with m2kit.open_engine(tmp_path / "v.engine") as engine:
        tokens = engine.encode(np.zeros((1, 3, 5, 16, 16), np.float32))
        write_tokens(tmp_path / "t.npz", token_file_from_ids(tokens, engine.spec))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("encode a.png", "takes a clip (T, H, W), no picture"),
        ("encode digits --crops 1", "takes a clip (T, H, W), no picture"),
        ("reconstruct a.png", "takes a clip (T, H, W), no picture"),
        ("decode t.npz", "takes a clip (T, H, W), no picture"),
        ("describe v.engine --data digits", "takes a clip (T, H, W), no picture"),
        ("evaluate reconstruction v.engine --data digits", "takes a clip (T, H, W), no picture"),
        (
            "evaluate reconstruction v.engine --data digits --original-resolution",
            "takes a clip (T, H, W), no picture",
        ),
        ("generate --class 1", "holds a tokenizer only"),
        ("sample --per-class 1 -o s", "holds a tokenizer only"),
        ("bench --rounds 1 --no-baseline", "holds a tokenizer only"),
    ],
)
def test_what_it_cannot_do_is_one_line(here, words, line):
    done = run(*words.split())
    assert done.exit_code == 1 and line in done.stderr, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_what_it_can_do(here):
    for words in ("describe v.engine", "verify v.engine", "verify v.bundle", "inspect v.bundle"):
        done = run(*words.split(), "--json")
        assert done.exit_code == 0, done.output
    told = json.loads(run("describe", "v.engine", "--json").stdout)
    assert (told["tokenizer_family"], told["downsampling"]) == ("video", [1, 2, 2])
    assert told["assumed_frames"] == 17
    told = json.loads(run("describe", "t.npz", "--json").stdout)
    assert (told["grid"], told["image_size"]) == ([5, 8, 8], [5, 16, 16])


def test_a_tokenizer_is_compared_at_the_size_that_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("export", "--ckpt", VIDEO, "--image-size", "3,16,8", "--spec", '{"frames": 3}')
    assert done.exit_code == 0, done.output
    assert "assuming bit_order lsb" in done.stderr and "assuming frames" not in done.stderr
    with np.load("video_tiny.bundle/reference.npz") as reference:
        assert reference["images"].shape[2:] == (3, 16, 8)
    done = run("export", "--ckpt", VIDEO, "--image-size", "3,15,8", "-o", "x.bundle")
    assert done.exit_code == 1 and "image size 3,15,8: image sides must be" in done.stderr
    done = run("export", "--ckpt", VIDEO, "--image-size", "1000000,8,8", "-o", "x.bundle")
    assert done.exit_code == 1 and "takes 1,048,576 pixels at most" in done.stderr
    done = run("export", "--ckpt", GOLDEN / "ar_tiny.ckpt", "--spec", '{"heads": 4}',
               "--image-size", "8,8", "-o", "x.bundle")  # fmt: skip
    assert done.exit_code == 1 and "draws 16 x 16 pixels and is compared at these" in done.stderr
