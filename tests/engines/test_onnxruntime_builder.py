import json
import shutil

import pytest
from conftest import GOLDEN

from m2kit.engines.onnxruntime_builder import build_onnxruntime_engine
from m2kit.errors import FolderError, ParityError
from m2kit.folders import sha256_of_file, sha256_of_json


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy of a bundle that may be damaged."""
    return shutil.copytree(exported(GOLDEN / "ar_tiny.ckpt", heads=4)[0], tmp_path / "a.bundle")


def only_bundle_left(path):
    return [entry.name for entry in path.iterdir()] == ["a.bundle"]


def test_an_engine_says_what_built_it_and_for_what(exported):
    value = json.loads((exported(GOLDEN / "ar_tiny.ckpt", heads=4)[1] / "engine.json").read_text())
    build = value["build"]
    assert build["precision"] == "float32"
    assert build["seconds"] > 0
    assert build["peak_memory_bytes"] > 1e7
    assert {"backend", "backend_version", "os", "architecture", "rows", "image_sizes"} <= set(build)


@pytest.mark.parametrize("name", ["weights.bin", "decoder.onnx", "reference.npz", "bundle.json"])
def test_a_changed_byte_stops_the_build(bundle, tmp_path, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(FolderError, match=name.replace(".", r"\.")):
        build_onnxruntime_engine(bundle, tmp_path / "a.engine")
    assert only_bundle_left(tmp_path)


def test_a_missing_file_stops_the_build(bundle, tmp_path):
    (bundle / "encoder.onnx").unlink()
    with pytest.raises(FolderError, match=r"encoder\.onnx: missing"):
        build_onnxruntime_engine(bundle, tmp_path / "a.engine")
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
        build_onnxruntime_engine(bundle, tmp_path / "a.engine")
    assert only_bundle_left(tmp_path)
