"""Opening an engine folder: intact, of the bundle beside it, on the backend it was built for. One
that was never run on the device at hand is compared with PyTorch's reference first. And opening a
bundle as it is, which was compared when it was exported.
"""

from __future__ import annotations

from pathlib import Path

from m2kit.errors import FolderError
from m2kit.folder_check import check_folder
from m2kit.host import check_threads
from m2kit.manifest import BUNDLE, ENGINE, Manifest
from m2kit.manifest_file import read_manifest
from m2kit.precision import Precision
from m2kit.progress import Begin, silent
from m2kit.runtime.arguments import check_flag, check_function
from m2kit.runtime.backend import Opening
from m2kit.runtime.backends import backend_of
from m2kit.runtime.engine import Engine
from m2kit.runtime.interchange import path_from
from m2kit.runtime.parity import prove, remember
from m2kit.runtime.target import check_bundle


def open_engine(
    path: str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    check: bool = False,
    begin: Begin = silent,
) -> Engine:
    """Open an engine folder made by `m2kit build-engine`.

    Args:
        path: The folder.
        provider: For the onnxruntime backend: "cpu" (the default) or "cuda". Never falls back.
        threads: For the onnxruntime backend: threads inside an operator; None is as many as
            this process has cores, which is also the most.
        check: Hash the weights even if this very file was hashed before.
        begin: Called with the name of each stage that takes long.

    Returns:
        A context manager: `encode`, `decode`, `sample`, `generate`, `score`.

    Raises:
        InputError: An argument that is out of range or not of this engine's backend.
        FolderError: Not an intact engine of a schema this version reads, or of another machine
            or bundle.
        BackendError: Its backend, provider or GPU is not available here.
        ParityError: It runs here for the first time and does not agree with PyTorch.
    """
    folder = path_from(path, "path")
    check_threads(threads)
    check_flag(check, "check")
    check_function(begin, "begin")
    manifest = read_manifest(folder, ENGINE)
    kind = backend_of(folder, manifest)
    check_folder(folder, manifest, trust_seen_weights=not check)
    check_bundle(folder, manifest)
    backend = kind.open(folder, manifest, Opening(provider=provider, threads=threads))
    engine = Engine(manifest.spec, backend, defaults=manifest.sampling, info=manifest)
    if backend.device not in manifest.parity.devices:
        try:
            engine.info = _first_run(engine, manifest, folder, begin)
        except BaseException:
            backend.close()
            raise
    return engine


def open_bundle(folder: Path) -> Engine:
    """Open a float32 bundle with ONNX Runtime, on the CPU.

    Raises:
        FolderError: Not an intact bundle, or one in half precision.
        BackendError: onnxruntime is not installed.
    """
    manifest = read_manifest(folder, BUNDLE)
    if manifest.precision is not Precision.FLOAT32:
        raise FolderError(
            f"{folder}: expected a float32 bundle, found one in half precision; build an engine of "
            "it with `m2kit build-engine`, or open it with m2kit.engines.emulation.open_emulated"
        )
    check_folder(folder, manifest, trust_seen_weights=True)
    backend = backend_of(folder, manifest).open(folder, manifest, Opening())
    return Engine(manifest.spec, backend, defaults=manifest.sampling, info=manifest)


def _first_run(engine: Engine, manifest: Manifest, folder: Path, begin: Begin) -> Manifest:
    """Compare with the reference, and remember the result where the folder is writable."""
    device = engine.backend.device
    begin(f"first run on {device}")
    report = prove(folder, manifest, begin, opened=engine.backend)
    report.require(f"{folder} on {device}", accept_quality=manifest.built.options.accept_quality)
    checked, written = remember(folder, manifest, report)
    if not written:
        begin(f"it agrees; {folder} is not writable, so the next run compares again")
    return checked
