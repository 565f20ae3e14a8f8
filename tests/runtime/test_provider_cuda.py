"""ONNX Runtime's provider cuda, on doubles: the cache stays on the GPU."""

import gc
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

import m2kit
from m2kit.cli import benching, cli
from m2kit.errors import BackendError
from m2kit.sampling import Sampling

pytest.importorskip("onnxruntime")


@pytest.fixture
def on_cuda(gpu, monkeypatch):
    """Puts a GPU and onnxruntime-gpu into this process: (cuda, onnxruntime)."""
    from doubles.onnxruntime_double import make_onnxruntime

    cuda, _ = gpu()
    double = make_onnxruntime(cuda)
    monkeypatch.setitem(sys.modules, "onnxruntime", double)
    return cuda, double


@pytest.fixture
def engine(digits_engine, tmp_path):
    """A folder that may be written: a device's first run is remembered there."""
    return shutil.copytree(digits_engine, tmp_path / "digits.engine")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_no_copy_of_the_cache_passes_the_host_in_the_loop(engine, on_cuda, guidance):
    cuda, ort = on_cuda
    options = Sampling(seed=1, guidance=guidance)
    with m2kit.open_engine(engine) as exact:
        expected = exact.sample([3, 1], options)
    with m2kit.open_engine(engine, provider="cuda") as opened:
        assert opened.backend.device == "Test GPU (8.6, 28 SM, 12 GB) through CUDA"
        steps = opened.generate([3, 1], options)
        next(steps)
        ort.copied.clear()
        before = len(cuda.calls)
        *_, last = steps
        np.testing.assert_array_equal(last.tokens, expected)
        spec = opened.spec.transformer
        runs, draws = spec.positions - 1, spec.sub_tokens
        found = Counter(call for call in cuda.calls[before:] if "Free" not in call)
        assert found == {
            "cuMemcpyHtoDAsync": runs * (1 + draws),  # ids and positions
            "cuMemcpyDtoHAsync": runs * draws,  # logits
            "cuStreamSynchronize": runs * draws,
            "cuMemcpy3DAsync": runs * draws,  # commits: no intra step needs the last one's
        }
        assert not ort.copied
    del steps, last, opened
    gc.collect()
    assert cuda.leaks() == (0, 0, 0)


def test_bench_times_the_provider_and_no_bandwidth_of_the_host(engine, on_cuda, monkeypatch):
    asked = []
    monkeypatch.setattr(benching, "_peak_memory", lambda *given: asked.append(given))
    options = ["--rounds", "1", "--no-baseline", "--provider", "cuda", "--json"]
    done = CliRunner().invoke(cli, ["bench", "--engine", str(engine), *options])
    assert done.exit_code == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["active"]["provider"] == "CUDAExecutionProvider"
    assert "Test GPU" in value["machine"]
    assert value["bandwidth_gb_s"] is None
    ((_, _, given),) = asked
    assert given["provider"] == "cuda"


def test_steps_do_not_go_on_after_their_stream_is_gone(engine, on_cuda):
    with m2kit.open_engine(engine, provider="cuda") as opened:
        steps = opened.generate([1], Sampling(seed=1))
        next(steps)
    with pytest.raises(BackendError, match="the engine was closed"):
        next(steps)


def test_without_a_gpu_it_is_one_line(engine, on_cuda):
    cuda, _ = on_cuda
    cuda.driver = 0
    words = "the provider cuda needs an NVIDIA GPU: no NVIDIA driver is installed; use the provider"
    with pytest.raises(BackendError, match=words):
        m2kit.open_engine(engine, provider="cuda")


def test_without_cuda_bindings_the_extra_is_named(engine, on_cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"the provider cuda needs .* pip install '\.\[gpu\]'"):
        m2kit.open_engine(engine, provider="cuda")


def test_a_session_that_cannot_start_gives_its_stream_back(engine, on_cuda, monkeypatch):
    cuda, ort = on_cuda

    def refuse(path, options, providers):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(BackendError, match="no kernel image is available"):
        m2kit.open_engine(engine, provider="cuda")
    assert cuda.leaks() == (0, 0, 0)
