"""`m2kit evaluate generation`: what is drawn, against what is there."""

import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import GOLDEN
from onnx import TensorProto, helper, numpy_helper

from m2kit.cli import cli, evaluating, evaluation_options
from m2kit.runtime.drawing import draw_images
from m2kit.runtime.engine import Engine
from m2kit.runtime.images import uint8_from_images
from m2kit.sampling import Sampling
from m2kit.training.checkpoints.reading import model_from_checkpoint, read_checkpoint
from m2kit.training.datasets.table import dataset_named
from m2kit.training.evaluation import generation, made, originals, reconstruction, scores, tally
from m2kit.training.evaluation.features import NAMES, feature_network
from m2kit.training.evaluation.inception_score import (
    add_classes,
    inception_score,
    part_of_each,
)
from m2kit.training.evaluation.looking import Looking, Measured, seen_pixels
from m2kit.training.evaluation.moments import Moments, frechet_distance
from m2kit.training.evaluation.protocol import PROTOCOLS
from m2kit.training.torch_backend import TorchBackend

CHECKPOINT = GOLDEN / "ar_tiny.ckpt"
SPEC = ("--spec", json.dumps({"heads": 4}))
CLASSES, EACH, SIDE = 10, 3, 16
MODEL = Measured("m", "a" * 64, "stored", "float32", "torch")


