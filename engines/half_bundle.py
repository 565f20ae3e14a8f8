"""A bundle in typed half precision: what a device builds from that has no onnx packages.

Judged in emulation against PyTorch's reference before it appears.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from m2kit.contract import REFERENCE_FILE
from m2kit.engines.emulation import EmulatedBackend
from m2kit.engines.half_precision import write_half
from m2kit.manifest import BUNDLE, Manifest
from m2kit.manifest_file import files_table, new_model_folder, write_manifest
from m2kit.progress import Begin, silent
from m2kit.runtime.parity import prove

_JUDGED = "float16, emulated with float32 sums, against float32"  # of products: emulation.py


def write_half_bundle(
    make_exact: Callable[[Path], Manifest], destination: Path, begin: Begin = silent
) -> Manifest:
    """Write a half bundle beside the exact one it is derived from, which is not kept.

    Args:
        make_exact: Writes the float32 bundle into the folder it is given.
        destination: The half bundle; appears only when complete and near enough to PyTorch.
        begin: Called with the name of each stage as it begins.

    Raises:
        FolderError: The destination cannot be written.
        ParityError: The values do not fit into half precision, or the emulation of the half
            graphs is further from PyTorch than m2kit.tolerances allows.
    """
    with new_model_folder(destination, BUNDLE) as folder:
        exact = folder / "exact"
        source = make_exact(exact)
        begin("turning the graphs into half precision")
        half = write_half(exact, source, folder)
        shutil.copyfile(exact / REFERENCE_FILE, folder / REFERENCE_FILE)
        shutil.rmtree(exact)
        emulated = EmulatedBackend(folder, half)
        try:
            report = prove(folder, half, begin, opened=emulated)
        finally:
            emulated.close()
        report.require("half precision")
        report = replace(report, precision=_JUDGED)
        manifest = replace(half, files=files_table(folder), parity=report)
        write_manifest(folder, manifest)
    return manifest
