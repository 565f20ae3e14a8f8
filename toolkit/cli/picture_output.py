"""Where the images of a command go: one picture, a grid of them, or a folder that gets each as soon
as it is finished; and what is said when the command is stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2kit.cli.commands import Interrupted
from m2kit.errors import FolderError
from m2kit.outputs import check_output, check_output_folder
from m2kit.records import JsonObject
from m2kit.runtime.images import uint8_from_images
from m2kit.runtime.saving import PICTURE_SUFFIXES, Sheet, write_picture

GRID_OR_FOLDER = (
    "as PNG, JPEG or WebP by its suffix; or a folder (a name without suffix), which gets each "
    "image as soon as its batch is finished, and in which no other picture is overwritten."
)


class PictureOutput:
    """A grid or a folder that images are put into.

    Attributes:
        path: Of either.
        is_folder: Which of them.
    """

    def __init__(self, path: Path) -> None:
        """Refuse, before any work, what cannot be written.

        Raises:
            FolderError: No name of a picture or folder, or nothing that can be written.
        """
        self.path, self.is_folder = path, not path.suffix
        if self.is_folder:
            check_output_folder(path)
        elif path.suffix.lower() not in PICTURE_SUFFIXES:
            raise FolderError(
                f"{path}: expected a picture's name, ending in {', '.join(PICTURE_SUFFIXES)}, or a "
                "folder's, which has no suffix; choose another"
            )
        else:
            check_output(path, *PICTURE_SUFFIXES)
        self._sheet: Sheet | None = None
        self._finished = 0

    @contextlib.contextmanager
    def begun(
        self, total: int, size: tuple[int, ...], *, columns: int, stacked: int = 1, go_on: str
    ) -> Iterator[None]:
        """Makes room for images of a size, and says on Ctrl-C how many are finished.

        Args:
            total: Images, or stacks of them.
            size: (H, W), pixels of an image.
            columns: Of a grid.
            stacked: Images that stand one below the other in a grid.
            go_on: How to go on with a folder, as a sentence.

        Raises:
            InputError: A grid with more pixels than a picture may have.
            Interrupted: The user pressed Ctrl-C.
        """
        if not self.is_folder:
            self._sheet = Sheet(self.path, total, size, columns=columns, stacked=stacked)
        try:
            yield
        except KeyboardInterrupt as error:
            done = f"interrupted: {self._finished} of {total} images are finished"
            if self.is_folder:
                raise Interrupted(f"{done} in {self.path}. {go_on}") from error
            raise Interrupted(
                f"{done}, none was written, since a grid is written whole; -o FOLDER keeps each"
            ) from error

    def skip(self, count: int) -> None:
        """So many images are already there."""
        self._finished += count

    def add(
        self,
        name: str,
        image: npt.NDArray[np.float32],
        *,
        above: npt.NDArray[np.float32] | None = None,
        notes: JsonObject | None = None,
    ) -> None:
        """Add the next image.

        Args:
            name: Of its file in a folder, ending in .png.
            image: (3, H, W) float32 in [-1, 1].
            above: An image that stands above it in a grid.
            notes: To be kept in its file in a folder.
        """
        pixels = uint8_from_images(image[None])[0]
        if self._sheet is None:
            write_picture(self.path / name, pixels, notes)
        elif above is None:
            self._sheet.put(self._finished, pixels)
        else:
            self._sheet.put(self._finished, uint8_from_images(above[None])[0])
            self._sheet.put(self._finished, pixels, layer=1)
        self._finished += 1

    def finish(self, notes: JsonObject | None = None) -> None:
        """Write the grid, if it is one, with notes."""
        if self._sheet is not None:
            self._sheet.write(notes)
