"""What an engine says on another machine, beside another bundle, or without its TensorRT."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import GOLDEN

import m2kit
from m2kit.build import BuildOptions
from m2kit.engines.building import build_engine
from m2kit.errors import BackendError, FolderError
from m2kit.hashes import sha256_of_json
from m2kit.manifest import ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.runtime.device import Device
from m2kit.runtime.target import check_machine

pytest.importorskip("torch")


@pytest.fixture
def bundle(exported):
    return exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0]


@pytest.fixture
def engine(bundle, tmp_path, gpu):
    """An engine folder built on the test GPU, with its bundle beside it."""
    gpu()
    shutil.copytree(bundle, tmp_path / "m.bundle")
    options = BuildOptions(batch=2, opt_level=4)
    build_engine(tmp_path / "m.bundle", tmp_path / "m.engine", "tensorrt", options)
    return tmp_path / "m.engine"


REBUILD = (
    "`m2kit build-engine m.bundle -o m.engine --backend tensorrt --precision fp16 --batch 2 "
    "--opt-level 4`"
)


def change(folder, options=None, target=None, **build):
    """Rewrite fields of engine.json's build as if it had been made so."""
    path = folder / "engine.json"
    value = json.loads(path.read_text())
    value["build"].update(build)
    value["build"]["options"].update(options or {})
    value["build"]["target"].update(target or {})
    del value["digest"]
    path.write_text(json.dumps(value | {"digest": sha256_of_json(value)}))


@pytest.mark.parametrize(
    ("here", "built", "words"),
    [
        ({"version": "10.4.0"}, {}, "(TensorRT: built with 10.3.0, here 10.4.0)"),
        (
            {"name": "Orin"},
            {},
            "(GPU: built for Test GPU (8.6, 28 SM, 12 GB), here Orin (8.6, 28 SM, 12 GB))",
        ),
        (
            {"capability": "8.7"},
            {},
            "(GPU: built for Test GPU (8.6, 28 SM, 12 GB), here Test GPU (8.7, 28 SM, 12 GB))",
        ),
        ({}, {"target": {"architecture": "aarch64"}}, "(architecture: built for aarch64, here "),
        ({}, {"target": {"os": "Plan 9"}}, "(operating system: built for Plan 9, here Linux)"),
        (
            {"version": "11.4.0.106", "name": "Orin", "capability": "8.7"},
            {},
            "(TensorRT: built with 10.3.0, here 11.4.0.106; GPU: built for Test GPU (8.6, 28 SM, "
            "12 GB), here Orin (8.7, 28 SM, 12 GB))",
        ),
    ],
)
def test_an_engine_of_another_machine_names_each_field_and_the_command(
    engine, gpu, here, built, words
):
    change(engine, **built)
    gpu(**here)
    with pytest.raises(FolderError) as error:
        m2kit.open_engine(engine)
    assert words in str(error.value)
    assert str(error.value).endswith(f"build it here with {REBUILD}")


NANO, AGX, AGX_64 = (8, 8 * 10**9), (14, 32 * 10**9), (14, 64 * 10**9)


@pytest.mark.parametrize("here", [NANO, AGX_64])
def test_every_orin_has_one_name_and_another_module_is_refused_all_the_same(
    bundle, tmp_path, gpu, here
):
    orin = {"name": "Orin", "capability": "8.7"}
    gpu(**orin, module=AGX)
    build_engine(bundle, tmp_path / "m.engine", "tensorrt", BuildOptions(opt_level=4))
    gpu(**orin, module=here)
    with pytest.raises(FolderError) as error:
        m2kit.open_engine(tmp_path / "m.engine")
    multiprocessors, memory = here
    assert (
        "(GPU: built for Orin (8.7, 14 SM, 32 GB), here Orin "
        f"(8.7, {multiprocessors} SM, {memory / 1e9:.0f} GB))"
    ) in str(error.value)
    gpu(**orin, module=(14, 31 * 10**9))  # the system keeps a little more for itself
    m2kit.open_engine(tmp_path / "m.engine").backend.close()


def test_an_engine_that_does_not_tell_its_module_is_built_again(engine, gpu):
    """As those of m2kit before it was recorded."""
    change(engine, target={"multiprocessors": None, "memory_bytes": None})
    gpu()
    with pytest.raises(FolderError, match=r"Test GPU \(8\.6, its SM and memory were not recorded"):
        m2kit.open_engine(engine)


VERSIONS = {"options": {"version_compatible": True}}
AMPERE, SAME = (
    {"options": {"hardware_compatible": name}} for name in ("ampere", "same-capability")
)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        (VERSIONS, {"version": "10.4.0"}, True),
        (VERSIONS, {"version": "11.0.0"}, True),
        (VERSIONS, {"version": "12.0.0"}, False),
        (VERSIONS | {"backend_version": "10.9.0"}, {}, False),
        (AMPERE, {"name": "X", "capability": "9.0"}, True),
        (AMPERE, {"name": "X", "capability": "7.5"}, False),
        (SAME, {"name": "X"}, True),
        (SAME, {"capability": "8.9"}, False),
    ],
)
def test_compatible_engines_are_refused_only_where_nvidia_says_so(engine, gpu, built, here, fits):
    change(engine, **built)
    machine = {"version": "10.3.0", "name": "Test GPU", "capability": "8.6"} | here
    device = Device(machine["name"], machine["capability"], 28, 12 * 10**9)
    manifest = read_manifest(engine, ENGINE)
    if fits:
        check_machine(engine, manifest, machine["version"], device)
    else:
        with pytest.raises(FolderError, match="was built for another machine"):
            check_machine(engine, manifest, machine["version"], device)


def test_an_engine_of_another_bundle_than_the_one_beside_it(engine, exported, gpu):
    gpu()
    bundle = engine.parent / "m.bundle"
    shutil.rmtree(bundle)
    other = exported(GOLDEN / "ar_tiny.ckpt", heads=2)[0]
    shutil.copytree(other, bundle)
    with pytest.raises(FolderError) as error:
        m2kit.open_engine(engine)
    assert "was built from another m.bundle than the one beside it (spec.transformer.heads: " in (
        str(error.value)
    )
    assert "engine 4, bundle 2" in str(error.value)
    assert REBUILD in str(error.value)
    shutil.rmtree(bundle)
    m2kit.open_engine(engine).backend.close()


def test_a_bundle_beside_it_that_cannot_be_read_does_not_stop_an_engine(engine, gpu):
    gpu()
    (engine.parent / "m.bundle" / "bundle.json").write_text("{")
    m2kit.open_engine(engine).backend.close()


def test_the_command_that_rebuilds_is_whole_wherever_one_stands(engine, monkeypatch):
    monkeypatch.chdir(engine)
    manifest = read_manifest(Path("."), ENGINE)
    assert f"`{manifest.rebuild_command(Path('.'))}`" == REBUILD
    spaced = replace(manifest, build=replace(manifest.built, bundle="my model.bundle"))
    assert "build-engine 'my model.bundle' -o" in spaced.rebuild_command(engine)


def test_without_tensorrt_or_with_one_that_is_too_old_or_broken(engine, gpu, monkeypatch):
    gpu()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"the tensorrt backend needs .* '\.\[tensorrt\]'"):
        m2kit.open_engine(engine)
    for version in ("8.6.2", "10.0.1"):
        _, trt = gpu()
        trt.__version__ = version
        with pytest.raises(BackendError, match=rf"TensorRT {version} is too old: .* 10\.3 or new"):
            m2kit.open_engine(engine)
