"""CUDA's driver API and ONNX Runtime's provider cuda on a real GPU: `make test-gpu`. What the
doubles of test_cuda.py and test_provider_cuda.py promise is asked of the real thing."""

import json
import shutil

import numpy as np
import pytest
from conftest import DIGITS_CHECKPOINT, GOLDEN, run_m2kit
from draw_quality import draw_quality

import m2kit
from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.contract import INTER_STEP, step_io
from m2kit.errors import BackendError
from m2kit.runtime.cuda import CacheLayout, Gpu, Memory
from m2kit.runtime.device import find_device, probe

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_a_gpu():
    devices, reason = probe()
    if not devices:
        pytest.skip(f"needs an NVIDIA GPU: {reason}")


@pytest.fixture
def device():
    gpu = Gpu()
    yield gpu
    gpu.finish()
    gpu.close()


@pytest.fixture
def bytes_at(device):
    """Reads memory of the GPU."""

    def read(address, size):
        found = np.empty(size, np.uint8)
        device.synchronize()
        device.call("cuMemcpyDtoH", found.ctypes.data, address, size)
        return found

    return read


def test_the_gpu_is_described():
    found = find_device("a test")
    assert found.multiprocessors > 0
    assert found.memory_bytes > 10**9
    assert float(found.capability) >= 5


def test_places_are_zeroed_and_copied_both_ways(device, bytes_at):
    shared = {"a": ((3,), "int64"), "b": ((2, 2), "float16"), "c": ((1,), "float32")}
    memory = Memory(device, shared, {"d": 1000, "e": 1})
    assert all(address % 256 == 0 for address in memory.addresses.values())
    assert not bytes_at(memory.addresses["d"], 1000).any()
    memory.arrays["a"][:] = 7
    memory.arrays["b"][:] = 3
    memory.upload("a", "b")
    assert bytes_at(memory.addresses["a"], 24).view(np.int64).tolist() == [7, 7, 7]
    assert bytes_at(memory.addresses["b"], 8).view(np.float16).tolist() == [3, 3, 3, 3]
    memory.arrays["b"][:] = 0
    memory.download("b", "b")
    device.synchronize()
    assert memory.arrays["b"].tolist() == [[3, 3], [3, 3]]
    memory.free()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rows", "heads", "size", "grid"), [(3, 5, 4, (1, 7)), (2, 4, 16, (4, 4))])
def test_a_commit_writes_its_position_and_nothing_else(
    device, bytes_at, dtype, rows, heads, size, grid
):
    spec = TransformerSpec(heads * size, heads, 3, 1, 8, grid, 2, (2, 3), 10000.0)
    past = [t for t in step_io(spec, INTER_STEP).inputs if contract.is_past(t.name)]
    names, shape = tuple(t.name for t in past), past[0].fixed_shape({"R": rows})
    cache = CacheLayout.of(names, shape, dtype)
    count = len(names) * rows * heads * size
    memory = Memory(device, {"new": ((count,), dtype)}, {"cache": cache.bytes})
    addresses = cache.addresses(memory.addresses["cache"])
    commits = device.strided_copies(memory.addresses["new"], memory.addresses["cache"], cache)
    expected = np.zeros((len(names), rows, heads, spec.positions, size), dtype)
    random = np.random.default_rng(0)
    for position in (0, 3, spec.positions - 1):
        values = random.normal(size=(len(names), rows, heads, size)).astype(dtype)
        memory.arrays["new"][:] = values.ravel()
        memory.upload("new", "new")
        commits[position]()
        device.synchronize()
        expected[:, :, :, position] = values
    for index, address in enumerate(addresses.values()):
        found = bytes_at(address, expected[index].nbytes).view(dtype)
        np.testing.assert_array_equal(found.reshape(expected[index].shape), expected[index])
    memory.free()


def test_what_is_recorded_is_launched_as_one(device, bytes_at):
    memory = Memory(device, {"x": ((2,), "int64")}, {})
    device.synchronize()
    launch = device.capture(lambda: memory.upload("x", "x"))
    for value in (1, 2):
        memory.arrays["x"][:] = value
        launch()
        assert bytes_at(memory.addresses["x"], 16).view(np.int64).tolist() == [value, value]
    memory.free()


def test_work_that_cannot_be_recorded_leaves_a_usable_stream(device):
    with pytest.raises(BackendError, match="cuMemAlloc"):
        device.capture(lambda: device.call("cuMemAlloc", 10))
    device.synchronize()
    assert device.capture(lambda: None)() is None


@pytest.fixture(params=["digits", "ar_tiny"])
def engine(request, exported, tmp_path):
    """The folder of an engine that the provider cuda can open."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    models = {"digits": (DIGITS_CHECKPOINT, {}), "ar_tiny": (GOLDEN / "ar_tiny.ckpt", {"heads": 4})}
    path, overrides = models[request.param]
    return shutil.copytree(exported(path, **overrides)[1], tmp_path / "m.engine")


def test_the_provider_cuda_draws_what_the_cpu_draws(engine):
    with m2kit.open_engine(engine) as exact, m2kit.open_engine(engine, provider="cuda") as on_gpu:
        assert on_gpu.backend.device.endswith("through CUDA")
        classes = np.arange(min(10, exact.transformer.classes))
        quality = draw_quality(exact, on_gpu, classes, m2kit.Sampling(seed=1))
        assert quality.cdf_mean < 1e-5
        assert quality.equal_ids >= 0.99
        assert quality.explained == quality.differing_images
        tokens = on_gpu.sample(classes, m2kit.Sampling(seed=1))
        np.testing.assert_array_equal(on_gpu.sample(classes, m2kit.Sampling(seed=1)), tokens)
        short = on_gpu.sample(classes[:3], m2kit.Sampling(seed=1))
        np.testing.assert_array_equal(short, tokens[:3])
        images = exact.decode(tokens)
        np.testing.assert_allclose(on_gpu.decode(tokens), images, atol=1e-4)
        assert (on_gpu.encode(images) == exact.encode(images)).mean() > 0.99


def test_the_command_line_draws_on_the_gpu(engine, tmp_path):
    run = ("--engine", engine, "--seed", 1, "-n", 2, "--provider", "cuda")
    run_m2kit("generate", *run, "-o", tmp_path / "a.png", cwd=tmp_path)
    assert (tmp_path / "a.png").stat().st_size > 100
    done = run_m2kit("doctor", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["gpus"]
