"""Bundle -> engine, for any backend: check, build, compare, and appear only when all is well."""

from __future__ import annotations

import resource
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import m2kit
from m2kit.build import Build, BuildOptions
from m2kit.contract import REFERENCE_FILE
from m2kit.folder_check import check_folder
from m2kit.folders import new_folder
from m2kit.manifest import BUNDLE, ENGINE, Manifest, manifest_name
from m2kit.manifest_file import files_table, read_manifest, write_manifest
from m2kit.progress import Begin, silent
from m2kit.references import resolve
from m2kit.runtime.backends import backend_named

_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


@dataclass(frozen=True, slots=True)
class Job:
    """What a builder is given.

    Attributes:
        bundle: A bundle folder whose files were checked.
        source: Its manifest.
        folder: Where to write the engine's files; empty.
        options: Complete.
        begin: Called with the name of each stage as it begins.
    """

    bundle: Path
    source: Manifest
    folder: Path
    options: BuildOptions
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
        )


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
    build = resolve(kind.builder)(options)
    begin("checking the bundle")
    source = read_manifest(bundle, BUNDLE)
    check_folder(bundle, source, trust_seen_weights=False)
    with new_folder(destination, manifest_name(ENGINE)) as folder:
        manifest: Manifest = build(Job(bundle, source, folder, options, begin))
        manifest.parity.require("the engine", accept_quality=options.accept_quality)
        peak = 1024 * max(resource.getrusage(who).ru_maxrss for who in _PROCESSES)
        seconds = round(time.monotonic() - started, 2)
        timed = replace(manifest.built, seconds=seconds, peak_memory_bytes=peak)
        manifest = replace(manifest, build=timed)
        write_manifest(folder, manifest)
    return manifest
