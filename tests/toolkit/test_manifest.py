"""Manifests: intact ones read back, and nothing that was changed, forged or moved passes."""

import json
import os
import shutil
from dataclasses import replace

import pytest

import m2kit
from m2kit.contract import WEIGHTS_FILE
from m2kit.errors import FolderError
from m2kit.folder_check import check_folder
from m2kit.hashes import sha256_of_file, sha256_of_json
from m2kit.manifest import BUNDLE, ENGINE, FileEntry
from m2kit.manifest_file import read_manifest, write_manifest

GRAPHS = ("encoder", "lfq", "decoder", "inter_step", "intra_step")
NO_PLAN = {"layers": {}, "flags": []}


@pytest.fixture
def folder(digits_engine, tmp_path):
    return shutil.copytree(digits_engine, tmp_path / "x.engine")


def forged(folder, change):
    """Change the manifest, and make its digest right again as whoever forges it would."""
    path = folder / "engine.json"
    value = json.loads(path.read_text())
    del value["digest"]
    change(value)
    value["digest"] = sha256_of_json(value)
    path.write_text(json.dumps(value))


def test_an_intact_folder_reads_back(folder):
    manifest = read_manifest(folder, ENGINE)
    check_folder(folder, manifest, trust_seen_weights=False)
    write_manifest(folder, manifest)
    assert read_manifest(folder, ENGINE) == manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "schema version 1, this m2kit reads version 2; build it again with"),
        ({"schema": None}, "schema version None"),
        ({"name": "y"}, "was changed after it was written"),
    ],
)
def test_another_schema_or_any_change_is_refused(folder, change, words):
    path = folder / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FolderError, match=words):
        read_manifest(folder, ENGINE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_broken_manifest_is_one_error(folder, text):
    (folder / "engine.json").write_text(text)
    with pytest.raises(FolderError, match="m2kit build-engine"):
        read_manifest(folder, ENGINE)


def test_the_wrong_kind_of_folder_is_named(folder, tmp_path):
    with pytest.raises(FolderError, match="expected a bundle folder, found an engine"):
        read_manifest(folder, BUNDLE)
    with pytest.raises(FolderError, match="found nothing"):
        read_manifest(tmp_path / "none", BUNDLE)
    with pytest.raises(FolderError, match=r"found no bundle\.json"):
        read_manifest(tmp_path, BUNDLE)
    with pytest.raises(FolderError, match="found a file"):
        read_manifest(folder / "encoder.onnx", BUNDLE)


def entry(value, graph="encoder"):
    return value["lowerings"]["portable"][graph]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("source"), "source: is missing"),
        (lambda v: v.update(extra=1), "extra: a field that is not known"),
        (lambda v: v.update(kind="bundle"), "kind: expected engine, found bundle"),
        (lambda v: v["spec"]["transformer"].update(inter_layers=2**40), "inter_layers: expected"),
        (lambda v: v["spec"]["tokenizer"].update(family="x"), "family must be one of image"),
        (lambda v: v["build"].update(rows=3.5), "build.rows: expected a whole number"),
        (lambda v: v["build"].update(rows=7), "build.rows: expected an even number"),
        (
            lambda v: v["build"].update(image_sizes=[[33, 32]]),
            "image_sizes: the model takes none of .33, 32.",
        ),
        (lambda v: v["build"]["options"].update(batch=0), "batch: expected a whole number in 1"),
        (lambda v: v["build"].update(bundle="../x"), "build.bundle: expected a folder's name"),
        (lambda v: v.pop("build"), "build: expected for an engine"),
        (lambda v: v.update(sampling=None), "sampling: expected for a model with a transformer"),
        (lambda v: v["sampling"].update(top_p=[2.0, 1.0]), "top_p must be a number above 0"),
        (lambda v: v.update(files={}), "is not listed in files"),
        (lambda v: entry(v).update(file="../home/victim.onnx"), "file: expected a plain file name"),
        (lambda v: entry(v).update(file="/etc/passwd"), "file: expected a plain file name"),
        (lambda v: entry(v).update(file=".."), "is not listed in files"),
        (lambda v: entry(v).update(file="lfq.onnx"), "two graphs share a file"),
        (lambda v: entry(v).update(compute="float16"), "compute: expected float32"),
        (lambda v: entry(v)["inputs"].pop(), "inputs and outputs are not those of the spec"),
        (lambda v: v["lowerings"]["portable"].pop("lfq"), "expected the graphs encoder, lfq"),
        (lambda v: v["lowerings"].update(other={}), "lowerings: expected portable or onnxruntime"),
        (lambda v: v["lowerings"]["onnxruntime"].pop("inter_step"), "expected .'inter_step', 'in"),
        (lambda v: v["lowerings"]["portable"].pop("inter_step"), "expected the graphs encoder"),
        (lambda v: v.update(precision="int8"), "expected the graphs|quantization|precision"),
        (lambda v: v["build"]["options"].update(precision="int4"), "the engine is float32"),
        (lambda v: v["build"].update(weight_bytes={"graphs": {}}), "weight_bytes.graphs: expected"),
        (lambda v: v["build"]["target"].update(gpu="H100"), "compute_capabilities: expected"),
        (lambda v: v["build"].update(backend_version="9" * 5000), "expected printable text"),
        (lambda v: v.update(maxima={}), "maxima: expected the graphs"),
        (lambda v: v.update(name="a\u001b[31m"), "name: expected a name without control"),
        (lambda v: v["build"].update(plans={g: NO_PLAN for g in GRAPHS}), "files ending in .plan"),
        (lambda v: v["files"].pop("reference.npz"), "reference.npz is missing"),
        (lambda v: v["files"].update({"a/b": v["files"]["lfq.onnx"]}), "not a plain file name"),
        (lambda v: v["parity"]["checks"]["decoder"].update(found=[]), "found: expected an object"),
        (lambda v: v["source"].update(checkpoint_sha256="x"), "expected a sha256"),
    ],
)
def test_a_forged_manifest_is_one_error_that_names_the_field(folder, change, words):
    forged(folder, change)
    with pytest.raises(FolderError, match=words) as caught:
        read_manifest(folder, ENGINE)
    assert "build it again" in str(caught.value)


