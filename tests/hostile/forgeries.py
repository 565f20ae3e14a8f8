"""Forged bundles, engines, graphs and reference files: each change with hash and digest made right
again, as an attacker would. A generator: the same seed gives the same forgeries.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2kit.hashes import sha256_of_file, sha256_of_json

# What nothing else in a folder contradicts: words about where a model came from, and figures.
FREE = (
    "name", "versions", "training", "maxima.", "moved_to_float", "source", "parity",
    "build.backend_version", "build.seconds", "build.peak_memory_bytes", "build.tried",
    "build.bundle", "build.target", "build.weight_bytes", "sampling",
    "spec.transformer.rope_base",
)  # fmt: skip
_WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, 2**63, 2**64, 1e308, 0.5, "", "x", "../home/victim", "/etc/passwd",
    "a\u0000b", "\ud83d\ude00", [], [[]], {}, {"a": 1}, [None], "9" * 3000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forgery:
    """One change to a folder.

    Attributes:
        name: What was changed and how.
        apply: Makes it, in a copy of the folder.
        free: Nothing in the folder contradicts it, so it may be accepted.
    """

    name: str
    apply: Callable[[Path], None]
    free: bool = False


def set_manifest(folder: Path, value: dict[str, Any]) -> None:
    """Write a manifest with the digest that fits it."""
    (path,) = (folder / n for n in ("bundle.json", "engine.json") if (folder / n).is_file())
    value = {name: item for name, item in value.items() if name != "digest"}
    path.write_text(json.dumps(value | {"digest": sha256_of_json(value)}), encoding="utf-8")


def make_hashes_right(folder: Path, *names: str) -> None:
    """Have the manifest list these files as they are now."""
    (path,) = (folder / n for n in ("bundle.json", "engine.json") if (folder / n).is_file())
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        file = folder / name
        value["files"][name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    set_manifest(folder, value)


def manifests(value: dict[str, Any]) -> Iterator[Forgery]:
    """Every field of a manifest missing, of another type, out of range; unknown ones; and values
    that contradict one another."""
    for keys in _paths(value):
        name = ".".join(map(str, keys))
        free = any(name == f or name.startswith(f.rstrip(".") + ".") for f in FREE)
        here = _at(value, keys)
        if isinstance(keys[-1], str) and here:  # a field that is empty may as well be missing
            yield _changed(
                value, keys, f"{name} is missing", free, lambda parent, key: parent.pop(key)
            )
        for wrong in _WRONG:
            if _same(here, wrong):
                continue
            yield _changed(
                value,
                keys,
                f"{name} = {wrong!r:.30}",
                free,
                lambda parent, key, wrong=wrong: parent.__setitem__(key, wrong),
            )
        if isinstance(here, dict):
            yield _changed(
                value, keys, f"{name}.unknown = 1", free,
                lambda parent, key: parent[key].update(unknown=1),
            )  # fmt: skip
        if isinstance(here, list) and here:
            yield _changed(
                value, keys, f"{name} is twice as long", free,
                lambda parent, key: parent[key].extend(parent[key]),
            )  # fmt: skip


def _same(here: Any, wrong: Any) -> bool:
    return type(here) is type(wrong) and here == wrong


def _changed(
    value: dict[str, Any],
    keys: tuple[Any, ...],
    name: str,
    free: bool,
    change: Callable[[Any, Any], Any],
) -> Forgery:
    def apply(folder: Path) -> None:
        forged = copy.deepcopy(value)
        change(_at(forged, keys[:-1]), keys[-1])
        set_manifest(folder, forged)

    return Forgery(name, apply, free)


def _paths(value: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys of every value; of long lists and tables the first ones."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
        if len(items) > 12:
            items = items[:3]
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))
    for key, item in items:
        if keys or key not in ("schema", "digest"):
            yield (*keys, key)
            yield from _paths(item, (*keys, key))


def _at(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value[key]
    return value


def graphs(folder: Path, names: list[str], count: int, seed: int) -> Iterator[Forgery]:
    """Graph files damaged, empty, swapped, foreign, or with weights elsewhere."""
    random = np.random.default_rng(seed)
    originals = {name: (folder / name).read_bytes() for name in names}
    whole = [b"", b"\0", b"not a graph", b"PK\x03\x04" + bytes(50), b"\xff" * 1000]
    for name in names:
        for data in [*whole, *(d for n, d in originals.items() if n != name)]:
            yield _file(name, data, f"{name} becomes {len(data)} other bytes")
        for location in (b"../secret.x", b"/etc/passwd", b"weights.bim", b"bundle.json"):
            data = originals[name]
            if b"weights.bin" in data:
                shown = location.ljust(11, b"s")[:11]  # the same length: lengths stay right
                yield _file(name, data.replace(b"weights.bin", shown), f"{name} reads {shown!r}")
    for _ in range(count):
        name = names[random.integers(len(names))]
        data = bytearray(originals[name])
        kind = random.integers(3)
        if kind == 0:
            data = data[: random.integers(len(data))]
        else:
            for _ in range(1 if kind == 1 else 20):
                data[random.integers(len(data))] = random.integers(256)
        yield _file(name, bytes(data), f"{name} with random damage", free=True)


def _file(name: str, data: bytes, what: str, free: bool = False) -> Forgery:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)
        make_hashes_right(folder, name)

    return Forgery(what, apply, free)


def references(folder: Path) -> Iterator[Forgery]:
    """reference.npz with arrays missing, foreign, misshaped, not finite, pickled or absurd."""
    arrays = dict(np.load(folder / "reference.npz"))
    for name, array in arrays.items():
        rest = {n: a for n, a in arrays.items() if n != name}
        yield _npz(rest, f"{name} is missing")
        yield _npz({**rest, f"{name}_": array}, f"{name} is renamed")
        wrong = [
            array[:0], array[..., :1] if array.shape[-1] > 1 else array[None], array[None],
            array.ravel(), np.array(3.0), array.astype(np.float16), array.astype(np.complex64),
            np.full(array.shape, "x"), np.full(array.shape, 10**6, array.dtype),
            np.full(array.shape, -5, array.dtype), np.zeros((*array.shape, 2), array.dtype),
        ]  # fmt: skip
        if array.dtype.kind == "f":
            wrong += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
        for index, other in enumerate(wrong):
            if other.dtype == array.dtype and np.array_equal(other, array):
                continue
            yield _npz({**rest, name: other}, f"{name} wrong in way {index}")
    yield _npz(arrays | {"extra": np.zeros(3)}, "an array more")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    yield _zip({"images.npy": pickled.getvalue()}, "a pickled array")
    for shape in ("(1000000000000,)", "(99999999, 99999999, 99999999)", "(-1,)"):
        yield _zip({"images.npy": _header(shape)}, f"an array of shape {shape}")
    yield _zip({"images.npy": bytes(1 << 26)}, "zeros that pack well", packed=True)
    yield _zip({}, "no array")


def _npz(arrays: dict[str, Any], what: str) -> Forgery:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return _file("reference.npz", data.getvalue(), what)


def _zip(members: dict[str, bytes], what: str, packed: bool = False) -> Forgery:
    data = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(data, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return _file("reference.npz", data.getvalue(), what)


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