def run(*arguments):
    result = CliRunner().invoke(cli, ["evaluate", "generation", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def evaluate(*arguments):
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def engine():
    model = model_from_checkpoint(read_checkpoint(CHECKPOINT, overrides={"heads": 4}))
    return Engine(model.spec, TorchBackend(model))


@pytest.fixture(scope="module")
def drawn(engine):
    """The set's pictures (n, H, W, 3) and classes, drawn in one go."""
    parts = list(draw_images(engine, range(CLASSES), EACH, Sampling(seed=5)))
    pixels = np.concatenate([uint8_from_images(part.images) for part in parts])
    return pixels, np.concatenate([part.class_ids for part in parts])


@pytest.fixture(scope="module")
def data(tmp_path_factory, drawn):
    """Pictures like the ones that are drawn: noise, of the same size."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "noise.npz"
    images = random.integers(0, 256, (4 * CLASSES, *drawn[0].shape[1:]), np.uint8)
    names = [str(index) for index in range(CLASSES)]
    labels = np.arange(len(images)) % CLASSES
    np.savez(path, images=images, labels=labels, categories=np.array(names))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory, drawn):
    """Three features and ten classes, of one product each."""
    path, random = tmp_path_factory.mktemp("network") / "plain.onnx", np.random.default_rng(1)
    shapes = {"y": 3, "c": CLASSES}
    weights = {n: random.normal(size=(48, k)).astype(np.float32) for n, k in shapes.items()}
    nodes = [helper.make_node("Flatten", ["x"], ["flat"], axis=1)]
    nodes += [helper.make_node("MatMul", ["flat", f"w{n}"], [n]) for n in shapes]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 4, 4])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", k]) for n, k in shapes.items()],
        [numpy_helper.from_array(w, f"w{n}") for n, w in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    declared = {"size": [4, 4], "resize": "bilinear, antialias", "range": [0, 1]}
    declared |= {"pooled": "y", "logits": "c"}
    path.with_suffix(".json").write_text(json.dumps(declared))
    return path


def asked(data, network):
    seed = "--per-class", EACH, "--seed", 5
    return CHECKPOINT, *SPEC, "--data", data, "--network", network, *seed


def moments(features):
    found = Moments(features.shape[1])
    found.add(features)
    return found


def test_each_metric_is_that_of_all_pictures_at_once(engine, drawn, data, network, monkeypatch):
    monkeypatch.setattr(originals, "LOT", 7)
    monkeypatch.setattr(made, "LOT", 7)
    monkeypatch.setattr(generation, "LOT", 7)
    monkeypatch.setattr(generation, "OF_A_PART", 10)
    found = evaluate(*asked(data, network))
    whole = originals.originals_of(engine, dataset_named(str(data)))
    real = np.stack([pixels for _, pixels in whole.read(range(len(whole)))])
    look = feature_network(network)
    ours, theirs = look(seen_pixels(drawn[0])), look(seen_pixels(real))
    metrics = found["metrics"]
    expected = frechet_distance(moments(theirs.pooled), moments(ours.pooled))
    assert metrics["frechet_distance"] == pytest.approx(expected, rel=1e-5)
    classes = tally.Tally()
    add_classes(classes, ours.logits, part_of_each(CLASSES * EACH, 10))
    assert metrics["inception_score"] == pytest.approx(inception_score(classes), rel=1e-6)
    kid = scores.kid(theirs.pooled, ours.pooled, seed=0)
    assert metrics["kid"] == pytest.approx(kid, rel=1e-4)
    shares = scores.precision_recall(theirs.pooled, ours.pooled)
    assert (metrics["precision"], metrics["recall"]) == (shares.precision, shares.recall)
    assert metrics["near_copies"] == 0
    assert 0 <= metrics["class_accuracy"] <= 1
    assert found["images"] == found["protocol"]["images"] == CLASSES * EACH
    assert metrics["fid"] is None and "Inception" in found["reasons"]["fid"]
    assert metrics["sfid"] is None and "does not give" in found["reasons"]["sfid"]
    assert found["protocol"]["seed"] == 5 and found["protocol"]["per_class"] == EACH
    assert found["protocol"]["sampling"]["greedy"] is False


def test_sfid_is_of_spatial_features(drawn, data, network, tmp_path):
    path = tmp_path / "spatial.onnx"
    path.write_bytes(network.read_bytes())
    declared = json.loads(network.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**declared, "spatial": "c"}))
    asked_for = "--metrics", "sfid,frechet_distance"
    found = evaluate(*asked(data, path), *asked_for)["metrics"]
    with np.load(data) as arrays:
        pictures = arrays["images"], drawn[0]
    spatial = [moments(feature_network(path)(seen_pixels(each)).spatial) for each in pictures]
    assert found["sfid"] == pytest.approx(frechet_distance(*spatial), rel=1e-5)
    assert found["sfid"] != pytest.approx(found["frechet_distance"], rel=1e-2)
    reference = tmp_path / "reference.npz"
    mean, one = spatial[0].mean, moments(torch.rand(9, 3))
    np.savez(
        reference,
        **{"mu": one.mean, "sigma": one.covariance},
        **{"mu_s": mean, "sigma_s": spatial[0].covariance},
    )
    again = evaluate(*asked(data, path), "--metrics", "sfid", "--reference", reference)
    assert again["metrics"]["sfid"] == pytest.approx(found["sfid"], rel=1e-6)


def test_images_are_rounded_where_that_is_asked_for(engine, data, network):
    parts = draw_images(engine, range(CLASSES), EACH, Sampling(seed=5))
    pixels = np.concatenate([uint8_from_images(part.images, "round") for part in parts])
    look, how = feature_network(network), ("--metrics", "frechet_distance")
    with np.load(data) as arrays:
        sets = [moments(look(seen_pixels(each)).pooled) for each in (arrays["images"], pixels)]
    rounded = evaluate(*asked(data, network), *how, "--uint8", "round")
    plain = evaluate(*asked(data, network), *how)
    found = rounded["metrics"]["frechet_distance"]
    assert found == pytest.approx(frechet_distance(*sets), rel=1e-5)
    assert found != pytest.approx(plain["metrics"]["frechet_distance"], rel=1e-5)
    assert rounded["protocol"]["id"] != plain["protocol"]["id"]


def test_the_command_line_knows_metrics_protocols_and_networks():
    assert evaluating.GENERATION == generation.METRICS
    assert evaluating.RECONSTRUCTION == reconstruction.METRICS
    assert tuple(PROTOCOLS) == (*evaluation_options.PROTOCOLS, evaluation_options.OF_CLIPS)
    networks = next(p.help for p in evaluating.generation.params if p.name == "network")
    assert all(name in networks for name in NAMES)


def test_a_classifier_that_is_given_judges(drawn, data, network):
    found = evaluate(*asked(data, network), "--classifier", network, "--metrics", "class_accuracy")
    classes = feature_network(network)(seen_pixels(drawn[0])).logits.argmax(1).numpy()
    right = [(classes[drawn[1] == c] == c).mean() for c in range(CLASSES)]
    assert found["metrics"] == {"class_accuracy": pytest.approx(np.mean(right))}
    assert found["protocol"]["classifier"].startswith("onnx:plain")


def test_a_classifier_of_other_classes_is_refused(data, network, tmp_path):
    path = tmp_path / "three.onnx"
    path.write_bytes(network.read_bytes())
    declared = json.loads(network.with_suffix(".json").read_text())
    del declared["logits"]  # so that its three features are taken for classes
    path.with_suffix(".json").write_text(json.dumps(declared))
    code, _, err = run(*asked(data, network), "--classifier", path)
    assert code == 1 and "three.onnx tells 3 classes" in err and "has 10" in err


def test_copies_of_training_pictures_are_found(drawn, tmp_path, network):
    path, pixels = tmp_path / "copied.npz", drawn[0][:, :, ::-1].copy()  # mirrored, all of them
    names = np.array([str(index) for index in range(CLASSES)])
    np.savez(path, images=np.repeat(pixels, 2, 0), labels=np.repeat(drawn[1], 2), categories=names)
    found = evaluate(*asked(path, network), "--metrics", "near_copies")
    assert found["metrics"]["near_copies"] > 0.9


def test_copies_are_compared_of_the_same_training_pictures_alone(data, tmp_path, network):
    """Two data sets with one held-out half, which alone is measured."""
    with np.load(data) as arrays:
        known = dict(arrays)
    known["images"][:, 0, 0, 0] = np.arange(len(known["images"]))
    other = {**known, "images": known["images"].copy()}
    np.savez(tmp_path / "one.npz", **known)
    held_out = dataset_named(str(tmp_path / "one.npz")).load().held_out
    kept = [np.asarray(held_out.read(n))[0, 0, 0] for n in range(len(held_out.labels))]
    other["images"][np.setdiff1d(known["images"][:, 0, 0, 0], kept), 1:] = 0
    np.savez(tmp_path / "two.npz", **other)
    paths = tmp_path / "one.npz", tmp_path / "two.npz"
    for metric, split, alike in (
        ("kid", "held-out", True),
        ("near_copies", "held-out", False),
        ("kid", "all", False),
    ):
        how = "--metrics", metric, "--split", split
        found = [evaluate(*asked(path, network), *how)["protocol"] for path in paths]
        assert (found[0]["id"] == found[1]["id"]) is alike
    assert "training_sha256" not in found[0]


def test_the_set_is_the_same_drawn_here_or_read(drawn, data, network, tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=drawn[0], arr_1=drawn[1])
    here = evaluate(*asked(data, network))
    read = evaluate("--samples", path, "--data", data, "--network", network)
    assert read["metrics"] == pytest.approx(here["metrics"])
    assert read["protocol"]["seed"] is None and read["protocol"]["weights"] == "unknown"
    code, _, err = run(*asked(data, network), "--samples", path)
    assert code == 2 and "--per-class, --seed" in err
    assert run("--data", data)[0] == 2


def test_a_killed_evaluation_goes_on_to_the_same_numbers(data, network, tmp_path, monkeypatch):
    for module in (originals, made, generation):
        monkeypatch.setattr(module, "LOT", 8)
    whole = evaluate(*asked(data, network))
    plain, calls = Engine.decode, []

    def decode(self, tokens, **options):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, tokens, **options)

    monkeypatch.setattr(Engine, "decode", decode)
    here = *asked(data, network), "-o", tmp_path
    code, _, err = run(*here)
    assert code == 130 and "same command again" in err
    calls[:] = [0] * 10
    assert evaluate(*here) == whole
    assert sum(calls) == CLASSES * EACH - 16
    assert "<img" in (tmp_path / "report.html").read_text()
    code, _, err = run(*here[:-4], "--seed", 6, "-o", tmp_path)
    assert code == 1 and "another measurement" in err


def test_adms_statistics_are_a_reference(drawn, data, network, tmp_path):
    random, path = np.random.default_rng(2), tmp_path / "reference.npz"
    real = random.normal(size=(50, 3))
    np.savez(path, mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    found = evaluate(*asked(data, network), "--reference", path)
    ours = moments(feature_network(network)(seen_pixels(drawn[0])).pooled)
    expected = frechet_distance(moments(torch.from_numpy(real)), ours)
    assert found["metrics"]["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert "statistics alone" in found["reasons"]["precision"]
    assert found["protocol"]["reference_sha256"] is not None
    pictures = random.integers(0, 256, (20, 16, 16, 3), np.uint8)
    np.savez(path, mu=real.mean(0), sigma=np.cov(real, rowvar=False), arr_0=pictures)
    found = evaluate(*asked(data, network), "--reference", path, "--metrics", "precision,recall")
    look = feature_network(network)
    features = [look(seen_pixels(each)).pooled for each in (pictures, drawn[0])]
    shares = scores.precision_recall(*features)
    assert found["metrics"] == {"precision": shares.precision, "recall": shares.recall}
    np.savez(path, mu=real.mean(0), sigma=np.cov(real, rowvar=False), arr_0=pictures / 255)
    code, _, err = run(*asked(data, network), "--reference", path)
    assert code == 1 and "found arr_0 of float64" in err
    np.savez(path, mu=real.mean(0)[:2], sigma=np.cov(real, rowvar=False)[:2, :2])
    code, _, err = run(*asked(data, network), "--reference", path)
    assert code == 1 and "of 2 features, and onnx:plain gives 3" in err and "measuring" not in err


def test_memory_holds_no_more_than_the_rows_that_are_kept(engine, data, network, monkeypatch):
    monkeypatch.setattr(tally.is_kept, "__defaults__", (6,))
    drawing = made.DrawnPictures(engine, EACH, Sampling(), "truncate")
    measuring = generation.Generation(
        MODEL, drawing, dataset_named(str(data)), looking=Looking(str(network))
    )
    found = measuring._of_lot(0).joined(measuring._of_lot(1))
    assert {name: sum(map(len, rows)) for name, rows in found.rows.items()} == {
        "originals": 6,
        "made": 6,
        "shown": CLASSES * EACH,
        "small": 6,
    }


def test_a_set_that_was_sampled_has_the_same_protocol(exported, data, network, tmp_path):
    folder = exported(CHECKPOINT, heads=4)[1]
    how = "--per-class", EACH, "--seed", 5
    done = CliRunner().invoke(cli, ["sample", str(folder), *map(str, how), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    same = "--data", data, "--network", network
    here = evaluate(folder, *same, *how)
    assert evaluate(folder, *same, "--samples", tmp_path) == here
    told = evaluate(*same, "--samples", tmp_path)["protocol"]
    assert told["model_sha256"] == here["protocol"]["model_sha256"]
    assert "classes" not in told
    code, _, err = run(*same, "--samples", tmp_path, "--uint8", "round")
    assert code == 1 and "was drawn with --uint8 truncate, found round" in err
    found = []
    for number, classes in enumerate(("0-4", "5-9")):
        half = "--class", classes, "-o", str(tmp_path / str(number))
        CliRunner().invoke(cli, ["sample", str(folder), *map(str, how), *half])
        found.append(evaluate(*same, "--samples", half[-1])["protocol"])
    assert found[1]["classes"] == [5, 6, 7, 8, 9]
    assert found[0]["id"] != found[1]["id"]
    code, _, err = run(CHECKPOINT, *SPEC, *same, "--samples", tmp_path)
    assert code == 1 and "drawn by another model" in err


def test_classes_that_the_data_does_not_have_are_not_judged(drawn, tmp_path, data, network):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=drawn[0], arr_1=drawn[1] + 5)
    found = evaluate("--samples", path, "--data", data, "--network", network)
    assert found["metrics"]["class_accuracy"] is None
    assert "not those of the data" in found["reasons"]["class_accuracy"]


def test_a_file_that_was_named_and_is_missing_is_told_before_anything_is_read(data, tmp_path):
    missing = tmp_path / "missing.npz"
    for option in ("--reference", "--samples", "--classifier", "--feature-weights"):
        code, _, err = run(CHECKPOINT, "--data", data, option, missing)
        assert code == 2 and option in err and "missing.npz' does not exist" in err
    code, _, err = run(*asked(data, tmp_path / "missing.onnx"))
    assert code == 1 and "missing.onnx is missing" in err


def test_a_metric_that_cannot_be_is_told_before_anything_is_measured(data, network, tmp_path):
    path, plain, few = (tmp_path / name for name in ("reference.npz", "plain.onnx", "few.npz"))
    np.savez(few, arr_0=np.zeros((9, SIDE, SIDE, 3), np.uint8))
    real = np.random.default_rng(2).normal(size=(50, 3))
    np.savez(path, mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    plain.write_bytes(network.read_bytes())
    declared = {"size": [4, 4], "resize": "bilinear, antialias", "range": [0, 1], "pooled": "c"}
    plain.with_suffix(".json").write_text(json.dumps(declared))
    for name, of, options, said in (
        ("sfid", network, (), "gives no spatial features"),
        ("inception_score", plain, (), "gives no classes"),
        ("kid", network, ("--reference", path), "statistics alone"),
        ("frechet_distance", plain, ("--samples", few), "10 features needs 10 samples"),
    ):
        arguments = CHECKPOINT, *SPEC, "--data", data, "--network", of, "--metrics", name
        code, _, err = run(*arguments, *options)
        assert code == 1 and said in err and "measuring" not in err
