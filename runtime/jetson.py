"""NVIDIA Jetson: which release this machine runs, and what its JetPack brings.

Releases and their TensorRT as NVIDIA's JetPack pages list them. Nothing has been run on a Jetson.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

L4T_FILE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True, slots=True)
class JetPack:
    """A JetPack release.

    Attributes:
        version: As NVIDIA numbers it.
        tensorrt: Major and minor version of its TensorRT.
        cuda: Major version of its CUDA.
    """

    version: str
    tensorrt: str
    cuda: int


_JETPACKS = {  # by Jetson Linux (L4T) release
    (36, 3): JetPack("6.0", "8.6", 12),
    (36, 4): JetPack("6.1 or 6.2", "10.3", 12),
    (38, 2): JetPack("7.0", "10.13", 13),
    (38, 4): JetPack("7.1", "10.13", 13),
    (39, 2): JetPack("7.2", "10.16", 13),
}


def read_l4t() -> tuple[int, int] | None:
    """The Jetson Linux release of this machine, such as (36, 4); None elsewhere."""
    try:
        return l4t_release(L4T_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def l4t_release(text: str) -> tuple[int, int] | None:
    """Release and minor revision in /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3"."""
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def jetpack(release: tuple[int, int]) -> JetPack | None:
    """The JetPack of a Jetson Linux release, None for one that is not known."""
    return _JETPACKS.get(release)


def cuda_extra(release: tuple[int, int] | None) -> str:
    """The extra of m2kit that brings cuda-bindings for a release; None is no Jetson."""
    if release is None:
        return "tensorrt"
    return "jetson6" if release[0] <= 36 else "jetson7"
