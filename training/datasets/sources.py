"""Where labelled pictures come from: an .npz file, a folder by class (ImageNet's layout), or a
folder of tar shards (webdataset's layout). Nothing is unpickled.
"""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2kit.errors import InputError
from m2kit.inputs import open_input
from m2kit.npz_file import DamagedArchive, read_npz
from m2kit.runtime.films import FILM_SUFFIXES
from m2kit.training.datasets.pictures import (
    ArrayPictures,
    Collection,
    FilePictures,
    Pictures,
    ShardPictures,
    split_by_group,
)

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
_TRAIN, _HELD_OUT = ("train",), ("val", "validation", "test")  # names of the halves, if it has them
HELD_OUT_SHARE = 0.1  # where it has none
_MOST_CLASSES = 100_000  # that class numbers in shards may be of
_NO_PICTURE = 0, 0  # first byte and number of bytes of one that cannot be read


def collection_at(path: Path) -> Collection:
    """The labelled pictures of a file or folder.

    A folder with `train` and `val` is divided as it says; so are shards whose names begin like
    that. Everything else is divided here: a tenth of every class is held out.

    Raises:
        InputError: None of the layouts above, or one that contradicts itself.
    """
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        return _shards(path, shards) if shards else _folders(path)
    if path.suffix == ".npz":
        return _array(path)
    if path.suffix == ".tar" and path.is_file():
        return _shards(path.parent, [path])
    raise InputError(
        f"{path}: expected a folder with a folder of pictures per class, a folder of .tar shards, "
        "or an .npz with images and labels"
    )


def _array(path: Path) -> Collection:
    """images (n, H, W, 3) uint8, labels (n), categories (classes) and, if there are, names (n) of
    which what stands before a slash is the group."""
    try:
        with open_input(path, "data set") as file:
            arrays = read_npz(file)
    except DamagedArchive as error:
        raise InputError(
            f"{path}: expected an intact .npz of plain arrays, none of objects; write it again "
            "with numpy.savez"
        ) from error
    missing = {"images", "labels", "categories"} - set(arrays)
    if missing:
        raise InputError(f"{path}: expected an array {min(missing)}, found {sorted(arrays)}")
    images, labels, categories = arrays["images"], arrays["labels"], arrays["categories"]
    count = len(images) if images.ndim else 0
    names = arrays.get("names", np.arange(count).astype(str))
    expected = {
        "images": (images, images.dtype == np.uint8, (count, *images.shape[1:3], 3)),
        "labels": (labels, np.issubdtype(labels.dtype, np.integer), (count,)),
        "categories": (categories, categories.dtype.kind == "U", (categories.size,)),
        "names": (names, names.dtype.kind == "U", (count,)),
    }
    for name, (array, right_type, shape) in expected.items():
        if not right_type or array.shape != shape or 0 in shape:
            raise InputError(
                f"{path}: expected images (n, H, W, 3) uint8, labels (n) of whole numbers, "
                f"categories (classes) and names (n) of text; found {name} of {array.dtype}, "
                f"{list(array.shape)}"
            )
    if labels.min() < 0 or labels.max() >= len(categories):
        raise InputError(
            f"{path}: expected labels of 0..{len(categories) - 1}, one for each of the categories; "
            f"found {labels.min()}..{labels.max()}"
        )
    groups = [name.split("/")[0] for name in names.tolist()]
    pictures = ArrayPictures(images, labels.astype(np.int64), groups)
    height, width = images.shape[1:3]
    return Collection(
        *split_by_group(pictures, HELD_OUT_SHARE),
        tuple(categories.tolist()),
        size=height if height == width else None,
    )


def halves_of(root: Path) -> tuple[Path, Path] | None:
    """The folders train and val of a folder; None where it has neither.

    Raises:
        InputError: It has one of them.
    """
    train, held_out = (
        next((root / name for name in names if (root / name).is_dir()), None)
        for names in (_TRAIN, _HELD_OUT)
    )
    if train and held_out:
        return train, held_out
    if found := train or held_out:
        raise InputError(
            f"{root}: expected train and val, or a folder per class; found only {found.name}"
        )
    return None


def _folders(root: Path) -> Collection:
    halves = halves_of(root)
    if halves is None:
        classes = _class_names(root)
        pictures = _files(root, classes)
        return Collection(*split_by_group(pictures, HELD_OUT_SHARE), classes)
    train, held_out = halves
    classes = _class_names(train)
    if _class_names(held_out) != classes:
        odd = sorted(filter(None, set(classes) ^ set(_class_names(held_out))))
        raise InputError(
            f"{root}: expected the same classes in {train.name} and {held_out.name}; only one of "
            f"them has {', '.join(odd[:5])}"
        )
    return Collection(_files(train, classes), _files(held_out, classes), classes)


def _class_names(root: Path) -> tuple[str, ...]:
    """The folders of a half that are not hidden, by name; "" where its pictures are of no class."""
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    return tuple(names) or ("",)


