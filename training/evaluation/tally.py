"""What is kept of pictures once they are measured: sums, which any split of the work adds up to
alike, and the rows of features that precision, recall and KID need; never the pictures.

A tally of a lot of pictures is joined to that of the lots before it, and the two are kept in one
file in the output folder: whoever gives the same command again goes on behind the last lot in it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2kit import __version__
from m2kit.errors import FolderError, Unavailable
from m2kit.hashes import canonical_json
from m2kit.inputs import open_input
from m2kit.npz_file import DamagedArchive, read_npz
from m2kit.outputs import new_file
from m2kit.progress import Advance
from m2kit.records import JsonObject
from m2kit.runtime.codebook import CodebookCount
from m2kit.training.evaluation.moments import Moments

MOST_ROWS = 10_000  # of features that are kept
STATE_FILE = "state.npz"
_SUMS, _MOMENTS, _ROWS, _CODEBOOK = "sum.", "moments.", "rows.", "codebook."
_ABOUT, _SEAL = "about", "sha256"
_PARTS = "count", "sum", "outer"
_REST = 10  # times as long as a save took, before the next one

Floats = npt.NDArray[np.float64]


@dataclass
class Tally:
    """Sums over some pictures.

    Attributes:
        images: How many were measured.
        unread: How many could not be read.
        digests: Of the pixels of each lot.
        sums: By name.
        moments: Of features, by name.
        rows: Of chosen pictures, (n, D) of any type, in lots, by name.
        codebook: Counts of tokens; None where there are none.
    """

    images: int = 0
    unread: int = 0
    digests: list[bytes] = field(default_factory=list)
    sums: dict[str, Floats] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[str, list[npt.NDArray[Any]]] = field(default_factory=dict)
    codebook: CodebookCount | None = None

    def add(self, name: str, value: Any) -> None:
        """Add to a sum: a number, or an array of the shape it has."""
        self.sums[name] = self.sums.get(name, np.float64(0)) + np.asarray(value, np.float64)

    def add_features(self, name: str, features: Tensor, kept: list[bool]) -> None:
        """Add features (B, D) of a batch; the rows of those that `kept` says are held."""
        if name not in self.moments:
            self.moments[name] = Moments(features.shape[1])
        self.moments[name].add(features)
        self.add_rows(name, features.detach().to("cpu", torch.float32).numpy(), kept)

    def add_rows(self, name: str, rows: npt.NDArray[Any], kept: list[bool]) -> None:
        """Hold rows (B, D) of those pictures that `kept` says."""
        if any(kept):
            self.rows.setdefault(name, []).append(rows[np.array(kept)])

    def moments_of(self, name: str) -> Moments:
        """Of features that were added.

        Raises:
            Unavailable: None were.
        """
        if name not in self.moments:
            raise Unavailable("the feature network does not give these features")
        return self.moments[name]

    def features(self, name: str) -> Tensor:
        """The rows (n, D) float32 that were kept.

        Raises:
            Unavailable: There are none.
        """
        if not self.rows.get(name):
            raise Unavailable("no features were kept")
        return torch.from_numpy(np.concatenate(self.rows[name]))

    def mean(self, name: str) -> float:
        """A sum, divided by the number of pictures."""
        return float(self.sums[name]) / self.images

    def sha256(self, lots: slice = slice(None)) -> str:
        """Of all pixels of some lots, in order."""
        return hashlib.sha256(b"".join(self.digests[lots])).hexdigest()

    def joined(self, lot: Tally) -> Tally:
        """This and the next lot; both stay what they are, so that one broken off changes none."""
        new = Tally(self.images + lot.images, self.unread + lot.unread, self.digests + lot.digests)
        for part in (self, lot):
            for name, value in part.sums.items():
                new.add(name, value)
            for name, moments in part.moments.items():
                new.moments.setdefault(name, Moments(moments.dimensions)).merge(moments)
            for name, rows in part.rows.items():
                new.rows.setdefault(name, []).extend(rows)
        if self.codebook is not None and lot.codebook is not None:
            new.codebook = deepcopy(self.codebook)
            new.codebook.join(lot.codebook)
        return new

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """To be kept in a file; `tally_of` takes them back."""
        found: dict[str, npt.NDArray[Any]] = {
            "images": np.array([self.images, self.unread], np.int64),
            "digests": np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, 32),
        }
        found |= {_SUMS + name: value for name, value in self.sums.items()}
        for name, moments in self.moments.items():
            for part in _PARTS:
                found[f"{_MOMENTS}{name}.{part}"] = np.asarray(getattr(moments, part))
        found |= {_ROWS + name: np.concatenate(rows) for name, rows in self.rows.items()}
        if self.codebook is not None:
            found |= {_CODEBOOK + name: value for name, value in self.codebook.arrays().items()}
        return found


def is_kept(index: int, total: int, most: int = MOST_ROWS) -> bool:
    """Whether the features of a picture are among the `most` that are held of `total`: evenly
    spread, as data sets stand class by class."""
    return total <= most or index * most // total != (index + 1) * most // total


class Kept:
    """The file that a tally is kept in, if it is kept at all.

    Args:
        folder: Where; None keeps nothing.
        about: What is measured, as JSON: whoever measures something else does not go on with it.
        empty: What a tally begins with.
    """

    def __init__(self, folder: Path | None, about: JsonObject, empty: Callable[[], Tally]) -> None:
        self._path = None if folder is None else folder / STATE_FILE
        self._about = canonical_json(about | {"software": __version__})
        self._empty = empty
        self._next_save = 0.0

    def found(self) -> tuple[Tally, int]:
        """The tally so far, and of how many lots it is.

        Raises:
            FolderError: The file is damaged, or of another measurement.
        """
        if self._path is None or not self._path.exists():
            return self._empty(), 0
        try:
            with open_input(self._path, "state of an evaluation") as file:
                arrays = read_npz(file)
            about, seal = (str(arrays.pop(name)) for name in (_ABOUT, _SEAL))
            if seal != _seal(about, arrays):
                raise DamagedArchive(self._path)
        except (DamagedArchive, KeyError) as error:
            raise FolderError(
                f"{self._path} is damaged; remove it, and all is measured again", option="-o"
            ) from error
        if about != self._about:
            raise FolderError(
                f"{self._path} is of another measurement than this command's (another model, "
                "data set, protocol or version of m2kit); choose another folder, or remove it",
                option="-o",
            )
        tally = self._tally(arrays)
        return tally, len(tally.digests)

    def save(self, tally: Tally, *, now: bool) -> None:
        """Keep it: always if `now`, else where the last save was long enough ago.

        Raises:
            FolderError: It cannot be written.
        """
        began = time.monotonic()
        if self._path is None or (not now and began < self._next_save):
            return
        with new_file(self._path) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = tally.arrays()
            arrays |= {_ABOUT: np.array(self._about), _SEAL: np.array(_seal(self._about, arrays))}
            np.savez(file, **arrays)
        ended = time.monotonic()
        self._next_save = ended + _REST * (ended - began)

    def _tally(self, arrays: dict[str, npt.NDArray[Any]]) -> Tally:
        tally = self._empty()
        tally.images, tally.unread = map(int, arrays["images"])
        tally.digests = [row.tobytes() for row in arrays["digests"]]
        for name, value in arrays.items():
            if name.startswith(_SUMS):
                tally.sums[name.removeprefix(_SUMS)] = value
            if name.startswith(_ROWS):
                tally.rows[name.removeprefix(_ROWS)] = [value]
            if name.startswith(_MOMENTS) and name.endswith(".count"):
                own = name.removeprefix(_MOMENTS).removesuffix(".count")
                count, total, outer = (arrays[f"{_MOMENTS}{own}.{part}"] for part in _PARTS)
                moments = Moments(len(total))
                moments.count = int(count)
                moments.sum += total
                moments.outer += outer
                tally.moments[own] = moments
        if tally.codebook is not None:
            counted = {n: v for n, v in arrays.items() if n.startswith(_CODEBOOK)}
            tally.codebook.restore({n.removeprefix(_CODEBOOK): v for n, v in counted.items()})
        return tally


def _seal(about: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Hash of all that is kept: what `Tally.arrays` has not written is not summed up with it."""
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def measured(
    kept: Kept, lots: Sequence[int], measure: Callable[[int], Tally], advance: Advance
) -> Tally:
    """The tally of all lots, of which those that are kept already are not measured again.

    Args:
        kept: Where they are kept.
        lots: How many pictures each has.
        measure: A lot's number to its tally.
        advance: Called with the number of pictures that are done.

    Raises:
        FolderError: They cannot be kept, or the file there is another's.
    """
    state = kept.found()
    advance(sum(lots[: state[1]]))
    try:
        while state[1] < len(lots):
            tally, done = state
            state = tally.joined(measure(done)), done + 1
            advance(lots[done])
            kept.save(state[0], now=state[1] == len(lots))
    finally:  # a signal unwinds, too
        if 0 < state[1] < len(lots):
            with suppress(FolderError):  # what ended it is what is told
                kept.save(state[0], now=True)
    return state[0]