def test_graphs_that_call_themselves_plans_are_not_opened(folder):
    """Plans are not parsed before they are opened: only a backend that makes them may have them."""

    def renamed(value):
        value["build"]["plans"] = dict.fromkeys(GRAPHS, NO_PLAN)
        value["build"].update(rows=2, image_sizes=[[32, 32]])
        value["build"]["options"]["batch"] = 1
        del value["lowerings"]["onnxruntime"]
        for graph, entry in value["lowerings"]["portable"].items():
            plan = f"{graph}.plan" if "step" in graph else f"{graph}.32x32.plan"
            (folder / entry["file"]).rename(folder / plan)
            value["files"][plan] = value["files"].pop(entry["file"])
            entry["file"] = plan

    forged(folder, renamed)
    with pytest.raises(FolderError, match="onnxruntime does not make such an engine"):
        m2kit.open_engine(folder)


def test_every_damaged_file_is_named(folder):
    manifest = read_manifest(folder, ENGINE)
    size = manifest.files[WEIGHTS_FILE].bytes
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(bytes(size - 1) + b"\1")
    (folder / "encoder.onnx").unlink()
    with pytest.raises(FolderError, match=r"encoder\.onnx: missing; weights\.bin: its bytes"):
        check_folder(folder, manifest, trust_seen_weights=True)
    weights.write_bytes(b"")
    with pytest.raises(FolderError, match=f"expected {size} bytes, found 0"):
        check_folder(folder, manifest, trust_seen_weights=True)


def outside(folder):
    (folder.parent / "outside").write_bytes((folder / "lfq.onnx").read_bytes())
    (folder / "lfq.onnx").unlink()
    (folder / "lfq.onnx").symlink_to(folder.parent / "outside")


def pipe(folder):
    (folder / "lfq.onnx").unlink()
    os.mkfifo(folder / "lfq.onnx")


def device(folder):
    (folder / "lfq.onnx").unlink()
    (folder / "lfq.onnx").symlink_to("/dev/zero")


def circle(folder):
    (folder / "lfq.onnx").unlink()
    (folder / "lfq.onnx").symlink_to("lfq.onnx")


