"""`m2kit evaluate reconstruction` of a video tokenizer: clips, one of each film of a folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import GOLDEN
from doubles.random_i3d import with_random_weights
from doubles.random_lpips import random_lpips
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

pytest.importorskip("av")
from doubles.film_files import LOSSLESS, cut, moving, write_film

from m2kit.cli import cli
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import images_from_pixels, uint8_from_images
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.evaluation import clip_features, clip_originals, originals, scores, tally
from m2kit.training.evaluation.input_rule import ranged
from m2kit.training.models import i3d
from m2kit.training.torch_backend import TorchBackend

VIDEO, IMAGE = GOLDEN / "video_tiny.ckpt", GOLDEN / "tokenizer_tiny.ckpt"
FILMS, FRAMES, SIDE, DIMENSIONS = 12, 5, 16, 6
CLIPS = ("--spec", json.dumps({"frames": FRAMES}), "--size", SIDE)


def run(*arguments):
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def evaluate(model, *arguments):
    code, out, err = run("reconstruction", model, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def error_of(*arguments):
    code, _, err = run(*arguments)
    assert code == 1, err
    return err


@pytest.fixture(scope="module")
def frames():
    """Of each film, 17 to 19 of 16 x 24 pixels; no two films are alike."""
    random = np.random.default_rng(0)
    return [
        np.stack(list(moving(17 + index % 3, SIDE, 24)))[:, :, ::-1] // np.uint8(1 + index % 2)
        + random.integers(0, 40, (1, 4, 6, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        for index in range(FILMS)
    ]


@pytest.fixture(scope="module")
def films(tmp_path_factory, frames):
    """A folder with them, a film of 4 frames and a broken one."""
    folder = tmp_path_factory.mktemp("data") / "films"
    folder.mkdir()
    for index, pixels in enumerate(frames):
        write_film(folder / f"{index:02}.mp4", pixels, **LOSSLESS)
    write_film(folder / "short.mp4", frames[0][:4], **LOSSLESS)
    cut(folder / "00.mp4", folder / "broken.mp4", 0.5)
    return folder


@pytest.fixture(scope="module")
def clips(frames):
    """(n, T, H, W, 3) uint8: the middle, as upstream has it, and the middle square."""
    first = [len(each) // 2 - FRAMES // 2 for each in frames]
    return np.stack([f[i : i + FRAMES, :, 4:20] for f, i in zip(frames, first, strict=True)])


@pytest.fixture(scope="module")
def engine():
    model = model_from_checkpoint(read_checkpoint(VIDEO, weights="ema"))
    return Engine(model.spec, TorchBackend(model))


@pytest.fixture(scope="module")
def pairs(engine, clips):
    """Originals and reconstructions (n, 3, T, H, W), and tokens."""
    images = images_from_pixels(clips)
    tokens = np.concatenate([engine.encode(each[None]) for each in images])
    return images, np.concatenate([engine.decode(each[None]) for each in tokens]), tokens


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of clips of 8 x 8 pixels, of one product, in an ONNX file."""
    return onnx_file(tmp_path_factory.mktemp("network") / "own.onnx", ["B", 3, "T", 8, 8])


