"""Every forgery is refused in one line or accepted for a reason: no traceback, no hang, nothing
read or written outside the folder. A few hundred here; all of them by `make test-hostile`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from conftest import GOLDEN, ROOT

import m2kit
from hostile import forgeries
from m2kit.contract import PORTABLE
from m2kit.engines.building import build_engine
from m2kit.errors import M2KitError
from m2kit.folder_check import check_folder
from m2kit.manifest import BUNDLE, ENGINE
from m2kit.manifest_file import read_manifest
from m2kit.runtime.comparison import compare
from m2kit.runtime.reference import read_reference

_MOST_SECONDS = 10
_IN_EVERY_RUN = 200  # of each kind


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    """A bundle and an engine of the golden AR model, alone in a folder of their own."""
    pytest.importorskip("onnxruntime")
    bundle, engine = exported(GOLDEN / "ar_tiny.ckpt", heads=4)
    home = tmp_path_factory.mktemp("hostile")
    return (
        Path(shutil.copytree(bundle, home / "b" / "m.bundle")),
        Path(shutil.copytree(engine, home / "e" / "m.engine")),
    )


def chosen(cases, request):
    """All of them, or an even choice."""
    cases = list(cases)
    if request.config.getoption("--all-cases"):
        return cases
    step = max(1, len(cases) // _IN_EVERY_RUN)
    return cases[::step]


class Watch:
    """Which files Python opens outside a folder and the interpreter's own."""

    def __init__(self):
        self.allowed = ()
        self.seen = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event == "open" and self.allowed and isinstance(arguments[0], (str, bytes, Path)):
            path = Path(str(arguments[0])).resolve()
            if not any(path.is_relative_to(folder) for folder in self.allowed):
                self.seen.append((str(path), arguments[1]))


WATCH = Watch()
INTERPRETER = tuple(Path(p).resolve() for p in (sys.prefix, sys.base_prefix, ROOT, *sys.path) if p)


def attempt(forgery, original, folder, use):
    """Apply a forgery to a fresh copy of the manifest and graphs, use it, put all back."""
    saved = {
        path.name: path.read_bytes() for path in original.iterdir() if path.name != "weights.bin"
    }
    try:
        forgery.apply(folder)
        began = time.monotonic()
        WATCH.seen.clear()
        WATCH.allowed = (folder, *INTERPRETER, Path("/proc"), Path("/sys"), Path.home())
        try:
            use(folder)
            error = None
        except M2KitError as refusal:
            error = str(refusal)
        finally:
            WATCH.allowed = ()
        assert time.monotonic() - began < _MOST_SECONDS, forgery.name
        assert not WATCH.seen, (forgery.name, WATCH.seen)
        if error is None:
            assert forgery.free, f"accepted: {forgery.name}"
        else:
            assert "\n" not in error.strip() and len(error) < 2000, forgery.name
        return error
    finally:
        for name, data in saved.items():
            (folder / name).write_bytes(data)
        for path in list(folder.iterdir()):
            if path.name not in saved and path.name != "weights.bin":
                path.unlink()


def use_engine(folder):
    with m2kit.open_engine(folder) as engine:
        tokens = engine.sample([0], m2kit.Sampling(greedy=True))
        engine.decode(tokens)


def use_bundle(folder):
    manifest = read_manifest(folder, BUNDLE)
    check_folder(folder, manifest, trust_seen_weights=True)


def reread(folder):
    return json.loads(next(folder.glob("*.json")).read_text())


@pytest.mark.parametrize("kind", [BUNDLE, ENGINE])
def test_forged_manifests(folders, kind, request, tmp_path):
    original = folders[kind == ENGINE]
    folder = Path(shutil.copytree(original, tmp_path / "f" / original.name))
    use = use_engine if kind == ENGINE else use_bundle
    outcomes = [
        attempt(forgery, original, folder, use)
        for forgery in chosen(forgeries.manifests(reread(folder)), request)
    ]
    assert sum(outcome is not None for outcome in outcomes) > 0.5 * len(outcomes)
    use(folder)  # and the folder as it was is still taken


@pytest.mark.parametrize("kind", [BUNDLE, ENGINE])
def test_forged_graphs(folders, kind, request, tmp_path):
    original = folders[kind == ENGINE]
    folder = Path(shutil.copytree(original, tmp_path / "f" / original.name))
    names = sorted(path.name for path in folder.glob("*.onnx"))
    (folder.parent / "secret.x").write_bytes(bytes(10_000_000))
    use = use_engine if kind == ENGINE else use_bundle
    cases = forgeries.graphs(folder, names, count=400, seed=kind == ENGINE)
    for forgery in chosen(cases, request):
        attempt(forgery, original, folder, use)
    use(folder)


def test_forged_references(folders, request, tmp_path):
    original = folders[1]
    folder = Path(shutil.copytree(original, tmp_path / "f" / original.name))

    with m2kit.open_engine(original) as engine:

        def use(folder):
            manifest = read_manifest(folder, ENGINE)
            check_folder(folder, manifest, trust_seen_weights=True)
            compare(engine, read_reference(folder, manifest.spec)).require("the engine")

        for forgery in chosen(forgeries.references(folder), request):
            attempt(forgery, original, folder, use)
        use(folder)


@pytest.mark.parametrize("target", ["../home/victim.onnx", "/tmp/victim.onnx", "..", "a/b.onnx"])
def test_a_forged_bundle_does_not_make_build_engine_write_elsewhere(folders, target, tmp_path):
    folder = Path(shutil.copytree(folders[0], tmp_path / "m.bundle"))
    home = tmp_path / "home"
    home.mkdir()
    (home / "victim.onnx").write_text("mine")
    value = reread(folder)
    value["lowerings"][PORTABLE]["encoder"]["file"] = target
    value["files"][target] = value["files"].pop("encoder.onnx")
    forgeries.set_manifest(folder, value)
    with pytest.raises(M2KitError, match=r"plain file name|files ending"):
        build_engine(folder, tmp_path / "m.engine", "onnxruntime")
    assert (home / "victim.onnx").read_text() == "mine"
    assert sorted(p.name for p in home.iterdir()) == ["victim.onnx"]
    assert not (tmp_path / "m.engine").exists()


def test_there_are_enough_of_them(folders):
    bundle, engine = folders
    names = [path.name for path in engine.glob("*.onnx")]
    count = sum(
        1
        for cases in (
            forgeries.manifests(reread(bundle)),
            forgeries.manifests(reread(engine)),
            forgeries.graphs(bundle, names, 400, 0),
            forgeries.graphs(engine, names, 400, 1),
            forgeries.references(engine),
        )
        for _ in cases
    )
    assert count >= 2000