def _files(root: Path, classes: tuple[str, ...]) -> FilePictures:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(p) for p in (root / name).rglob("*") if _is_picture(p.name))
        if not found and _holds_films(root):
            raise InputError(
                f"{root}: expected pictures, found none; it holds films, of which clips are taken",
                option="--frames",
            )
        if not found and name:
            raise InputError(
                f"{root / name}: expected pictures of a class, found none; fill the folder, or "
                "remove it, which moves the numbers of the classes after it"
            )
        if not found:
            raise InputError(
                f"{root}: expected pictures ({', '.join(sorted(_SUFFIXES))}), in a folder per "
                "class or of no class, or .tar shards of them; found none"
            )
        paths += found
        labels += [label] * len(found)
    return FilePictures(paths, np.array(labels, dtype=np.int64))


def _holds_films(root: Path) -> bool:
    return any(path.name.lower().endswith(FILM_SUFFIXES) for path in root.rglob("*"))


def _is_picture(name: str) -> bool:
    """By its suffix; hidden files are none, such as the ._x.jpg of a Mac's archives."""
    return Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")


@dataclass(frozen=True, slots=True)
class _Sample:
    """A picture of a shard, as its tar lists it."""

    key: str
    place: tuple[Path, int, int]
    label: int | None


def _shards(root: Path, shards: list[Path]) -> Collection:
    def starts(path: Path, names: tuple[str, ...]) -> bool:
        return path.name.startswith(names)

    train = [path for path in shards if starts(path, _TRAIN)]
    held_out = [path for path in shards if starts(path, _HELD_OUT)]
    rest = [path for path in shards if path not in train and path not in held_out]
    if bool(train) != bool(held_out) or (train and rest):
        raise InputError(
            f"{root}: expected shards whose names begin with train and val, or none of these; "
            f"found {len(train)}, {len(held_out)} and {len(rest)} others"
        )
    samples = [[s for path in part for s in _samples(path)] for part in (train, held_out, rest)]
    everything = [sample for part in samples for sample in part]
    labels = {sample.label for sample in everything}
    if None in labels and len(labels) > 1:
        odd = next(sample.key for sample in everything if sample.label is None)
        raise InputError(f"{root}: some pictures have a .cls label, and {odd} has none")
    count = 1 + max((label or 0 for label in labels), default=-1)
    if not count:
        raise InputError(f"{root}: its shards hold no picture")
    classes = tuple(map(str, range(count))) if None not in labels else ("",)
    if not train:
        return Collection(*split_by_group(_pictures(samples[2]), HELD_OUT_SHARE), classes)
    for part, name in zip(samples[:2], (_TRAIN[0], _HELD_OUT[0]), strict=True):
        if not part:
            raise InputError(f"{root}: its {name} shards hold no picture")
    return Collection(_pictures(samples[0]), _pictures(samples[1]), classes)


def _pictures(samples: list[_Sample]) -> Pictures:
    return ShardPictures(
        groups=[sample.key for sample in samples],
        labels=np.array([sample.label or 0 for sample in samples], dtype=np.int64),
        places=[sample.place for sample in samples],
    )


def _samples(path: Path) -> Iterator[_Sample]:
    """The pictures of a shard. Members of one key, the name before its first dot, belong together:
    a picture, and its class number as text in KEY.cls. Hidden members are left out. A link, a
    device or a sparse file is a picture that cannot be read, and so is one of which there is only
    the class number."""
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    end = 0
    try:
        with open_input(path, "shard") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if tar.offset <= end:
                    raise tarfile.ReadError("negative size")
                end = tar.offset
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isdir() or not stem:
                    continue
                members, ending = found[f"{folder}/{stem}".strip("/")], ending.lower()
                if ending in members:
                    raise InputError(
                        f"{path}: expected each name once, found {member.name!r} twice; write the "
                        "shard again with keys of their own"
                    )
                plain = member.isfile() and not member.issparse()
                place = member.offset_data, member.size
                members[ending] = place if plain else _NO_PICTURE
            file.seek(end)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # how a tar ends
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a whole, uncompressed .tar ({error}); unpack it, or fetch it again"
        ) from error
    if not whole:
        raise InputError(f"{path}: breaks off after {len(found)} pictures; fetch it again")
    for key, members in found.items():
        picture = _only(path, key, members, _SUFFIXES)
        label = _only(path, key, members, {".cls"})
        if picture or label:
            start, size = picture or _NO_PICTURE
            yield _Sample(f"{path}:{key}", (path, start, size), _label(path, key, label))


def _only(
    path: Path, key: str, members: dict[str, tuple[int, int]], suffixes: set[str]
) -> tuple[int, int] | None:
    """The member with one of these suffixes: KEY.png, or else KEY.anything.png if it is alone."""
    whole = [ending for ending in members if f".{ending}" in suffixes]
    fitting = whole or [e for e in members if f".{e.rpartition('.')[2]}" in suffixes]
    if len(fitting) > 1:
        raise InputError(
            f"{path}: expected one picture and one class number of the key {key!r}, found "
            f"{', '.join(map(repr, fitting[:3]))}; the key is what stands before the first dot"
        )
    return members[fitting[0]] if fitting else None


def _label(path: Path, key: str, place: tuple[int, int] | None) -> int | None:
    if place is None:
        return None
    with open_input(path, "shard") as file:
        file.seek(place[0])
        text = file.read(min(place[1], 20)).decode("ascii", "replace").strip()
    if not text.isascii() or not text.isdigit() or int(text) >= _MOST_CLASSES:
        raise InputError(
            f"{path}: expected a class number below {_MOST_CLASSES:,} in {f'{key}.cls'!r}, found "
            f"{text!r}"
        )
    return int(text)
