"""Whether an engine fits the machine and the bundle beside it: recorded fields are compared, and
the message names each one that differs and the command that builds the engine again.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2kit.errors import FolderError
from m2kit.manifest import BUNDLE, Manifest, kind_of_folder, read_manifest
from m2kit.runtime.device import Device

AMPERE, SAME_CAPABILITY = "ampere", "same-capability"  # of --hardware-compatible
_SHOWN = 12  # characters of a hash


def rebuild_command(folder: Path, manifest: Manifest) -> str:
    """The command that builds this engine again from its bundle."""
    build = manifest.build
    words = ["m2kit", "build-engine", build.get("bundle", "BUNDLE"), "-o", folder.resolve().name]
    words += ["--backend", str(build["backend"])]
    rows, sizes = build.get("rows"), build.get("image_sizes") or []
    if rows:
        words += ["--batch", str(rows // 2)]
    for height, width in sizes:
        if manifest.spec.image_size != (height, width):
            words += ["--image-size", f"{height},{width}"]
    words += build.get("options", [])
    return shlex.join(words)


def check_machine(folder: Path, manifest: Manifest, version: str, device: Device) -> None:
    """Refuse an engine of another machine.

    Args:
        folder: The engine.
        manifest: Its manifest, of a TensorRT engine.
        version: TensorRT's version here.
        device: The GPU here.

    Raises:
        FolderError: Names each field that differs.
    """
    build = manifest.build
    found = {"operating system": platform.system(), "architecture": platform.machine()}
    built = {"operating system": build["os"], "architecture": build["architecture"]}
    differing = [
        f"{name}: built for {built[name]}, here {found[name]}"
        for name in found
        if built[name] != found[name]
    ]
    if not _version_fits(build, version):
        differing.append(f"TensorRT: built with {build['backend_version']}, here {version}")
    if not _device_fits(build, device):
        differing.append(f"GPU: built for {_built_for(build)}, here {device}")
    if differing:
        raise FolderError(
            f"{folder} was built for another machine ({'; '.join(differing)}); build it here with "
            f"`{rebuild_command(folder, manifest)}`"
        )


def _built_for(build: Mapping[str, Any]) -> str:
    if build.get("gpu"):
        return str(Device(build["gpu"], build["compute_capabilities"][0]))
    return "compute capability " + ", ".join(build["compute_capabilities"])


def _version_fits(build: Mapping[str, Any], version: str) -> bool:
    """The very version; of a version-compatible engine also a newer one, up to the next major."""
    built = str(build["backend_version"])
    if built == version or not build.get("version_compatible"):
        return built == version
    old, new = (tuple(map(int, text.split(".")[:3])) for text in (built, version))
    return old <= new and new[0] <= old[0] + 1


def _device_fits(build: Mapping[str, Any], device: Device) -> bool:
    capabilities, compatible = build["compute_capabilities"], build.get("hardware_compatible")
    if compatible == AMPERE:
        return int(device.capability.split(".")[0]) >= 8
    if device.capability not in capabilities:
        return False
    return compatible == SAME_CAPABILITY or build.get("gpu") in (None, device.name)


def check_bundle(folder: Path, manifest: Manifest) -> None:
    """Refuse an engine when the bundle it was built from, still beside it, now holds another model.

    Args:
        folder: The engine.
        manifest: Its manifest.

    Raises:
        FolderError: Names what differs.
    """
    name = manifest.build.get("bundle", "")
    bundle = folder.resolve().parent / name
    if not name or kind_of_folder(bundle) != BUNDLE:
        return
    try:
        now = read_manifest(bundle, BUNDLE)
    except FolderError:  # damaged, or of another m2kit: not a sign of another model
        return
    differing = [
        f"{field}: engine {_short(built)}, bundle {_short(found)}"
        for field, built, found in _origins(manifest, now)
        if built != found
    ]
    if differing:
        raise FolderError(
            f"{folder} was built from another {name} than the one beside it "
            f"({'; '.join(differing)}); build it again with "
            f"`{rebuild_command(folder, manifest)}`, or move that bundle away"
        )


def _origins(engine: Manifest, bundle: Manifest) -> list[tuple[str, Any, Any]]:
    """Field, the engine's value, the bundle's: of source, spec and sampling defaults."""
    first, second = (
        _flat({"source": m.source, "spec": m.spec.to_json(), "sampling": m.sampling})
        for m in (engine, bundle)
    )
    return [(name, first.get(name), second.get(name)) for name in sorted({*first, *second})]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{name}".lstrip(".")) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 3 * _SHOWN else f"{text[:_SHOWN]}..."
