"""The doubles offer nothing that the real packages do not have, and notice what those would."""

import json

import pytest
from conftest import ROOT
from doubles.cuda_double import CudaDouble, Misuse
from doubles.tensorrt_double import make_tensorrt
from doubles.tensorrt_names import CLASSES, names_of

NAMES = json.loads((ROOT / "tests" / "doubles" / "tensorrt_names.json").read_text())


def offered(part):
    """Public names of a class or an enumeration of the double."""
    members = getattr(part, "__members__", None)
    names = members if members is not None else vars(part)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("version", NAMES)
def test_every_name_of_the_double_is_in_that_tensorrt(version):
    double = make_tensorrt(version)
    for name in CLASSES:
        real = set(NAMES[version][name].split())
        own = {"flags", "model", "inputs", "layers"} if name == "INetworkDefinition" else set()
        assert offered(getattr(double, name)) <= real | own, name


def test_what_is_absent_from_a_version_is_absent_from_the_double():
    for version, names in NAMES.items():
        double = make_tensorrt(version)
        for flag in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
            part = double.NetworkDefinitionCreationFlag
            assert hasattr(part, flag) == (flag in names[part.__name__].split())
        levels = double.HardwareCompatibilityLevel
        assert offered(levels) == set(names[levels.__name__].split()) - {"name", "value"}
        assert hasattr(double.BuilderFlag, "FP16") == ("FP16" in names["BuilderFlag"].split())


def test_every_name_of_the_double_is_in_tensorrt_rtx():
    real = pytest.importorskip("tensorrt_rtx")
    names, double = names_of(real), make_tensorrt("1.7.1.116", "tensorrt_rtx")
    for name in CLASSES:
        if name not in ("NetworkDefinitionCreationFlag", "BuilderFlag"):
            assert offered(getattr(double, name)) <= set(names[name].split()), name
    assert offered(double.BuilderFlag) <= set(names["BuilderFlag"].split())
    assert hasattr(real.IExecutionContext, "is_stream_capturable")
    for name in ("IRuntimeCache", "IRuntimeConfig"):
        assert offered(getattr(double, name)) <= set(dir(getattr(real, name))), name
    assert hasattr(real.ICudaEngine, "create_runtime_config")


def test_every_function_of_the_cuda_double_is_in_cuda_bindings():
    pytest.importorskip("cuda.bindings.driver")
    CudaDouble()  # compares while it is made


def test_the_double_notices_memory_used_after_it_was_freed(gpu):
    cuda, _ = gpu()
    (_, address), (_, stream) = cuda.cuMemAlloc(512), cuda.cuStreamCreate(1)
    address = int(address)
    cuda.cuMemFree(address)
    with pytest.raises(Misuse, match="not in one live allocation"):
        cuda.view(address, 512)
    with pytest.raises(Misuse, match="not allocated"):
        cuda.cuMemFree(address)
    cuda.cuStreamDestroy(stream)