@pytest.mark.parametrize("change", [outside, pipe, device, circle])
def test_what_is_no_regular_file_of_the_folder_is_never_opened(folder, change):
    manifest = read_manifest(folder, ENGINE)
    change(folder)
    with pytest.raises(FolderError, match=r"lfq\.onnx: (a link that|not a reg|missing)"):
        check_folder(folder, manifest, trust_seen_weights=True)


@pytest.mark.parametrize("other", ["encoder.onnx", None])
@pytest.mark.parametrize("name", ["lfq.onnx", "inter_step.onnx", "intra_step.onnxruntime.onnx"])
def test_a_graph_in_the_place_of_another_is_noticed_in_every_lowering(folder, name, other):
    data = (folder / other).read_bytes() if other else b""
    (folder / name).write_bytes(data)
    manifest = read_manifest(folder, ENGINE)
    files = manifest.files | {name: FileEntry(sha256_of_file(folder / name), len(data))}
    with pytest.raises(FolderError, match=name):
        check_folder(folder, replace(manifest, files=files), trust_seen_weights=True)


def test_weights_beyond_their_file_are_refused(folder):
    (folder / WEIGHTS_FILE).write_bytes(bytes(100))
    manifest = read_manifest(folder, ENGINE)
    entry = FileEntry(sha256_of_file(folder / WEIGHTS_FILE), 100)
    short = replace(manifest, files=manifest.files | {WEIGHTS_FILE: entry})
    with pytest.raises(FolderError, match=r"expected weights inside weights\.bin of 100 bytes"):
        check_folder(folder, short, trust_seen_weights=True)


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names = []
    monkeypatch.setattr(
        "m2kit.hashes.sha256_of_file",
        lambda path: (names.append(path.name), sha256_of_file(path))[1],
    )
    return names


def test_weights_are_hashed_once_per_file_unless_asked(folder, hashed):
    manifest = read_manifest(folder, ENGINE)
    for _ in range(2):
        check_folder(folder, manifest, trust_seen_weights=True)
    assert hashed.count(WEIGHTS_FILE) == 1
    check_folder(folder, manifest, trust_seen_weights=False)
    assert hashed.count(WEIGHTS_FILE) == 2


def test_weights_that_changed_under_their_old_date_are_noticed(folder):
    manifest = read_manifest(folder, ENGINE)
    check_folder(folder, manifest, trust_seen_weights=True)
    weights = folder / WEIGHTS_FILE
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"\1\2\3\4")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FolderError, match=r"weights\.bin: its bytes have changed"):
        check_folder(folder, manifest, trust_seen_weights=True)


@pytest.mark.parametrize(
    "damage", ["not json", "", "[]", "[" * 100_000, '{"a":' * 100_000, "\0", '{"a": "\\ud800"}']
)
def test_a_damaged_memory_of_hashes_is_replaced(folder, home, hashed, damage):
    memory = home / ".cache" / "m2kit" / "hashed.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(damage)
    manifest = read_manifest(folder, ENGINE)
    for _ in range(2):
        check_folder(folder, manifest, trust_seen_weights=True)
    assert hashed.count(WEIGHTS_FILE) == 1
    assert list(json.loads(memory.read_text()).values()) == [manifest.files[WEIGHTS_FILE].sha256]


def test_a_memory_that_remembers_something_else_is_no_proof_and_no_harm(folder, home, hashed):
    manifest = read_manifest(folder, ENGINE)
    check_folder(folder, manifest, trust_seen_weights=True)
    memory = home / ".cache" / "m2kit" / "hashed.json"
    for other in ("x", "0" * 64, [], None):
        memory.write_text(json.dumps(dict.fromkeys(json.loads(memory.read_text()), other)))
        check_folder(folder, manifest, trust_seen_weights=True)
    assert hashed.count(WEIGHTS_FILE) == 5


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_memory_that_is_no_file_is_left_alone(folder, home, make):
    memory = home / ".cache" / "m2kit" / "hashed.json"
    memory.parent.mkdir(parents=True)
    make(memory)
    check_folder(folder, read_manifest(folder, ENGINE), trust_seen_weights=True)
    assert not memory.is_file()
