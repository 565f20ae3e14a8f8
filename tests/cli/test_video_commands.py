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
        ("bench --seed 1 --compile", "a tokenizer only, of which --compile, --seed says nothing"),
        ("bench --plot p.png", "a tokenizer only, of which --plot says nothing"),
        ("bench --image-size 4,8", "image size 4,8: a size has 3 numbers, T, H, W, found 4 x 8"),
        ("bench --image-size 3,7,8", "image size 3,7,8: image sides must be multiples of"),
        ("bench --image-size 1,2,2", "is a single latent position"),
        ("bench --image-size 1000000,800,800", "expected 268,435,456 pixels at most; take a small"),
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


def test_bench_times_clips_and_its_figures_add_up(here):
    done = run(*["bench", "--rounds", "3", "--batch", "2", "--image-size", "3,16,8", "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert (value["picture_size"], value["batch"], value["rounds"]) == ([3, 16, 8], 2, 3)
    best = value["convolution"]
    assert (best["kernel"], best["pictures"]) == ([3, 3, 3], 2)
    assert best["gmac_s"] == max(best["gmac_s_before"], best["gmac_s_after"])
    with m2kit.open_engine("v.engine") as engine:
        layers = engine.spec.tokenizer.convolutions((3, 16, 8))
    for part, graph in (("encode", "encoder"), ("decode", "decoder")):
        found = value[part]
        assert 0 < found["least_ms"] <= found["median_ms"] <= found["most_ms"]
        assert found["macs"] == sum(layer.macs for layer in layers[graph])
        gmac_s = found["macs"] / found["median_ms"] / 1e6
        assert found["gmac_s"] == pytest.approx(gmac_s, rel=0.01)
        assert found["share_of_convolution"] == pytest.approx(gmac_s / best["gmac_s"], rel=0.01)
        ratio = value[f"eager_{part}_ms"] / found["median_ms"]
        assert value[f"{part}_speedup_vs_eager"] == pytest.approx(ratio, rel=0.02, abs=0.01)
    assert value["peak_memory_bytes"] > value["weights_bytes"] > 1e6


def test_bench_takes_clips_of_the_models_own_length(here):
    done = run(*["bench", "--rounds", "1", "--no-baseline"])
    assert done.exit_code == 0, done.output
    out = " ".join(done.stdout.split())
    assert "picture 17 x " in out and "1 at once" in out
    assert "3 x 3 x 3, " in out and "of the convolution" in out and "PyTorch" not in out


def test_bench_times_pictures(exported, tmp_path):
    _, engine = exported(GOLDEN / "tokenizer_tiny.ckpt")
    done = run("bench", "--engine", engine, "--rounds", 1, "--image-size", "16,32", "--json")
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["picture_size"] == [16, 32] and value["convolution"]["kernel"] == [3, 3]
    assert value["encode"]["share_of_convolution"] > 0 and value["eager_encode_ms"] > 0