def onnx_file(path, shape):
    count = 3 * 64 * (FRAMES if len(shape) == 5 else 1)
    weights = np.random.default_rng(1).normal(size=(count, DIMENSIONS)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", DIMENSIONS])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    declared = {"size": [8, 8], "resize": "bilinear, no antialias", "range": [0, 1]}
    path.with_suffix(".json").write_text(json.dumps(declared))
    return path


class SmallI3D(torch.nn.Module):
    """In place of I3D, whose clips are large and whose 400 features need as many of them."""

    def __init__(self):
        super().__init__()
        self.mixing = torch.nn.Parameter(torch.zeros(3 * FRAMES * 16, DIMENSIONS))

    def forward(self, clips):
        return (clips.flatten(1) @ self.mixing).sin()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """It, with a file of its weights."""
    monkeypatch.setattr(i3d, "I3D", SmallI3D)
    monkeypatch.setattr(i3d, "CLASSES", DIMENSIONS)
    monkeypatch.setattr(i3d, "FRAMES", FRAMES)
    monkeypatch.setattr(clip_features, "RULE", ranged((4, 4), "bilinear, no antialias", -1, 1))
    mixing = torch.randn(3 * FRAMES * 16, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    torch.save({"mixing": mixing / 20}, tmp_path / "i3d.pt")
    return tmp_path / "i3d.pt", mixing / 20


def distance(ours, theirs):
    """By the definition: traces and the roots of the eigenvalues of a product."""
    a, b = (np.asarray(part, np.float64) for part in (ours, theirs))
    first, second = (np.cov(part, rowvar=False) for part in (a, b))
    roots = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return means + np.trace(first) + np.trace(second) - 2 * roots


def test_measures_are_means_over_the_frames_of_a_clip_and_then_over_clips(films, pairs, tmp_path):
    named = []
    for name, weights in zip(("vgg", "heads"), random_lpips(0)[:2], strict=True):
        torch.save({n: t.float() for n, t in weights.items()}, tmp_path / f"{name}.pth")
        named += [f"--perceptual-{name}", tmp_path / f"{name}.pth"]
    asked = "psnr_db,ssim,lpips,codebook_usage,perplexity"
    found = evaluate(VIDEO, *CLIPS, "--data", films, *named, "--metrics", asked)["metrics"]
    perceptual, values = scores.lpips_network(*named[1::2]), {"psnr_db": [], "ssim": []}
    total = 0.0  # as upstream: LPIPS sum / videos / T
    for pair in zip(*pairs[:2], strict=True):
        one = [each.swapaxes(0, 1) for each in pair]  # (T, 3, H, W)
        pixels = [uint8_from_images(each) for each in one]
        values["psnr_db"].append(scores.psnr(*pixels).mean())
        values["ssim"].append(scores.ssim(*pixels).mean())
        total += scores.lpips(perceptual, *(torch.from_numpy(each.copy()) for each in one)).sum()
    assert found["psnr_db"] == pytest.approx(np.mean(values["psnr_db"]), rel=1e-6)
    assert found["ssim"] == pytest.approx(np.mean(values["ssim"]), rel=1e-5)
    assert found["lpips"] == pytest.approx(total / FILMS / FRAMES, rel=1e-4)
    used = len(np.unique(pairs[2]))
    assert found["codebook_usage"] == pytest.approx(used / 64)


def test_rfvd_is_of_both_sides_truncated_to_8_bits_as_upstream_has_it(films, pairs, small):
    asked = *CLIPS, "--data", films, "--feature-weights", small[0], "--metrics"
    found = evaluate(VIDEO, *asked, "rfvd,frechet_distance,kid")
    features = {}
    for rule in ("truncate", "round"):
        features[rule] = []
        for images in pairs[:2]:
            levels = (torch.from_numpy(images) + 1) / 2 * 255
            levels = levels.byte() if rule == "truncate" else (levels + 0.5).clamp(0, 255).byte()
            frames = levels.float().transpose(1, 2).flatten(0, 1)
            frames = functional.interpolate(frames, (4, 4), mode="bilinear", align_corners=False)
            given = (2 * frames / 255 - 1).unflatten(0, (FILMS, FRAMES)).transpose(1, 2)
            features[rule].append((given.flatten(1) @ small[1]).sin())
    expected = distance(*features["truncate"])
    assert found["metrics"]["rfvd"] == pytest.approx(expected, rel=1e-4)
    assert found["metrics"]["frechet_distance"] == found["metrics"]["rfvd"]
    kid = scores.kid(*features["truncate"], seed=0)
    assert found["metrics"]["kid"] == pytest.approx(kid, rel=1e-3)
    rounded = evaluate(VIDEO, *asked, "rfvd", "--uint8", "round")["metrics"]["rfvd"]
    assert rounded == pytest.approx(distance(*features["round"]), rel=1e-4)
    assert abs(rounded - expected) > 1e-3 * expected


def test_the_record_says_what_was_taken_and_what_was_left_out(films, network, tmp_path):
    own = "--network", network, "-o", tmp_path / "out"
    code, out, err = run("reconstruction", VIDEO, *CLIPS, "--data", films, *own)
    assert code == 0, err
    assert "clips" in out and "1 of fewer than 5 frames" in err and "short.mp4" in err
    assert "1 that cannot be read (first: " in err and "broken.mp4" in err
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    protocol = found["protocol"]
    assert protocol["id"].startswith("open-magvit2-video-")
    expected = {
        "data": "films",
        "split": "all",
        "images": FILMS,
        "unread": 1,
        "short": 1,
        "clip": "the middle frames, every film once",
        "crop": "centre",
        "resize": "bilinear, no antialias, 8 bits, the shorter side",
        "size": [FRAMES, SIDE, SIDE],
        "uint8": "truncate",
        "features_of": "uint8, originals too",
        "weights": "ema",
    }
    assert {name: protocol[name] for name in expected} == expected
    assert protocol["network"]["name"] == "onnx:own"
    missing = {name for name, value in found["metrics"].items() if value is None}
    assert missing == {"lpips", "rfvd"} and "rfid" not in found["metrics"]
    assert found["reasons"]["rfvd"].startswith("rfvd is of I3D's features, these are of onnx:own")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" in page and f"{FILMS} clips" in page and "frames of clips" in page


def test_a_planted_mismatch_is_refused_in_a_comparison(films, network, tmp_path):
    usual = (*CLIPS, "--data", films, "--network", network, "--metrics", "frechet_distance")
    planted = {
        "uint8": ("--uint8", "round"),
        "size": ("--size", 8),
        "weights": ("--weights", "live"),
        "split": ("--split", "train"),
        "frames": ("--spec", '{"frames": 9}'),
    }
    evaluate(VIDEO, *usual, "-o", tmp_path / "first")
    evaluate(VIDEO, *usual, "--batch", 1, "-o", tmp_path / "same")
    assert run("compare", tmp_path / "first", tmp_path / "same")[0] == 0
    for name, options in planted.items():
        asked = usual if name != "frames" else (*usual[:4], "--data", films)
        evaluate(VIDEO, *asked, *options, "-o", tmp_path / name)
        err = error_of("compare", tmp_path / "first", tmp_path / name)
        assert "different protocols" in err
        assert ("size" if name == "frames" else name) + " is " in err
    shape = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "p.npz", images=shape, labels=[0] * 3, categories=["a"])
    evaluate(IMAGE, "--data", tmp_path / "p.npz", "--metrics", "psnr_db", "-o", tmp_path / "i")
    for pair in (("first", "i"), ("i", "first")):
        err = error_of("compare", *(tmp_path / each for each in pair))
        assert "different protocols" in err and "clip is " in err


def test_a_killed_evaluation_goes_on_to_the_same_numbers(
    films, network, tmp_path, monkeypatch, interrupted
):
    monkeypatch.setattr(originals, "LOT", 4 * FRAMES)
    asked = (VIDEO, *CLIPS, "--data", films, "--network", network, "--batch", 2)
    whole = evaluate(*asked)
    calls = interrupted()
    assert run("reconstruction", *asked, "-o", tmp_path / "out")[0] == 130
    assert not (tmp_path / "out" / "result.json").exists()
    with np.load(tmp_path / "out" / tally.STATE_FILE) as state:
        assert state["images"].tolist() == [4, 0]
    calls[:] = [0] * 10
    assert evaluate(*asked, "-o", tmp_path / "out") == whole
    assert sum(calls) == FILMS - 4 + 40 // FRAMES  # for the page, some again
    err = error_of("reconstruction", *asked, "-o", tmp_path / "out", "--uint8", "round")
    assert "another measurement" in err


def test_how_many_are_computed_at_once_changes_nothing(films, network, monkeypatch):
    asked = (VIDEO, *CLIPS, "--data", films, "--network", network)
    ones, fours = (evaluate(*asked, "--batch", count) for count in (1, 4))
    assert ones["protocol"] == fours["protocol"]
    for name, value in ones["metrics"].items():
        assert fours["metrics"][name] == (value and pytest.approx(value, rel=1e-4))


def test_of_large_clips_few_are_computed_at_once(engine):
    assert engine.compute_at_once((FRAMES, SIDE, SIDE)) == 16
    assert engine.compute_at_once((17, 128, 128)) == 3
    assert engine.compute_at_once((17, 512, 512)) == 1


def test_a_film_that_is_gone_since_it_was_looked_through_is_counted(films, tmp_path, monkeypatch):
    plain = clip_originals.looked_through

    def looked_through(*arguments):
        found = plain(*arguments)
        (tmp_path / "films" / "03.mp4").unlink()
        return found

    shutil.copytree(films, tmp_path / "films")
    monkeypatch.setattr(clip_originals, "looked_through", looked_through)
    asked = (*CLIPS, "--data", tmp_path / "films", "--metrics", "psnr_db")
    code, out, err = run("reconstruction", VIDEO, *asked, "--json")
    found = json.loads(out)
    assert (code, found["images"], found["protocol"]["unread"]) == (0, FILMS - 1, 2)
    assert "1 films could not be read, and are left out" in err


def test_numbers_of_a_film_that_was_replaced_are_not_told_again(tmp_path, frames):
    folder = tmp_path / "films"
    folder.mkdir()
    for index in range(3):
        write_film(folder / f"{index}.mp4", frames[index], **LOSSLESS)
    asked = (VIDEO, *CLIPS, "--data", folder, "--metrics", "psnr_db", "-o", tmp_path / "out")
    first = evaluate(*asked)
    assert evaluate(*asked) == first
    write_film(folder / "1.mp4", frames[4], **LOSSLESS)
    assert "another measurement" in error_of("reconstruction", *asked)


def test_halves_are_those_that_a_training_takes_and_one_film_is_enough(tmp_path, frames):
    for name, index in (("train/a.mp4", 0), ("train/b.mp4", 1), ("val/c.mp4", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_film(tmp_path / name, frames[index], **LOSSLESS)
    asked = (VIDEO, *CLIPS, "--data", tmp_path, "--metrics", "psnr_db")
    counts = [evaluate(*asked, "--split", s)["images"] for s in ("all", "train", "held-out")]
    assert counts == [3, 2, 1]
    (one,) = asked[-3:-2]
    assert evaluate(*asked[:-3], one / "val", *asked[-2:])["images"] == 1
    err = error_of("reconstruction", *asked[:-3], one / "val", "--split", "held-out")
    assert "expected films of 5 frames and more (held-out), found none" in err


def test_checkpoint_bundle_and_engine_are_measured_alike(films, exported):
    bundle, engine = exported(VIDEO, weights="ema")
    asked = ("--data", films, "--size", SIDE, "--metrics", "psnr_db,perplexity")
    results = [evaluate(model, *asked) for model in (VIDEO, bundle, engine)]
    assert len({result["protocol"]["id"] for result in results}) == 1
    assert results[0]["protocol"]["size"] == [17, SIDE, SIDE]
    values = [result["metrics"]["psnr_db"] for result in results]
    assert values == pytest.approx([values[0]] * 3, abs=1e-2)
    for options, told in ((), True), (CLIPS[:2], False):
        *_, err = run("reconstruction", VIDEO, *options, *asked)
        assert ("assuming clips of 17 frames: the checkpoint does not tell" in err) == told


def test_i3d_itself_sees_them_and_few_clips_have_no_rfvd(tmp_path, frames):
    for index in range(2):
        write_film(tmp_path / f"{index}.mp4", frames[index], **LOSSLESS)
    network = with_random_weights(i3d.I3D())
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    own = "--data", tmp_path, "--size", SIDE, "--feature-weights", tmp_path / "i3d.pt"
    found = evaluate(VIDEO, "--spec", '{"frames": 9}', *own)
    protocol = found["protocol"]["network"]
    assert (protocol["name"], protocol["size"]) == ("i3d", [224, 224])
    assert protocol["resize"] == "bilinear, no antialias"
    assert protocol["sha256"] == clip_features.sha256_of_file(tmp_path / "i3d.pt")
    assert "400 features needs 400 samples or more, found 2" in found["reasons"]["rfvd"]
    assert found["metrics"]["kid"] is not None


@pytest.mark.parametrize(
    ("model", "words", "line"),
    [
        (VIDEO, "--metrics rfid", "rfid is not measured of clips; see rfvd (--metrics)"),
        (VIDEO, "--protocol adm", "adm is no protocol of clips; the official one is open-magvit2-"),
        (VIDEO, "--network inception-tf", "sees pictures, and these are clips; choose i3d, or an"),
        (
            VIDEO,
            "--network own.onnx",
            "expected one input, tensor(float) of (B, 3, 5, 8, 8); found",
        ),
        (VIDEO, "--metrics rfvd", "rfvd cannot be computed: I3D takes clips of 9 frames or more"),
        (VIDEO, "--size 15", "15 x 15 pixels, and this tokenizer divides images by 2 x 2; choose"),
        (
            VIDEO,
            '--spec {"frames":17} --size 4096',
            "is over 268,435,456; choose a smaller size (--size)",
        ),
        (IMAGE, "", "holds films and no pictures, and this model takes an image; give it pictures"),
    ],
)
def test_what_is_not_of_clips_is_one_line(films, tmp_path, monkeypatch, model, words, line):
    monkeypatch.chdir(tmp_path)
    onnx_file(Path("own.onnx"), ["B", 3, 8, 8])
    own = CLIPS if model is VIDEO else ()
    err = error_of("reconstruction", model, *own, "--data", films, *words.split())
    assert line in err, err
    if "--size" not in words:
        assert "looking through" not in err  # which may take long


def test_what_is_not_of_pictures_is_one_line(tmp_path):
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "p.npz", images=pixels, labels=[0] * 3, categories=["a"])
    for words, line in {
        "--metrics rfvd": "rfvd is not measured of pictures; see rfid",
        "--protocol open-magvit2-video": "is no protocol of pictures; the official one is open-",
        "--network i3d": "i3d sees clips, and these are pictures; choose efficientnet-lite0,",
    }.items():
        err = error_of("reconstruction", IMAGE, "--data", tmp_path / "p.npz", *words.split())
        assert line in err, err


def test_films_of_no_size_or_whole_or_too_short_are_one_line(films, tmp_path):
    some = VIDEO, "--spec", '{"frames": 5}', "--data"
    assert "name the size to take (--size)" in error_of("reconstruction", *some, films)
    err = error_of("reconstruction", *some, films, "--original-resolution")
    assert "films are never measured whole, but in clips of one size" in err
    err = error_of("reconstruction", VIDEO, "--spec", '{"frames": 25}', "--data", films)
    assert "expected films of 25 frames and more (all), found none; films left out: 13 of" in err
    err = error_of("reconstruction", *some, tmp_path)
    assert "expected a folder with films" in err
    single = films / "00.mp4"
    err = error_of("reconstruction", *some, single)
    assert f"expected a folder of films, found {single}" in err


def test_films_of_one_square_size_need_no_size(tmp_path, frames):
    write_film(tmp_path / "a.mp4", frames[0][:, :, :16], **LOSSLESS)
    found = evaluate(VIDEO, *CLIPS[:2], "--data", tmp_path, "--metrics", "psnr_db")
    assert found["protocol"]["size"] == [FRAMES, SIDE, SIDE]


def test_describe_counts_the_codes_of_films(films, pairs):
    words = ["describe", VIDEO, *CLIPS, "--data", films, "--json"]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["films"], told["unread_films"]) == (FILMS, 1)
    assert told["codebook_report"]["used"] == len(np.unique(pairs[2]))


def test_a_folder_of_films_with_an_odd_name_is_read_again(tmp_path, frames):
    folder = tmp_path / os.fsdecode(b"a\xff\n")
    folder.mkdir()
    write_film(folder / "a.mp4", frames[0], **LOSSLESS)
    asked = (VIDEO, *CLIPS, "--data", folder, "--metrics", "psnr_db", "-o", tmp_path / "out")
    assert evaluate(*asked)["protocol"]["data"] == r"a\udcff\n"
    assert run("compare", tmp_path / "out")[0] == 0
