"""Whether a bundle or engine folder is what its manifest says, file by file and graph by graph."""

from __future__ import annotations

import stat
from pathlib import Path

from m2kit.contract import PLAN_SUFFIX, WEIGHTS_FILE, TensorSpec
from m2kit.errors import FolderError
from m2kit.hashes import has_sha256
from m2kit.manifest import FileEntry, GraphEntry, Manifest
from m2kit.manifest_file import REMAKE
from m2kit.onnx_file import read_onnx


def check_folder(folder: Path, manifest: Manifest, *, trust_seen_weights: bool) -> None:
    """Compare every file with the manifest (regular, inside, size, sha256), and every graph with
    its entry, before anything of the folder is opened.

    Args:
        folder: The bundle or engine folder.
        manifest: Its manifest.
        trust_seen_weights: Skip hashing a file of weights or a plan where this very file (size,
            mtime, ctime, inode) was hashed before by this user.

    Raises:
        FolderError: Names every file that differs and how.
    """
    cure = REMAKE[manifest.kind]
    if manifest.build is not None:
        cure = f"build it again with `{manifest.rebuild_command(folder)}`"
    found = {n: _problem(folder, n, e, trust_seen_weights) for n, e in manifest.files.items()}
    problems = [f"{name}: {problem}" for name, problem in sorted(found.items()) if problem]
    if problems:
        raise FolderError(f"{folder} is damaged: {'; '.join(problems)}; {cure}")
    for _, _, entry in manifest.entries() if not manifest.has_plans else ():
        _check_graph(folder / entry.file, entry, manifest, cure)


def _problem(folder: Path, name: str, entry: FileEntry, trust_seen: bool) -> str | None:
    """What is wrong with a file. It may have other names (hard links) and be a link inside the
    folder: its bytes are compared. What lies elsewhere may change or go without the folder."""
    path = folder / name
    try:
        inside = path.resolve().parent == folder.resolve()
        status = path.stat()
    except (OSError, RuntimeError):  # missing, or links in a circle
        return "missing"
    if not inside:
        return "a link that leaves this folder (expected the file itself: copy it here)"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size != entry.bytes:
        return f"expected {entry.bytes} bytes, found {status.st_size}"
    large = path.name == WEIGHTS_FILE or path.suffix == PLAN_SUFFIX
    if not has_sha256(path, entry.sha256, trust_seen=trust_seen and large):
        return "its bytes have changed (sha256 differs)"
    return None


def _check_graph(path: Path, entry: GraphEntry, manifest: Manifest, cure: str) -> None:
    """Hold a graph file against its entry: inputs, outputs, and where its weights lie."""
    found = read_onnx(path)
    for what, tensors, expected in (
        ("inputs", found.inputs, entry.inputs),
        ("outputs", found.outputs, entry.outputs),
    ):
        told = tuple(_is_of(t, e, entry.compute) for t, e in zip(tensors, expected, strict=False))
        if len(tensors) != len(expected) or not all(told):
            shown = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)[:300]
            raise FolderError(
                f"{path}: its {what} are not the recorded ones, found {shown}; {cure}"
            )
    if found.ops != entry.ops:
        raise FolderError(f"{path}: its operators are not the recorded ones; {cure}")
    size = manifest.files[WEIGHTS_FILE].bytes
    for part in found.external:
        inside = part.length is not None and part.offset + part.length <= size
        if part.location != WEIGHTS_FILE or not inside:
            raise FolderError(
                f"{path}: expected weights inside {WEIGHTS_FILE} of {size} bytes, found "
                f"{part.tensor[:60]} in {part.location} at {part.offset}; {cure}"
            )


def _is_of(found: TensorSpec, expected: TensorSpec, compute: str) -> bool:
    """Whether a graph's tensor is the contract's: fixed sizes are equal where both are fixed."""
    return (
        found.name == expected.name
        and found.dtype == expected.numpy_dtype(compute)
        and len(found.shape) == len(expected.shape)
        and all(
            isinstance(a, str) or isinstance(b, str) or a == b
            for a, b in zip(found.shape, expected.shape, strict=True)
        )
    )
