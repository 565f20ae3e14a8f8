"""TensorRT engines on a real GPU: `make test-gpu`. None of this has been run yet:
TensorRT-RTX was tried on an H200, whose compute capability 9.0 it does not support."""

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT
from draw_quality import draw_quality

import m2kit
from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine
from m2kit.precision import Precision
from m2kit.runtime.device import probe

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request):
    """A backend that is installed, and its options for the GPU that is here."""
    devices, reason = probe()
    if not devices:
        pytest.skip(f"needs an NVIDIA GPU: {reason}")
    pytest.importorskip(request.param.replace("-", "_"))
    own = request.param == "tensorrt"  # which builds for the GPU that is here
    return request.param, {} if own else {"compute_capabilities": (devices[0].capability,)}


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_an_engine_is_built_passes_its_gate_and_draws(backend, precision, exported, tmp_path):
    bundle, exact_folder = exported(DIGITS_CHECKPOINT)
    folder = tmp_path / "digits.engine"
    name, given = backend
    options = BuildOptions(precision=precision, batch=10, **given)
    manifest = build_engine(bundle, folder, name, options)
    assert manifest.parity.passed
    classes = np.arange(10)
    with m2kit.open_engine(folder) as engine, m2kit.open_engine(exact_folder) as exact:
        quality = draw_quality(exact, engine, classes, m2kit.Sampling(seed=1))
        assert quality.cdf_mean < 0.005
        assert quality.equal_ids >= (0.8 if precision is Precision.FLOAT16 else 0.99)
        tokens = engine.sample(classes, m2kit.Sampling(seed=1))
        np.testing.assert_array_equal(engine.sample(classes, m2kit.Sampling(seed=1)), tokens)
        short = engine.sample(classes[:3], m2kit.Sampling(seed=1))
        np.testing.assert_array_equal(short, tokens[:3])
        assert set(engine.backend.active()["cuda_graphs"].values()) == {"yes"}
