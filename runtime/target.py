"""Whether an engine fits the machine and the bundle beside it: recorded fields are compared, and
the message names each one that differs and the command that builds the engine again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from m2kit.build import AMPERE, SAME_CAPABILITY, Build, Target
from m2kit.errors import FolderError
from m2kit.manifest import BUNDLE, Manifest
from m2kit.manifest_file import kind_of_folder, read_manifest
from m2kit.records import JsonObject
from m2kit.runtime.device import Device

_SHOWN = 12  # characters of a hash
_MEMORY_FACTOR = 1.25


def check_machine(folder: Path, manifest: Manifest, version: str, device: Device) -> None:
    """Refuse a TensorRT engine of another machine than this one, with TensorRT's version and GPU.

    Raises:
        FolderError: Names each field that differs.
    """
    build = manifest.built
    target, here = build.target, Target.here()
    differing = []
    if target.os != here.os:
        differing.append(f"operating system: built for {target.os}, here {here.os}")
    if target.architecture != here.architecture:
        differing.append(f"architecture: built for {target.architecture}, here {here.architecture}")
    if not _version_fits(build, version):
        differing.append(f"TensorRT: built with {build.backend_version}, here {version}")
    if not _device_fits(build, device):
        differing.append(f"GPU: built for {_gpu(target)}, here {device}")
    if differing:
        raise FolderError(
            f"{folder} was built for another machine ({'; '.join(differing)}); build it here with "
            f"`{manifest.rebuild_command(folder)}`"
        )


def _version_fits(build: Build, version: str) -> bool:
    """The very version; of a version-compatible engine also a newer one, up to the next major."""
    built = build.backend_version
    if built == version or not build.options.version_compatible:
        return built == version
    old, new = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (built, version))
    return bool(old and new) and old <= new and new[0] <= old[0] + 1


def _device_fits(build: Build, device: Device) -> bool:
    target, compatible = build.target, build.options.hardware_compatible
    if compatible == AMPERE:
        return int(device.capability.split(".")[0]) >= 8
    if device.capability not in target.compute_capabilities:
        return False
    if compatible == SAME_CAPABILITY or target.gpu is None:
        return True
    like = (target.gpu, target.multiprocessors) == (device.name, device.multiprocessors)
    return like and _same_memory(target.memory_bytes, device.memory_bytes)


def _same_memory(built: int | None, here: int) -> bool:
    """Whether two GPUs have the same memory: what a Jetson's system leaves to see varies a little,
    and its modules differ by factors of two."""
    return built is not None and built / _MEMORY_FACTOR <= here <= built * _MEMORY_FACTOR


def _gpu(target: Target) -> str:
    """What an engine was built for, in words."""
    if target.gpu is None:
        return "compute capability " + ", ".join(target.compute_capabilities)
    capability = target.compute_capabilities[0]
    if target.multiprocessors is None or target.memory_bytes is None:  # of an older m2kit
        return f"{target.gpu} ({capability}, its SM and memory were not recorded)"
    return str(Device(target.gpu, capability, target.multiprocessors, target.memory_bytes))


def check_bundle(folder: Path, manifest: Manifest) -> None:
    """Refuse an engine when the bundle it was built from, still beside it, now holds another model.

    Raises:
        FolderError: Names what differs.
    """
    bundle = folder.resolve().parent / manifest.built.bundle
    if kind_of_folder(bundle) != BUNDLE:
        return
    try:
        now = read_manifest(bundle, BUNDLE)
    except FolderError:  # damaged, or of another m2kit: not a sign of another model
        return
    built, found = _origin(manifest), _origin(now)
    differing = [
        f"{field}: engine {_short(built.get(field))}, bundle {_short(found.get(field))}"
        for field in sorted({*built, *found})
        if built.get(field) != found.get(field)
    ]
    if differing:
        raise FolderError(
            f"{folder} was built from another {bundle.name} than the one beside it "
            f"({'; '.join(differing)}); build it again with "
            f"`{manifest.rebuild_command(folder)}`, or move that bundle away"
        )


def _origin(manifest: Manifest) -> JsonObject:
    """Source, spec and sampling defaults: path of a field -> value."""
    value = manifest.to_json()
    return _flat({name: value.get(name) for name in ("source", "spec", "sampling")})


def _flat(value: Any, prefix: str = "") -> JsonObject:
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{name}".lstrip(".")) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 3 * _SHOWN else f"{text[:_SHOWN]}..."
