"""Video tokenizers for TensorRT: real TensorRT-RTX plans of rank-5 graphs, built without a GPU, and
engines run on the doubles."""

import numpy as np
import pytest
from click.testing import CliRunner

import m2kit
from m2kit.build import BuildOptions
from m2kit.cli import cli
from m2kit.config import ModelSpec
from m2kit.engines.building import build_engine
from m2kit.engines.emulation import open_emulated
from m2kit.engines.half_bundle import write_half_bundle
from m2kit.errors import InputError
from m2kit.export.exporter import export_bundle
from m2kit.families.video import VideoTokenizerSpec
from m2kit.precision import Precision
from m2kit.progress import silent
from m2kit.runtime.opening import open_bundle
from m2kit.training.checkpoints.random_weights import write_random_checkpoint
from m2kit.training.checkpoints.reading import read_checkpoint

SIZE = (5, 8, 16)
SPEC = VideoTokenizerSpec(32, (1, 2, 2), 1, 6, True, "lsb", 5)  # time is halved once


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.pt"
    write_random_checkpoint(path, ModelSpec(SPEC, None), seed=1)
    return read_checkpoint(path, overrides={"frames": 5, "bit_order": "lsb"})


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    """Compared with PyTorch at the size that its plans have."""
    folder = tmp_path_factory.mktemp("video") / "v.bundle"
    export_bundle(checkpoint, folder, "v", size=SIZE)
    return folder


@pytest.fixture
def clips():
    generator = np.random.default_rng(0)
    return generator.uniform(-1, 1, (3, 3, *SIZE)).astype(np.float32)


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_tensorrt_rtx_builds_every_graph(bundle, tmp_path, precision):
    pytest.importorskip("tensorrt_rtx")
    sizes = (SIZE, (1, 8, 16))  # of one frame, nothing is left where the second is dropped
    options = BuildOptions(compute_capabilities=("8.6",), image_sizes=sizes, precision=precision)
    manifest = build_engine(bundle, tmp_path / "v.engine", "tensorrt-rtx", options)
    assert manifest.built.image_sizes == sizes
    plans = {f"{g}.{s}.plan" for g in ("encoder", "lfq", "decoder") for s in ("5x8x16", "1x8x16")}
    assert set(manifest.files) == {"reference.npz", *plans}
    compute = "HALF" if precision is Precision.FLOAT16 else "FLOAT"
    for graph in ("encoder", "decoder"):
        layers = manifest.built.plans[graph].layers
        assert layers[f"CONVOLUTION {compute}"] == 13
        assert layers["NORMALIZATION FLOAT"] == (9 if graph == "encoder" else 12)
        assert {kind for kind in layers if kind.startswith("CONV")} == {f"CONVOLUTION {compute}"}


def test_a_size_that_no_plan_can_have_is_refused(bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    for size, words in (
        ((4, 8, 16), r"image size 4,8,16: T must be 1 plus .* found 4 \(next valid: 3 and 5\)"),
        ((8, 16), "image size 8,16: a size has 3 numbers, T, H, W, found 8 x 16"),
    ):
        options = BuildOptions(image_sizes=(size,))
        with pytest.raises(InputError, match=words):
            build_engine(bundle, tmp_path / "v.engine", "tensorrt-rtx", options)


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_a_tensorrt_engine_computes_what_the_bundle_does(bundle, tmp_path, gpu, clips, precision):
    gpu()
    options = BuildOptions(batch=2, image_sizes=(SIZE,), precision=precision)
    manifest = build_engine(bundle, tmp_path / "v.engine", "tensorrt", options)
    assert manifest.parity.passed
    assert {"encoder", "lfq tokens", "decoder"} <= set(manifest.parity.checks)
    with m2kit.open_engine(tmp_path / "v.engine") as engine, open_bundle(bundle) as exact:
        latents = exact.latents(clips)
        differing = engine.encode(clips) != exact.encode(clips)  # three clips, two at once
        if precision is Precision.FLOAT32:
            np.testing.assert_allclose(engine.latents(clips), latents, atol=1e-4)
        else:
            near = np.abs(latents).min(axis=1)[..., None]
            assert differing.mean() < 0.1 and near[differing].max(initial=0) < 0.02
        tokens = exact.encode(clips)
        assert tokens.shape == (3, 3, 2, 4, 1)
        found, expected = engine.decode(tokens), exact.decode(tokens)
        assert np.abs(found - expected).max() < (1e-4 if precision is Precision.FLOAT32 else 0.05)
        with pytest.raises(InputError, match="takes images of 5 x 8 x 16 pixels, found 3 x 8 x 16"):
            engine.encode(clips[:, :, :3])


def test_bench_of_a_tensorrt_engine_has_no_share_of_the_hosts_convolutions(bundle, tmp_path, gpu):
    gpu()
    options = BuildOptions(batch=2, image_sizes=(SIZE,), precision=Precision.FLOAT32)
    build_engine(bundle, tmp_path / "v.engine", "tensorrt", options)
    words = ["bench", "--engine", str(tmp_path / "v.engine"), "--batch", "3", "--rounds", "1"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "one is timed for ONNX Runtime on a CPU alone" in done.stderr
    out = " ".join(done.stdout.split())
    assert "Test GPU" in out and "picture 5 x 8 x 16 pixels, 3 at once" in out
    assert "eager PyTorch encode" in out and "of the convolution" not in out


def test_half_precision_is_judged_in_emulation(checkpoint, tmp_path, clips):
    def exact(folder):
        return export_bundle(checkpoint, folder, "v", size=SIZE)

    manifest = write_half_bundle(exact, tmp_path / "half.bundle", silent)
    assert manifest.parity.passed
    with open_emulated(tmp_path / "half.bundle") as emulated:
        assert emulated.encode(clips).shape == (3, 3, 2, 4, 1)
