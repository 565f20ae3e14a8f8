"""`m2kit evaluate reconstruction` and `compare`: numbers of pictures, whatever way they come."""

import json
import tarfile

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import GOLDEN
from doubles.random_lpips import random_lpips
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from m2kit.cli import cli, evaluating
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import cropped, images_from_pixels, padded, uint8_from_images
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.evaluation import originals, scores, tally
from m2kit.training.torch_backend import TorchBackend

CHECKPOINT = GOLDEN / "tokenizer_tiny.ckpt"
PICTURES, SIDE, DIMENSIONS = 40, 16, 5


def run(*arguments):
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def evaluate(*arguments):
    code, out, err = run("reconstruction", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def error_of(*arguments):
    code, _, err = run(*arguments)
    assert code == 1, err
    return err


def engine_of(weights):
    model = model_from_checkpoint(read_checkpoint(CHECKPOINT, weights=weights))
    return Engine(model.spec, TorchBackend(model))


@pytest.fixture(scope="module")
def pixels():
    """Smooth pictures."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (PICTURES, 4, 4, 3), np.uint8)
    large = [Image.fromarray(each).resize((SIDE, SIDE), Image.BICUBIC) for each in small]
    return np.stack([np.asarray(each) for each in large])


@pytest.fixture(scope="module")
def data(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("data") / "smooth.npz"
    labels = np.arange(PICTURES) % 4
    np.savez(path, images=pixels, labels=labels, categories=np.array(list("abcd")))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A feature network of one product, in an ONNX file, and its weights (192, 5)."""
    path = tmp_path_factory.mktemp("network") / "plain.onnx"
    weights = np.random.default_rng(1).normal(size=(192, DIMENSIONS)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", DIMENSIONS])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    declared = {"size": [8, 8], "resize": "bilinear, antialias", "range": [0, 1]}
    path.with_suffix(".json").write_text(json.dumps(declared))
    return path


def test_pairs_are_measured_as_one_by_one(data, pixels):
    found = evaluate(CHECKPOINT, "--data", data)
    engine = engine_of("ema")
    order = originals.originals_of(engine, *_loaded(data)).read(range(PICTURES))
    psnr, ssim, ids = [], [], []
    for _, picture in order:
        images = images_from_pixels(picture[None])
        tokens = engine.encode(images)
        pair = [uint8_from_images(each) for each in (images, engine.decode(tokens))]
        psnr.append(scores.psnr(*pair)[0])
        ssim.append(scores.ssim(*pair)[0])
        ids.append(tokens)
    assert found["images"] == PICTURES
    assert found["metrics"]["psnr_db"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert found["metrics"]["ssim"] == pytest.approx(np.mean(ssim), rel=1e-5)
    used = len(np.unique(np.concatenate(ids).reshape(-1, ids[0].shape[-1]), axis=0))
    codes = np.prod(engine.spec.vocabularies)
    assert found["metrics"]["codebook_usage"] == pytest.approx(used / codes)


def _loaded(path):
    from m2kit.training.datasets.table import dataset_named

    return (dataset_named(str(path)),)


def test_json_has_what_was_measured_and_a_reason_for_what_was_not(data):
    found = evaluate(CHECKPOINT, "--data", data)
    assert list(found) == ["protocol", "metrics", "reasons", "images"]
    missing = {name for name, value in found["metrics"].items() if value is None}
    assert missing == set(found["reasons"]) == {"lpips", "rfid", "frechet_distance", "kid"}
    assert "pt_inception-2015-12-05-6726825d.pth is missing" in found["reasons"]["rfid"]
    protocol = found["protocol"]
    assert protocol["id"].startswith("open-magvit2-")
    assert protocol["weights"] == "ema" and protocol["split"] == "all"
    assert protocol["uint8"] == "truncate" and protocol["size"] == [SIDE, SIDE]
    assert protocol["precision"] == "float32" and protocol["backend"].startswith("torch")


def test_a_metric_asked_for_by_name_is_an_error_where_it_cannot_be(data, network):
    for name in ("rfid", "lpips"):
        err = error_of("reconstruction", CHECKPOINT, "--data", data, "--metrics", name)
        assert f"{name} cannot be computed" in err and "is missing" in err and "--metrics" in err
    own = "--network", network, "--metrics"
    err = error_of("reconstruction", CHECKPOINT, "--data", data, *own, "rfid")
    assert "Inception" in err and "reconstructing" not in err  # before anything is measured
    found = evaluate(CHECKPOINT, "--data", data, *own, "kid,psnr_db")
    assert set(found["metrics"]) == {"kid", "psnr_db"} and found["reasons"] == {}
    assert run("reconstruction", CHECKPOINT, "--data", data, "--metrics", "fid")[0] == 2


def test_odd_names_of_files_are_escaped_so_that_a_result_is_read_again(data, network, tmp_path):
    names = "a\udc80\n.npz", "a\nnet.onnx", "a\nnet.json"
    for path, name in zip((data, network, network.with_suffix(".json")), names, strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    own = "--network", tmp_path / names[1], "-o", tmp_path / "out"
    found = evaluate(CHECKPOINT, "--data", tmp_path / names[0], *own, "--metrics", "kid")
    assert found["protocol"]["network"]["name"] == r"onnx:a\nnet"
    assert found["protocol"]["data"] == r"a\udc80\n.npz"
    assert run("compare", tmp_path / "out")[0] == 0


def test_lpips_is_of_floats_the_mean_over_pictures(data, tmp_path):
    named = []
    for name, weights in zip(("vgg", "heads"), random_lpips(0)[:2], strict=True):
        torch.save({n: t.float() for n, t in weights.items()}, tmp_path / f"{name}.pth")
        named += [f"--perceptual-{name}", tmp_path / f"{name}.pth"]
    found = evaluate(CHECKPOINT, "--data", data, *named, "--metrics", "lpips", "--batch", 7)
    engine, values = engine_of("ema"), []
    network = scores.lpips_network(*named[1::2])
    for _, picture in originals.originals_of(engine, *_loaded(data)).read(range(PICTURES)):
        images = images_from_pixels(picture[None])
        pair = images, engine.decode(engine.encode(images))
        values.append(scores.lpips(network, *map(torch.from_numpy, pair))[0])
    assert found["metrics"] == {"lpips": pytest.approx(np.mean(values), rel=1e-4)}
    assert found["protocol"]["perceptual"]["name"] == "lpips-vgg"


def test_features_see_floats_or_8_bits_as_the_protocol_says(data, network):
    asked = "--data", data, "--network", network, "--metrics", "frechet_distance"
    floats = evaluate(CHECKPOINT, *asked)
    bits = evaluate(CHECKPOINT, *asked, "--protocol", "pytorch-fid")
    rounded = evaluate(CHECKPOINT, *asked, "--protocol", "pytorch-fid", "--uint8", "round")
    values = [each["metrics"]["frechet_distance"] for each in (floats, bits, rounded)]
    assert len(set(values)) == 3
    assert abs(values[2] - values[0]) < abs(values[1] - values[0])  # truncation is half a level off
    assert floats["protocol"]["network"]["name"] == "onnx:plain"


def test_a_killed_evaluation_goes_on_to_the_same_numbers(
    data, network, tmp_path, monkeypatch, interrupted
):
    monkeypatch.setattr(originals, "LOT", 7)
    asked = CHECKPOINT, "--data", data, "--network", network, "-o", tmp_path / "out"
    whole = evaluate(CHECKPOINT, "--data", data, "--network", network)
    calls = interrupted()
    assert run("reconstruction", *asked)[0] == 130
    assert not (tmp_path / "out" / "result.json").exists()
    with np.load(tmp_path / "out" / tally.STATE_FILE) as state:
        assert state["images"].tolist() == [21, 0]
    calls[:] = [0] * 10
    assert evaluate(*asked) == whole
    assert sum(calls) == PICTURES - 21 + PICTURES  # the page shows all of so few
    calls[:] = [0] * 10
    assert evaluate(*asked) == whole  # nothing is measured again
    assert sum(calls) == PICTURES
    assert "<img" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == whole
    for other in (("--uint8", "round"), ("--weights", "live"), ("--split", "train")):
        err = error_of("reconstruction", *asked, *other)
        assert "another measurement" in err and "-o" in err
    damaged = tmp_path / "out" / tally.STATE_FILE
    with np.load(damaged) as state:
        arrays = dict(state)
    for name, other in (
        ("sum.ssim", np.zeros(2)),
        ("sum.psnr_db", arrays["sum.psnr_db"] + 1),
        ("moments.made.count", np.array("forged")),
        ("moments.made.outer", arrays["moments.made.outer"] + 0j),
        ("rows.made", arrays["rows.made"][:-1]),
        ("images", arrays["images"][:1]),
    ):
        np.savez(damaged, **arrays | {name: other})
        assert "is damaged; remove it" in error_of("reconstruction", *asked)
    np.savez(damaged, **arrays)
    assert evaluate(*asked) == whole
    monkeypatch.setattr(tally, "__version__", "0")
    assert "version of m2kit" in error_of("reconstruction", *asked)
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert "is damaged; remove it" in error_of("reconstruction", *asked)


def test_a_planted_mismatch_is_refused_in_a_comparison(data, tmp_path):
    kinds = {
        "same": (),
        "round": ("--uint8", "round"),
        "crop": ("--size", 8),
        "whole": ("--original-resolution",),
        "live": ("--weights", "live"),
        "half": ("--split", "train"),
    }
    for name, options in {"first": (), **kinds}.items():
        evaluate(CHECKPOINT, "--data", data, *options, "-o", tmp_path / name)
    first = tmp_path / "first" / "result.json"
    code, out, err = run("compare", first, tmp_path / "same")
    assert code == 0 and "psnr db" in out, err
    for name in list(kinds)[1:]:
        err = error_of("compare", first, tmp_path / name)
        assert "different protocols" in err and "measure both alike" in err
    forged = json.loads(first.read_text())
    forged["protocol"]["uint8"] = "round"
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    err = error_of("compare", first, tmp_path / "forged.json")
    assert "protocol.id" in err and "forged.json" in err


def test_whole_pictures_are_framed_and_cut_back_one_by_one(tmp_path, pixels):
    folder, sizes = tmp_path / "data", [(11, 14), (16, 9), (12, 12)]
    wanted = {}
    for index, (height, width) in enumerate(sizes):
        (folder / "a").mkdir(parents=True, exist_ok=True)
        path = folder / "a" / f"{index}.png"
        wanted[index] = pixels[index, :height, :width]
        Image.fromarray(wanted[index]).save(path)
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    found = evaluate(CHECKPOINT, "--data", folder, "--original-resolution")
    engine = engine_of("ema")
    strides = engine.spec.tokenizer.strides
    values = []
    for picture in wanted.values():
        images = images_from_pixels(picture[None])
        rebuilt = engine.decode(engine.encode(padded(images, strides)))
        pair = images, cropped(rebuilt, images.shape[2:])
        values.append(scores.psnr(*map(uint8_from_images, pair))[0])
    assert found["metrics"]["psnr_db"] == pytest.approx(np.mean(values), rel=1e-6)
    assert found["images"] == 3 and found["protocol"]["unread"] == 1
    assert found["protocol"]["crop"] == "none" and found["protocol"]["size"] is None


@pytest.mark.parametrize("kept", ["files", "array", "shard"])
def test_numbers_of_a_picture_that_was_replaced_are_not_told_again(tmp_path, pixels, kept):
    def write(shade):
        pictures = [*pixels[:3], np.full((SIDE, SIDE, 3), shade, np.uint8)]
        if kept == "array":
            about = {"labels": np.zeros(4, int), "categories": np.array(["a"])}
            np.savez(data, images=np.stack(pictures), **about)
            return
        folder = data / "a" if kept == "files" else data
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{index}.png")
            (folder / f"{index}.cls").write_text("0")
        if kept == "shard":
            with tarfile.open(data / "all.tar", "w") as tar:
                for path in sorted(data.glob("[0-9].*")):
                    tar.add(path, path.name)
                    path.unlink()

    data = tmp_path / ("data.npz" if kept == "array" else "data")
    asked = "--data", data, "--size", SIDE, "--metrics", "psnr_db", "-o", tmp_path / "out"
    write(10)
    first = evaluate(CHECKPOINT, *asked)
    assert evaluate(CHECKPOINT, *asked) == first
    write(11)
    assert "another measurement" in error_of("reconstruction", CHECKPOINT, *asked)


def test_pictures_for_the_page_are_found_behind_those_that_cannot_be_read(
    tmp_path, pixels, monkeypatch
):
    monkeypatch.setattr(evaluating, "_PAIRS", 1)
    (tmp_path / "data" / "a").mkdir(parents=True)
    for index in range(9):
        (tmp_path / "data" / "a" / f"a{index}.png").write_bytes(b"no picture")
    for index in range(9, 12):
        Image.fromarray(pixels[index]).save(tmp_path / "data" / "a" / f"z{index}.png")
    found = evaluate(CHECKPOINT, "--data", tmp_path / "data", "--size", 16, "-o", tmp_path / "out")
    assert (found["images"], found["protocol"]["unread"]) == (3, 9)
    assert "<img" in (tmp_path / "out" / "report.html").read_text()


def test_checkpoint_bundle_and_engine_are_measured_alike(data, exported, tmp_path):
    bundle, engine = exported(CHECKPOINT, weights="ema")
    results = [evaluate(model, "--data", data) for model in (CHECKPOINT, bundle, engine)]
    assert len({result["protocol"]["id"] for result in results}) == 1
    values = [result["metrics"]["psnr_db"] for result in results]
    assert values == pytest.approx([values[0]] * 3, abs=1e-2)
    assert results[2]["protocol"]["backend"].startswith("onnxruntime")
    err = error_of("reconstruction", engine, "--data", data, "--weights", "live")
    assert "how to read a checkpoint" in err


def test_features_that_are_kept_are_spread_evenly():
    chosen = [index for index in range(1000) if tally.is_kept(index, 1000, 100)]
    assert len(chosen) == 100 and set(np.diff(chosen)) == {10}
    assert sum(tally.is_kept(index, 1003, 100) for index in range(1003)) == 100
    assert all(tally.is_kept(index, 99, 100) for index in range(99))


def test_a_whole_picture_of_one_position_is_framed_to_two(tmp_path, pixels):
    (tmp_path / "data" / "a").mkdir(parents=True)
    Image.fromarray(pixels[0, :2, :1]).save(tmp_path / "data" / "a" / "small.png")
    asked = CHECKPOINT, "--data", tmp_path / "data", "--original-resolution"
    found = evaluate(*asked, "--metrics", "psnr_db")
    engine, images = engine_of("ema"), images_from_pixels(pixels[:1, :2, :1])
    (height, width) = engine.spec.tokenizer.strides
    framed = padded(images, (height, 2 * width))
    assert framed.shape[2:] == (height, 2 * width)
    rebuilt = cropped(engine.decode(engine.encode(framed)), (2, 1))
    pair = map(uint8_from_images, (images, rebuilt))
    assert found["metrics"]["psnr_db"] == pytest.approx(scores.psnr(*pair)[0], rel=1e-6)
