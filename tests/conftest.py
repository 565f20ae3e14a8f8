"""Fixtures that several rooms share. Nothing here imports torch: tests/toolkit and tests/runtime
run where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2kit.config import ModelSpec, TransformerSpec
from m2kit.families.image import ImageTokenizerSpec

# Models here are too small for threads, and `make test` has a process on each core already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
DIGITS_CHECKPOINT = ROOT / "examples" / "digits" / "digits.pt"
EMOJI_CHECKPOINT = ROOT / "examples" / "emoji" / "emoji.pt"
# Everything Orin's TensorRT 10.3 parses; none of the fused transformer or normalization ops.
PORTABLE_OPS = {
    "Add", "Cast", "Concat", "Conv", "DepthToSpace", "Div", "Equal", "Gather", "Greater",
    "InstanceNormalization", "Less", "MatMul", "Mul", "ReduceMean", "ReduceProd",
    "ReduceSum", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze",
    "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--digits-engine", type=Path, help="use this engine instead of exporting the example"
    )
    parser.addoption(
        "--browser",
        type=Path,
        help="tests of the server's page need this folder of tests/browser/install.py, and fail "
        "without it, where they else are skipped",
    )
    parser.addoption(
        "--all-cases", action="store_true", help="every case of tests/hostile, not a choice"
    )


def tiny_spec(**transformer) -> ModelSpec:
    """A model small enough for any test; keywords replace transformer fields, of which `bits` are
    those of the sub-tokens."""
    fields = {
        "width": 16,
        "heads": 2,
        "inter_layers": 2,
        "intra_layers": 1,
        "ffn_width": 24,
        "grid": (2, 3),
        "classes": 4,
        "bits": (2, 3),
        "rope_base": 10000.0,
    } | transformer
    bits = fields.pop("bits")
    fields["vocabularies"] = tuple(2**count for count in bits)
    tokenizer = ImageTokenizerSpec(32, (1, 1), 1, sum(bits) or 5, True, "lsb")
    return ModelSpec(tokenizer, TransformerSpec(**fields))


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Keeps the user's own cache out of the tests."""
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.fixture(autouse=True)
def threads():
    """A benchmark sets torch's threads for the process, and sums of later tests would be others."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def golden():
    """Loads golden arrays by name."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


def picture(path):
    """The pixels of an image file, (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image)


def run_m2kit(*arguments, cwd, check=True, env=None, **options):
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "m2kit", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        timeout=300,
        **options,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Exports a checkpoint and builds its engine, once a session: (bundle, engine)."""
    pytest.importorskip("torch")
    from m2kit.engines.building import build_engine
    from m2kit.export.exporter import export_bundle
    from m2kit.training.checkpoints.reading import read_checkpoint

    made = {}

    def make(path, weights=None, **overrides):
        key = (path, weights, tuple(sorted(overrides.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(path.stem)
            checkpoint = read_checkpoint(path, overrides=overrides, weights=weights)
            export_bundle(checkpoint, folder / "m.bundle", path.stem)
            build_engine(folder / "m.bundle", folder / "m.engine", "onnxruntime")
            made[key] = (folder / "m.bundle", folder / "m.engine")
        return made[key]

    return make


@pytest.fixture(scope="session")
def digits_engine(request):
    """The engine folder of the digits example."""
    given = request.config.getoption("--digits-engine")
    if given:
        return given
    return request.getfixturevalue("exported")(DIGITS_CHECKPOINT)[1]


@pytest.fixture(scope="session")
def emoji_engine(exported):
    """The engine folder of the emoji example."""
    return exported(EMOJI_CHECKPOINT)[1]


_SHIM = """import sys
sys.path.insert(0, {tests!r})
from doubles.tensorrt_double import make_tensorrt
globals().update(vars(make_tensorrt({version!r}, {product!r}, None, {gpu!r})))
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path_factory):
    """Puts a GPU and a TensorRT of one's choice into this process and those it starts: a function
    that returns (cuda, tensorrt)."""
    pytest.importorskip("cuda.bindings.driver")
    pytest.importorskip("onnxruntime")
    from doubles.cuda_double import CudaDouble
    from doubles.tensorrt_double import make_tensorrt

    def install(version="10.3.0", product="tensorrt", name="Test GPU", capability="8.6", **cuda):
        major, minor = capability.split(".")
        double = CudaDouble(**{"devices": ((name, int(major), int(minor)),)} | cuda)
        trt = make_tensorrt(version, product, double, (name, capability))
        trt.__spec__ = ModuleSpec(product, None)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", double.module)
        monkeypatch.setitem(sys.modules, product, trt)
        folder = tmp_path_factory.mktemp("packages")
        shim = _SHIM.format(
            tests=str(ROOT / "tests"), version=version, product=product, gpu=(name, capability)
        )
        (folder / f"{product}.py").write_text(shim)
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        return double, trt

    return install
