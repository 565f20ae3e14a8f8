"""Opening an engine folder: intact, of the bundle beside it, on the backend it was built for. One
that was never run on the GPU at hand is compared with PyTorch's reference first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2kit.errors import BackendError, FolderError, InputError
from m2kit.folders import new_file
from m2kit.manifest import (
    ENGINE,
    REFERENCE_FILE,
    Manifest,
    check_files,
    manifest_name,
    manifest_text,
    read_manifest,
)
from m2kit.progress import Begin, silent
from m2kit.runtime.backend import Backend
from m2kit.runtime.engine import Engine
from m2kit.runtime.onnxruntime_backend import OnnxRuntimeBackend
from m2kit.runtime.target import check_bundle
from m2kit.runtime.tensorrt_backend import TensorRTBackend
from m2kit.runtime.tensorrt_library import PRODUCTS
from m2kit.runtime.verification import compare, read_reference, require_parity


def open_engine(
    path: str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    check: bool = False,
    begin: Begin = silent,
) -> Engine:
    """Open an engine folder.

    Args:
        path: A folder made by `m2kit build-engine`.
        provider: For the onnxruntime backend: "cpu" (the default) or "cuda". Never falls back.
        threads: For the onnxruntime backend: threads inside an operator; None is as many as
            this process has cores.
        check: Hash the weights even if this very file was hashed before.
        begin: Called with the name of each stage that takes long.

    Raises:
        FolderError: Not an intact engine of a schema this version reads, or of another machine
            or bundle.
        BackendError: Its backend, provider or GPU is not available here.
        ParityError: It runs here for the first time and does not agree with PyTorch.
    """
    folder = Path(path)
    manifest = read_manifest(folder, ENGINE)
    check_files(folder, manifest, trust_seen_weights=not check)
    check_bundle(folder, manifest)
    backend = open_backend(folder, manifest, provider=provider, threads=threads)
    engine = Engine(manifest.spec, backend, defaults=manifest.sampling, info=manifest)
    if isinstance(backend, TensorRTBackend) and backend.device not in manifest.checked_devices:
        try:
            _check_first_run(engine, folder, backend.device, begin)
        except BaseException:
            backend.close()
            raise
    return engine


def open_backend(
    folder: Path, manifest: Manifest, *, provider: str | None = None, threads: int | None = None
) -> Backend:
    """The backend that a bundle or engine is for, opened on it.

    Raises:
        BackendError: It is not available here.
        FolderError: Built for another machine.
        InputError: An option that this backend does not have.
    """
    built_for = manifest.build.get("backend", OnnxRuntimeBackend.name)
    if built_for in PRODUCTS:
        given = {"--provider": provider, "--threads": threads}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise InputError(
                f"{' and '.join(wrong)}: of the onnxruntime backend; {folder} was built for "
                f"{built_for}"
            )
        return TensorRTBackend(folder, manifest)
    if built_for != OnnxRuntimeBackend.name:
        raise BackendError(
            f"{folder} was built for the backend {built_for!r}, this m2kit runs "
            f"{', '.join([OnnxRuntimeBackend.name, *PRODUCTS])}; build it again with "
            "`m2kit build-engine`"
        )
    return OnnxRuntimeBackend(folder, manifest, provider=provider or "cpu", threads=threads)


def _check_first_run(engine: Engine, folder: Path, device: str, begin: Begin) -> None:
    """Compare with the reference, and remember the result in engine.json where it is writable."""
    manifest = engine.info
    assert manifest is not None
    positions = manifest.spec.positions
    advance = begin(f"first run on {device}: comparing with PyTorch's reference", positions)
    reference = read_reference(folder / REFERENCE_FILE)
    report = compare(engine, reference, advance, precision=manifest.precision)
    require_parity(report, f"{folder} on {device}")
    engine.info = remember_check(folder, manifest, report, engine.backend.active())
    if read_manifest(folder, ENGINE).parity != engine.info.parity:
        begin(f"it agrees; {folder} is not writable, so the next run compares again")


def remember_check(
    folder: Path, manifest: Manifest, report: dict[str, Any], active: Mapping[str, Any] | None
) -> Manifest:
    """The manifest of an engine that agreed with the reference on a GPU; written where it can be.

    Args:
        folder: The engine.
        manifest: Its manifest.
        report: What `compare` gave.
        active: What ran, as the backend tells; nothing is remembered where it names no GPU.
    """
    device = (active or {}).get("gpu")
    if device is None:
        return manifest
    devices = [*(known for known in manifest.checked_devices if known != device), device]
    checked = replace(manifest, parity=report | {"devices": devices})
    with contextlib.suppress(FolderError), new_file(folder / manifest_name(ENGINE)) as file:
        file.write_text(manifest_text(checked), encoding="utf-8")
    return checked
