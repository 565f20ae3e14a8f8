import json
import os
import platform
import shutil

import onnxruntime
import pytest
from conftest import GOLDEN, run_m2kit

import m2kit
from m2kit import contract
from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine
from m2kit.errors import FolderError, ParityError
from m2kit.folder_check import check_folder
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.precision import Precision
from m2kit.runtime.ort.backend import OnnxRuntimeBackend


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy of a bundle that may be damaged."""
    return shutil.copytree(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0], tmp_path / "a.bundle")


def only_bundle_left(path):
    return [entry.name for entry in path.iterdir()] == ["a.bundle"]


def test_an_engine_says_what_built_it_and_for_what(exported):
    folder = exported(GOLDEN / "ar_tiny.ckpt", heads=4)[1]
    value = json.loads((folder / "engine.json").read_text())
    build = value["build"]
    assert value["precision"] == build["options"]["precision"] == "float32"
    assert build["seconds"] > 0
    assert build["peak_memory_bytes"] > 1e7
    assert {"backend", "backend_version", "target"} <= set(build)
    assert {"os", "architecture"} <= set(build["target"])
    read = read_manifest(folder, ENGINE).built
    assert (read.backend, read.backend_version) == ("onnxruntime", onnxruntime.__version__)
    assert (read.target.os, read.target.architecture) == (platform.system(), platform.machine())
    assert (read.target.gpu, read.target.compute_capabilities) == (None, ())
    assert (read.rows, read.image_sizes) == (None, None)  # any number of rows, any size
    assert (read.bundle, read.options) == ("m.bundle", BuildOptions(precision=Precision.FLOAT32))


@pytest.mark.parametrize("name", ["weights.bin", "decoder.onnx", "reference.npz", "bundle.json"])
def test_a_changed_byte_stops_the_build(bundle, tmp_path, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(FolderError, match=name.replace(".", r"\.")):
        build_engine(bundle, tmp_path / "a.engine", "onnxruntime")
    assert only_bundle_left(tmp_path)


@pytest.mark.parametrize("options", [{}, {"precision": Precision.INT8}])
def test_weights_with_a_second_name_are_verified_built_and_opened(bundle, tmp_path, options):
    """As `cp -l` and backups make them."""
    (bundle / "weights.bin").rename(tmp_path / "weights")
    os.link(tmp_path / "weights", bundle / "weights.bin")
    check_folder(bundle, read_manifest(bundle, BUNDLE), trust_seen_weights=False)
    build_engine(bundle, tmp_path / "a.engine", "onnxruntime", BuildOptions(**options))
    os.link(tmp_path / "a.engine" / "weights.bin", tmp_path / "other")
    with m2kit.open_engine(tmp_path / "a.engine") as engine:
        assert engine.sample([1]).shape == (1, 4, 4, 2)


def test_weights_behind_a_link_are_taken_inside_the_folder_only(bundle, tmp_path):
    engine = tmp_path / "a.engine"
    (bundle / "weights.bin").rename(bundle / "real")
    (bundle / "weights.bin").symlink_to("real")
    build_engine(bundle, engine, "onnxruntime")
    (engine / "weights.bin").rename(tmp_path / "elsewhere")
    (engine / "weights.bin").symlink_to(tmp_path / "elsewhere")
    words = r"weights\.bin: a link that leaves this folder \(expected the file itself: copy it here"
    with pytest.raises(FolderError, match=words):
        m2kit.open_engine(engine)
    (bundle / "real").rename(tmp_path / "elsewhere")
    (bundle / "weights.bin").unlink()
    (bundle / "weights.bin").symlink_to(tmp_path / "elsewhere")
    for refused in (
        lambda: check_folder(bundle, read_manifest(bundle, BUNDLE), trust_seen_weights=True),
        lambda: build_engine(bundle, tmp_path / "b.engine", "onnxruntime"),
    ):
        with pytest.raises(FolderError, match=words):
            refused()


def build_without(packages, bundle, folder):
    """The command line's answer where these packages are not installed."""
    absent = folder / "absent"
    absent.mkdir()
    for name in packages:
        text = f"raise ModuleNotFoundError({name!r}, name={name!r})"
        (absent / f"{name}.py").write_text(text)
    path = os.pathsep.join(filter(None, [str(absent), os.environ.get("PYTHONPATH")]))
    return run_m2kit(
        "build-engine", bundle, "-o", folder / "x.engine", "--backend", "onnxruntime",
        cwd=folder, check=False, env={"PYTHONPATH": path},
    )  # fmt: skip


def test_without_onnx_ir_the_extra_that_builds_on_a_cpu_is_named(bundle, tmp_path):
    done = build_without(["onnx_ir", "torch"], bundle, tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "building for onnxruntime needs the package onnx_ir" in line
    assert "pip install '.[cpu,build]'" in line
    assert not (tmp_path / "x.engine").exists()


def test_it_needs_no_torch(bundle, tmp_path):
    done = build_without(["torch", "safetensors", "lightning"], bundle, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.engine" / "engine.json").is_file()


def test_a_missing_file_stops_the_build(bundle, tmp_path):
    (bundle / "encoder.onnx").unlink()
    with pytest.raises(FolderError, match=r"encoder\.onnx: missing"):
        build_engine(bundle, tmp_path / "a.engine", "onnxruntime")
    assert only_bundle_left(tmp_path)


def test_a_consistent_bundle_that_computes_something_else_stops_the_build(bundle, tmp_path):
    """Weights changed and every hash made right again: only the comparison can notice."""
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[3] ^= 0x10  # the exponent of the first weight
    (bundle / "weights.bin").write_bytes(data)
    value = json.loads((bundle / "bundle.json").read_text())
    value["files"]["weights.bin"]["sha256"] = sha256_of_file(bundle / "weights.bin")
    del value["digest"]
    text = json.dumps(value | {"digest": sha256_of_json(value)})
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ParityError, match="encoder"):
        build_engine(bundle, tmp_path / "a.engine", "onnxruntime")
    assert only_bundle_left(tmp_path)


def test_an_engine_is_compared_when_it_first_runs_on_another_processor(
    exported, tmp_path, monkeypatch
):
    folder = tmp_path / "a.engine"
    shutil.copytree(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[1], folder)
    said = []

    def begin(stage, total=None):
        said.append(stage)
        return lambda count: None

    m2kit.open_engine(folder, begin=begin).backend.close()
    assert said == []  # it was compared here when it was built
    (here,) = read_manifest(folder, ENGINE).parity.devices
    monkeypatch.setattr("m2kit.runtime.ort.backend.host_name", lambda: "Another CPU")
    run = OnnxRuntimeBackend.run

    def negated(self, graph, feeds):
        sign = -1 if graph == contract.DECODER else 1
        return {name: sign * array for name, array in run(self, graph, feeds).items()}

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", negated)
        with pytest.raises(ParityError, match=r"a\.engine on Another CPU does not .* decoder \("):
            m2kit.open_engine(folder)
    assert read_manifest(folder, ENGINE).parity.devices == (here,)
    with m2kit.open_engine(folder, begin=begin) as engine:
        assert engine.info.parity.passed
    assert said == [
        "first run on Another CPU", "comparing with PyTorch's reference (Another CPU)"
    ]  # fmt: skip
    assert read_manifest(folder, ENGINE).parity.devices == (here, "Another CPU")
    m2kit.open_engine(folder, begin=begin).backend.close()
    assert len(said) == 2
