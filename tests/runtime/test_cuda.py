"""What m2kit asks of CUDA, on a double of cuda-bindings; and what it says where something lacks."""

import sys

import numpy as np
import pytest

from m2kit import contract
from m2kit.config import TransformerSpec
from m2kit.contract import INTER_STEP, step_io
from m2kit.errors import BackendError
from m2kit.runtime.cuda import CacheLayout, Gpu, Memory
from m2kit.runtime.device import Device, find_device, probe

pytest.importorskip("cuda.bindings.driver")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"driver": 0}, "no NVIDIA driver is installed; where there is none, build an engine with"),
        (
            {"driver": 12040},
            r"driver is too old: it runs CUDA 12\.4, cuda-bindings is for 13\.\d; update the "
            r"driver, or pip install 'cuda-bindings<13'",
        ),
        (
            {"driver": 13000, "devices": ()},
            "the driver shows no GPU .see nvidia-smi and CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_why_there_is_no_gpu_is_one_line(gpu, machine, words):
    cuda, _ = gpu(**machine)
    with pytest.raises(BackendError, match=words) as error:
        find_device("a test")
    assert str(error.value).startswith("a test needs an NVIDIA GPU: ")
    assert "\n" not in str(error.value)
    assert "cuStreamCreate" not in cuda.calls
    assert probe()[0] == ()


def test_a_gpu_is_described(gpu):
    gpu(name="Orin", capability="8.7", module=(16, 32 * 10**9))
    device = Device("Orin", "8.7", multiprocessors=16, memory_bytes=32 * 10**9)
    assert (find_device("x"), probe()) == (device, ((device,), "ok"))
    assert str(device) == "Orin (8.7, 16 SM, 32 GB)"


def test_a_driver_older_than_cuda_bindings_is_taken_within_a_major(gpu, monkeypatch):
    """JetPack 6 runs CUDA 12.6; cuda-bindings 12.9 has a CUDA runtime that refuses it."""
    cuda, _ = gpu(driver=12060)
    monkeypatch.setattr(cuda.module, "CUDA_VERSION", 12090)
    assert probe()[1] == "ok"


def test_why_a_gpu_cannot_be_described_is_told(gpu):
    cuda, _ = gpu()
    cuda.fail["cuDeviceTotalMem"] = "CUDA_ERROR_UNKNOWN"
    reason = "CUDA cannot describe GPU 0 (CUDA_ERROR_UNKNOWN: what CUDA_ERROR_UNKNOWN means)"
    assert probe() == ((), reason)
    cuda.fail["cuInit"] = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
    assert probe()[1].startswith("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: what ")


def test_without_cuda_bindings_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"pip install '\.\[tensorrt\]' in the clone"):
        find_device("a test")
    assert probe()[0] == ()


def test_places_are_aligned_zeroed_and_twinned(gpu):
    cuda, _ = gpu()
    device = Gpu()
    shared = {"a": ((3,), "int64"), "b": ((2, 2), "float16"), "c": ((1,), "float32")}
    memory = Memory(device, shared, {"d": 1000, "e": 1})
    assert all(address % 256 == 0 for address in memory.addresses.values())
    assert len(set(memory.addresses.values())) == 5
    device.synchronize()
    assert not cuda.view(memory.addresses["d"], 1000).any()
    memory.arrays["a"][:] = 7
    memory.arrays["b"][:] = 3
    memory.upload("a", "b")
    memory.arrays["a"][:] = 9  # the copy has not run yet: as on a GPU, it takes what is there then
    device.synchronize()
    assert cuda.view(memory.addresses["a"], 24).view(np.int64).tolist() == [9, 9, 9]
    cuda.view(memory.addresses["b"], 8).view(np.float16)[:] = 5
    memory.download("b", "b")
    device.synchronize()
    assert memory.arrays["b"].tolist() == [[5, 5], [5, 5]]
    assert memory.arrays["c"].tolist() == [0]
    memory.free()
    device.close()
    assert cuda.leaks() == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rows", "heads", "size", "grid"), [(3, 5, 4, (1, 7)), (2, 4, 16, (4, 4))])
def test_a_commit_is_one_copy_that_writes_its_position_and_nothing_else(
    gpu, dtype, rows, heads, size, grid
):
    """Also where neither a row nor a layer's block is a multiple of the alignment."""
    cuda, _ = gpu()
    spec = TransformerSpec(heads * size, heads, 3, 1, 8, grid, 2, (2, 3), 10000.0)
    past = [t for t in step_io(spec, INTER_STEP).inputs if contract.is_past(t.name)]
    names, shape = tuple(t.name for t in past), past[0].fixed_shape({"R": rows})
    cache = CacheLayout.of(names, shape, dtype)
    device = Gpu()
    memory = Memory(device, {"x": ((1,), "int64")}, {"p": cache.present_bytes, "c": cache.bytes})
    device.synchronize()
    addresses = cache.addresses(memory.addresses["c"])
    assert list(addresses) == [n for i in range(3) for n in (f"past.{i}.key", f"past.{i}.value")]
    assert all(address % 256 == 0 for address in addresses.values())
    commits = device.strided_copies(memory.addresses["p"], memory.addresses["c"], cache)
    assert len(commits) == spec.positions
    expected = np.zeros((6, rows, heads, spec.positions, size), dtype)
    present = cuda.view(memory.addresses["p"], cache.present_bytes).view(dtype)
    random = np.random.default_rng(0)
    for position in (0, 3, spec.positions - 1):
        values = random.normal(size=(6, rows, heads, size)).astype(dtype)
        present[:] = values.ravel()
        before = cuda.calls.count("cuMemcpy3DAsync")
        commits[position]()
        device.synchronize()
        assert cuda.calls.count("cuMemcpy3DAsync") == before + 1
        expected[:, :, :, position] = values
    for index, address in enumerate(addresses.values()):
        found = cuda.view(address, expected[index].nbytes).view(dtype)
        np.testing.assert_array_equal(found.reshape(expected[index].shape), expected[index])


def test_what_is_recorded_is_launched_as_one(gpu):
    cuda, _ = gpu()
    device = Gpu()
    memory = Memory(device, {"x": ((2,), "int64")}, {})
    device.synchronize()
    launch = device.capture(lambda: memory.upload("x", "x"))
    for value in (1, 2):
        memory.arrays["x"][:] = value
        launch()
        device.synchronize()
        assert cuda.view(memory.addresses["x"], 8).view(np.int64).tolist() == [value]
    assert cuda.launches == 2


def test_work_that_cannot_be_recorded_leaves_a_usable_stream(gpu):
    gpu()
    device = Gpu()
    with pytest.raises(BackendError, match=r"cuMemAlloc .CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        device.capture(lambda: device.call("cuMemAlloc", 10))
    device.synchronize()
    assert device.capture(lambda: None)() is None
