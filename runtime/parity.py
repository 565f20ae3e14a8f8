"""The one procedure that proves a folder: every graph, in every lowering and provider that this
machine can run it in, against what PyTorch computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from m2kit.errors import BackendError, FolderError
from m2kit.manifest import ENGINE, Manifest, manifest_name
from m2kit.manifest_file import manifest_text
from m2kit.outputs import new_file
from m2kit.parity_report import ParityReport
from m2kit.progress import Begin, silent
from m2kit.records import JsonObject
from m2kit.runtime.backend import Backend
from m2kit.runtime.backends import backend_of
from m2kit.runtime.comparison import compare
from m2kit.runtime.engine import Engine
from m2kit.runtime.reference import Reference, read_reference


def prove(
    folder: Path,
    manifest: Manifest,
    begin: Begin = silent,
    *,
    provider: str | None = None,
    reference: Reference | None = None,
    opened: Backend | None = None,
    ran: Callable[[JsonObject], None] = lambda active: None,
) -> ParityReport:
    """Compare a folder with its reference.

    Args:
        folder: A bundle or engine, its files checked.
        manifest: Its manifest; it need not be written yet.
        begin: Called with the name of each comparison.
        provider: Compare only this one's.
        reference: What PyTorch computed; by default the folder's.
        opened: Compare this backend alone, as it was opened; it stays open.
        ran: Called with what each backend tells of itself, after it has run.

    Returns:
        One report: checks of a second way to run the same graphs have its name as a suffix.

    Raises:
        BackendError: A way that was asked for cannot be opened.
        FolderError: The reference is damaged.
    """
    reference = reference or read_reference(folder, manifest.spec)
    if opened is not None:
        return _compared(manifest, opened, reference, begin, opened.device, tokenizer=True)
    kind, report = backend_of(folder, manifest), None
    compared: set[str | None] = set()
    for way in kind.ways(manifest, provider):
        backend = kind.open(folder, manifest, way)
        try:
            first = way.provider not in compared
            label = way.label or backend.device
            found = _compared(manifest, backend, reference, begin, label, tokenizer=first)
            ran(backend.active())
        finally:
            backend.close()
        compared.add(way.provider)
        report = found if report is None else report.joined(found, f", {way.label}")
    if report is None:
        raise BackendError(
            f"{folder}: nothing here can run it; `m2kit doctor` says what is missing"
        )
    return report


def _compared(
    manifest: Manifest,
    backend: Backend,
    reference: Reference,
    begin: Begin,
    label: str,
    *,
    tokenizer: bool,
) -> ParityReport:
    advance = begin(f"comparing with PyTorch's reference ({label})", manifest.spec.positions)
    engine = Engine(manifest.spec, backend, defaults=manifest.sampling, finite=False)
    return compare(engine, reference, advance, precision=manifest.precision, tokenizer=tokenizer)


def remember(folder: Path, manifest: Manifest, report: ParityReport) -> tuple[Manifest, bool]:
    """Add the devices of a report that passed to an engine's manifest.

    Returns:
        The manifest, with the report that was there or else this one; and whether the folder now
        says so, which it cannot where it is not writable.
    """
    known = manifest.parity.devices
    new = tuple(device for device in report.devices if device not in known)
    if not new:
        return manifest, True
    told = manifest.parity if manifest.parity.checks else report
    checked = replace(manifest, parity=replace(told, devices=(*known, *new)))
    try:
        with new_file(folder / manifest_name(ENGINE)) as file:
            file.write_text(manifest_text(checked), encoding="utf-8")
    except FolderError:
        return checked, False
    return checked, True
