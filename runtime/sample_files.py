"""What others read of a large set, and what is read of others: samples.npz in the form of ADM's
evaluator (arr_0 the pixels, arr_1 the labels), .tar shards in the form of webdataset, and pixels
with labels from a set's folder or any .npz of that form. Some images at a time are in memory; no
time or place goes into a file, so that the same set gives the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from m2kit.errors import FolderError, InputError
from m2kit.inputs import open_input
from m2kit.npz_file import DamagedArchive
from m2kit.outputs import check_output_file, new_file
from m2kit.progress import Begin, silent
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS
from m2kit.runtime.npz_rows import RowArchive, write_rows
from m2kit.runtime.picture_folder import picture_name
from m2kit.runtime.pictures import MOST_PIXELS
from m2kit.runtime.sample_set import SampleSet, SetFolder, find_set

ADM_NAME = "samples.npz"
PIXELS, _LABELS = "arr_0", "arr_1"
_AT_ONCE = 64  # images
_OF_A_TAR = 1000  # images
_NO_ADM = "expected arr_0 (n, H, W, 3) uint8 and, if they are known, arr_1 (n) labels"


@dataclass(frozen=True, slots=True)
class Samples:
    """Images of a set, read as they are needed.

    Attributes:
        path: A set's folder, or an .npz.
        count: How many images.
        size: (H, W) in pixels.
        set: What they depend on; None of an .npz, which does not tell.
        labelled: Whether their classes are known.
    """

    path: Path
    count: int
    size: tuple[int, int]
    set: SampleSet | None
    labelled: bool

    def batches(
        self, at_once: int = _AT_ONCE
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64] | None]]:
        """Pixels (b, H, W, 3) uint8 and labels (b) int64 of all images, so many at a time or fewer;
        None for labels where there are none.

        Raises:
            InputError: The .npz is damaged.
            FolderError: A part of the set is.
        """
        if self.set is not None:
            yield from _of_set(find_set(self.path, self.set), at_once)
            return
        try:
            with ExitStack() as stack:
                archives = [  # two readers of one file
                    RowArchive(stack.enter_context(open_input(self.path, "set of images")))
                    for _ in range(2)
                ]
                labels = archives[1].rows(_LABELS, at_once) if self.labelled else None
                for pixels in archives[0].rows(PIXELS, at_once):
                    yield pixels, None if labels is None else next(labels).astype(np.int64)
        except DamagedArchive as error:
            raise _no_samples(self.path) from error


def open_samples(path: Path) -> Samples:
    """The images of a whole set, or of an .npz in ADM's form.

    Raises:
        InputError: Neither.
        FolderError: Parts of the set are missing or damaged.
    """
    if path.is_dir():
        found = find_set(path)
        require_whole(found)
        return Samples(path, found.set.images, found.set.image_size, found.set, labelled=True)
    try:
        with open_input(path, "set of images") as file:
            archive = RowArchive(file)
            shape, dtype = archive.header(PIXELS)
            labelled = _LABELS in archive.names
            labels, kind = archive.header(_LABELS) if labelled else (shape[:1], np.dtype(np.int64))
    except DamagedArchive as error:
        raise _no_samples(path) from error
    pictures = len(shape) == 4 and shape[3] == 3 and shape[1] * shape[2] <= MOST_PIXELS
    if dtype != np.uint8 or not pictures or 0 in shape:
        raise InputError(f"{path}: {_NO_ADM}; found arr_0 of {dtype}, {list(shape)}")
    if kind.kind not in "iu" or labels != shape[:1]:
        raise InputError(f"{path}: {_NO_ADM}; found arr_1 of {kind}, {list(labels)}")
    return Samples(path, shape[0], (shape[1], shape[2]), None, labelled)


def merge_npz(found: SetFolder, begin: Begin = silent) -> Path:
    """Write a whole set as samples.npz in its folder, in ADM's form; returns its path.

    Args:
        found: The set; what another merge has written is replaced.
        begin: Called with the number of images.

    Raises:
        FolderError: Parts are missing or damaged, or it cannot be written.
    """
    require_whole(found)
    path, whole = found.path / ADM_NAME, found.set
    check_output_file(path)
    labels = np.repeat(np.array(whole.classes, np.int64), whole.per_class)
    advance = begin("writing", whole.images)

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for part in range(whole.parts):
            for rows in found.rows(part, _AT_ONCE):
                yield rows
                advance(len(rows))

    with new_file(path) as temporary:
        shape = (whole.images, *whole.image_size, 3)
        write_rows(
            temporary,
            {
                PIXELS: (shape, np.dtype(np.uint8), pixels()),
                _LABELS: (labels.shape, labels.dtype, [labels]),
            },
        )
    return path


def merge_tar(found: SetFolder, begin: Begin = silent) -> list[Path]:
    """Write a whole set as webdataset shards of 1,000 images in its folder: of each image a PNG and
    its class number, KEY.png and KEY.cls. Returns their paths; arguments and errors as for
    `merge_npz`."""
    require_whole(found)
    whole, paths = found.set, []
    advance = begin("writing", whole.images)
    pictures = (
        (number, image)
        for part in range(whole.parts)
        for numbers in [iter(whole.numbers(part))]
        for rows in found.rows(part, _AT_ONCE)
        for image, number in zip(rows, numbers, strict=False)
    )
    for first in range(0, whole.images, _OF_A_TAR):
        path = found.path / f"samples-{first // _OF_A_TAR:05d}.tar"
        check_output_file(path)
        with (
            new_file(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for _ in range(min(_OF_A_TAR, whole.images - first)):
                number, image = next(pictures)
                _add_picture(tar, number, image)
                advance(1)
        paths.append(path)
    return paths


def require_whole(found: SetFolder) -> None:
    """Refuse a set of which parts are missing.

    Raises:
        FolderError: Some are.
    """
    missing = found.missing
    if missing:
        raise FolderError(
            f"{found.path} lacks {len(missing)} of {found.set.parts} parts of its set, first "
            f"{part_words(missing)}: draw them, or bring them here, with `m2kit sample`"
        )


def part_words(parts: list[int]) -> str:
    """Some numbers of parts, the first few of them."""
    return ", ".join(map(str, parts[:5])) + (", ..." if len(parts) > 5 else "")


def _of_set(
    found: SetFolder, at_once: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    require_whole(found)
    for part in range(found.set.parts):
        labels = np.array(found.set.numbers(part), np.uint64) // np.uint64(IMAGES_OF_A_CLASS)
        start = 0
        for rows in found.rows(part, at_once):
            yield rows, labels[start : start + len(rows)].astype(np.int64)
            start += len(rows)


def _add_picture(tar: tarfile.TarFile, number: int, image: npt.NDArray[np.uint8]) -> None:
    class_id = number // IMAGES_OF_A_CLASS
    name, file = picture_name(class_id, number), io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    for member, data in (
        (name, file.getvalue()),
        (name.removesuffix(".png") + ".cls", str(class_id).encode()),
    ):
        entry = tarfile.TarInfo(member)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def _no_samples(path: Path) -> InputError:
    return InputError(f"{path}: {_NO_ADM}, in an intact .npz; write it again")
