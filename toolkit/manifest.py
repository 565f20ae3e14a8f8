"""bundle.json and engine.json: what a folder holds, where it came from, and whether it is intact.

Both files are one record, `Manifest`. It names every file with size and sha256, and carries a
digest of itself, so any change to any byte of the folder is found.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from m2kit.config import ModelSpec
from m2kit.contract import PORTABLE
from m2kit.errors import FolderError
from m2kit.folders import sha256_of_file, sha256_of_json

SCHEMA = 1
BUNDLE = "bundle"
ENGINE = "engine"
WEIGHTS_FILE = "weights.bin"
PLAN_SUFFIX = ".plan"
REFERENCE_FILE = "reference.npz"
_REBUILD = {
    BUNDLE: "export it again with `m2kit export`",
    ENGINE: "build it again with `m2kit build-engine`",
}


def manifest_name(kind: str) -> str:
    """File name of the manifest of a bundle or an engine."""
    return f"{kind}.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of bundle.json or engine.json.

    Attributes:
        kind: "bundle" or "engine".
        name: The model's name, from the checkpoint's file name.
        spec: The architecture.
        sampling: Default guidance, temperature, top_k, top_p, each one value per sub-token.
        lowerings: lowering -> graph -> {"file", "inputs", "outputs", "compute", "ops"}.
        files: file name -> {"sha256", "bytes"} for every file but the manifest itself.
        source: Where it came from: checkpoint sha256, which weights were taken, what was assumed.
        versions: Versions of the tools that made it.
        parity: What was compared with what, and the result.
        maxima: graph -> value -> largest absolute value over the reference's inputs, float values.
        training: What the checkpoint says about its own training (may be empty).
        build: For an engine: backend, version, target, precision, flags. For a half bundle:
            precision and what stays float.
    """

    kind: str
    name: str
    spec: ModelSpec
    sampling: dict[str, Any]
    lowerings: dict[str, Any]
    files: dict[str, dict[str, Any]]
    source: dict[str, Any]
    versions: dict[str, str]
    parity: dict[str, Any]
    maxima: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON, with schema version and digest."""
        value: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        value["spec"] = self.spec.to_json()
        value["schema"] = SCHEMA
        value["digest"] = sha256_of_json(value)
        return value

    @property
    def precision(self) -> str:
        """float32 or float16: what the graphs compute in, outside their float islands; int8 or
        int4: what the steps' weights are stored in."""
        compute = next(iter(self.lowerings[PORTABLE].values()))["compute"]
        return str(self.build.get("precision", compute))

    @property
    def checked_devices(self) -> tuple[str, ...]:
        """GPUs on which a TensorRT engine was compared with the reference."""
        return tuple(self.parity.get("devices", ()))

    def graph_file(self, lowering: str, graph: str) -> str:
        """File name of one graph."""
        return str(self.lowerings[lowering][graph]["file"])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into its folder; do it last."""
    path = folder / manifest_name(manifest.kind)
    path.write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Manifest) -> str:
    """What the manifest's file holds."""
    return json.dumps(manifest.to_json(), indent=1, sort_keys=True) + "\n"


def files_table(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file in a folder."""
    return {
        path.name: {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }


def kind_of_folder(folder: Path) -> str | None:
    """ "bundle", "engine", or None for anything else."""
    for kind in (BUNDLE, ENGINE):
        if (folder / manifest_name(kind)).is_file():
            return kind
    return None


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a bundle or engine folder, with schema and digest checked, files not.

    Raises:
        FolderError: No such folder, the other kind, unreadable, another schema, or changed.
    """
    path = folder / manifest_name(kind)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FolderError(f"{folder}: expected {_article(kind)} folder, found {found}")
    if not path.is_file():
        other = kind_of_folder(folder)
        found = f"{_article(other)}" if other else f"no {path.name}"
        raise FolderError(f"{folder}: expected {_article(kind)} folder, found {found}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FolderError(f"{path} is not readable JSON ({error}); {_REBUILD[kind]}") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise FolderError(
            f"{path} has schema version {schema!r}, this m2kit reads version {SCHEMA}; "
            f"{_REBUILD[kind]} or install the m2kit that wrote it"
        )
    digest = value.pop("digest", None)
    if digest != sha256_of_json(value):
        raise FolderError(f"{path} was changed after it was written; {_REBUILD[kind]}")
    del value["schema"]
    if set(value) != {item.name for item in fields(Manifest)} or value["kind"] != kind:
        raise FolderError(f"{path} does not have the fields this m2kit expects; {_REBUILD[kind]}")
    value["spec"] = ModelSpec.from_json(value["spec"])
    return Manifest(**value)


def check_files(folder: Path, manifest: Manifest, *, trust_seen_weights: bool) -> None:
    """Compare every file with the manifest: present, size, sha256.

    Args:
        folder: The bundle or engine folder.
        manifest: Its manifest.
        trust_seen_weights: Skip hashing a file of weights or a plan where this very file (size,
            mtime, inode) was hashed before by this user.

    Raises:
        FolderError: Names every file that differs and how.
    """
    problems = []
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        if Path(name).name != name:
            problems.append(f"{name}: not a plain file name")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != expected["bytes"]:
            found = path.stat().st_size
            problems.append(f"{name}: expected {expected['bytes']} bytes, found {found}")
        elif _sha256(path, trust_seen_weights) != expected["sha256"]:
            problems.append(f"{name}: its bytes have changed (sha256 differs)")
    if problems:
        raise FolderError(f"{folder} is damaged: {'; '.join(problems)}; {_REBUILD[manifest.kind]}")


def _article(kind: str) -> str:
    return f"an {kind}" if kind == ENGINE else f"a {kind}"


def _sha256(path: Path, trust_seen: bool) -> str:
    """sha256 of a file, remembered for weights and plans: hashing runs at about 0.5 GB/s."""
    if not trust_seen or (path.name != WEIGHTS_FILE and path.suffix != PLAN_SUFFIX):
        return sha256_of_file(path)
    try:
        memory = Path.home() / ".cache" / "m2kit" / "hashed.json"
    except RuntimeError:  # a user without a home remembers nothing
        return sha256_of_file(path)
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
    try:
        seen = json.loads(memory.read_text(encoding="utf-8"))
        if isinstance(seen, dict) and isinstance(seen.get(key), str):
            return str(seen[key])
    except (OSError, ValueError):
        seen = {}
    digest = sha256_of_file(path)
    _remember(memory, {**(seen if isinstance(seen, dict) else {}), key: digest})
    return digest


def _remember(memory: Path, seen: dict[str, str]) -> None:
    """Keep the newest 100 entries; a cache folder that cannot be written is only slower."""
    temporary = memory.with_suffix(f".{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dict(list(seen.items())[-100:])), encoding="utf-8")
        temporary.replace(memory)
    except OSError:
        return
