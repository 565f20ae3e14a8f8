"""Bundle -> engine, for any backend: check, build, compare, and appear only when all is well."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import m2kit
from m2kit.build import Build, BuildOptions, Trial
from m2kit.contract import REFERENCE_FILE
from m2kit.folder_check import check_folder
from m2kit.manifest import BUNDLE, ENGINE, Manifest
from m2kit.manifest_file import (
    check_model_folder,
    files_table,
    new_model_folder,
    read_manifest,
    write_manifest,
)
from m2kit.parity_report import ParityReport
from m2kit.precision import Precision
from m2kit.progress import Begin, silent
from m2kit.references import resolve
from m2kit.runtime.backend import Opening
from m2kit.runtime.backends import BackendKind, backend_named
from m2kit.runtime.bench.timing import position_seconds
from m2kit.runtime.device import probe
from m2kit.runtime.engine import Engine
from m2kit.runtime.parity import prove

_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@dataclass(frozen=True, slots=True)
class Job:
    """What a builder is given.

    Attributes:
        bundle: A bundle folder whose files were checked.
        source: Its manifest.
        folder: Where to write the engine's files; empty.
        options: Complete.
        precision: Of the engine to write; where the options say "auto", one after another.
        begin: Called with the name of each stage as it begins.
    """

    bundle: Path
    source: Manifest
    folder: Path
    options: BuildOptions
    precision: Precision
    begin: Begin

    def engine(self, manifest: Manifest, build: Build, versions: dict[str, str]) -> Manifest:
        """The engine's manifest, of what now lies in the folder; nothing is compared yet.

        Args:
            manifest: With the graphs, the precision and what stays float.
            build: How it was built.
            versions: Of the tools that built it.
        """
        shutil.copyfile(self.bundle / REFERENCE_FILE, self.folder / REFERENCE_FILE)
        return replace(
            manifest,
            kind=ENGINE,
            files=files_table(self.folder),
            versions=self.source.versions | {"m2kit": m2kit.__version__} | versions,
            build=build,
            parity=ParityReport(),
        )


Write = Callable[[Job], Manifest]  # of a backend's builder: fills the job's folder


def build_engine(
    bundle: Path,
    destination: Path,
    backend: str,
    options: BuildOptions | None = None,
    begin: Begin = silent,
) -> Manifest:
    """Build the engine of a bundle; it appears only if it is near enough to PyTorch's reference.

    Args:
        bundle: A bundle folder.
        destination: The engine folder.
        backend: A name of m2kit.runtime.backends.
        options: How; the backend's own defaults where nothing is given.
        begin: Called with the name of each stage as it begins.

    Returns:
        The manifest; its parity is empty where the engine could not be run here.

    Raises:
        FolderError: The bundle is damaged or the destination cannot be written.
        BackendError: The backend or its GPU is missing, does not take a graph, or memory is short.
        InputError: An option that the backend or the model does not take.
        ParityError: The engine is further from the reference than m2kit.tolerances allows.
    """
    started = time.monotonic()
    kind = backend_named(backend)
    options = kind.complete(options or BuildOptions())
    build: Write = resolve(kind.builder)(options)
    check_model_folder(destination, ENGINE)
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    check_folder(bundle, source, trust_seen_weights=False)
    with new_model_folder(destination, ENGINE) as folder:
        if isinstance(options.precision, Precision):
            job = Job(bundle, source, folder, options, options.precision, begin)
            manifest = _proved(build, job)
            manifest.parity.require("the engine", accept_quality=options.accept_quality)
        else:
            first = Job(bundle, source, folder, options, Precision.FLOAT32, begin)
            manifest = _fastest(kind, build, first)
        peak = 1024 * max(resource.getrusage(who).ru_maxrss for who in _PROCESSES)
        seconds = round(time.monotonic() - started, 2)
        timed = replace(manifest.built, seconds=seconds, peak_memory_bytes=peak)
        manifest = replace(manifest, build=timed)
        write_manifest(folder, manifest)
    return manifest


def _proved(build: Write, job: Job) -> Manifest:
    """Build an engine, and compare it with PyTorch's reference where it can be run here: else the
    first machine that opens it compares."""
    manifest = build(job)
    wanted, (gpus, _) = manifest.built.target.compute_capabilities, probe()
    if wanted and (not gpus or gpus[0].capability not in wanted):
        return manifest
    return replace(manifest, parity=prove(job.folder, manifest, job.begin))


def _fastest(kind: BackendKind, build: Write, job: Job) -> Manifest:
    """Build every precision of a backend in turn, keep the fastest that passes the gate."""
    best: tuple[float, Manifest] | None = None
    tried: dict[str, Trial] = {}
    for precision in kind.precisions:
        if not isinstance(precision, Precision):
            continue
        trial = job.folder / precision.value
        trial.mkdir()
        manifest = _proved(build, replace(job, folder=trial, precision=precision))
        if not precision.quantized:
            manifest.parity.require("the engine")
        seconds, passed = float("inf"), bool(manifest.parity.passed)
        if passed:
            job.begin(f"timing {precision.flag}")
            backend = kind.open(trial, manifest, Opening())
            with Engine(
                manifest.spec, backend, defaults=manifest.sampling, info=manifest
            ) as engine:
                seconds = position_seconds(engine)
        tried[precision.value] = Trial(passed, round(seconds * 1e3, 3) if passed else None)
        lost: tuple[float, Manifest] | None = (seconds, manifest)
        if best is None or seconds < best[0]:
            best, lost = lost, best
        if lost is not None:
            shutil.rmtree(job.folder / lost[1].precision.value)
    assert best is not None
    manifest = best[1]
    kept = job.folder / manifest.precision.value
    for path in kept.iterdir():
        path.rename(job.folder / path.name)
    kept.rmdir()
    return replace(manifest, build=replace(manifest.built, tried=tried))
