"""A folder of pictures, a file each: what those of drawn images are called and tell, which of them
are there already, and that no picture of anybody is written over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from m2kit.errors import FolderError
from m2kit.records import JsonObject
from m2kit.runtime.drawing import IMAGES_OF_A_CLASS
from m2kit.runtime.saving import notes_of_png

_DRAWN = re.compile(r"([0-9]{5,10})_([0-9]{6,10})\.png")


def picture_name(class_id: int, number: int) -> str:
    """Of a drawn image's file: class and place in it."""
    return f"{class_id:05d}_{number % IMAGES_OF_A_CLASS:06d}.png"


def picture_notes(drawing: JsonObject, class_id: int, number: int) -> JsonObject:
    """What a drawn image's file tells.

    Args:
        drawing: What all images of the drawing share, as `notes_of_drawing` gives it.
        class_id: The image's class.
        number: Its number, class * 2^32 + place in the class.
    """
    return drawing | {"class": class_id, "image_number": number}


def drawn_before(
    folder: Path, classes: Collection[int], drawing: JsonObject, *, first_image: int, count: int
) -> set[int]:
    """Numbers of the images of a drawing that a folder has, which may not be there yet.

    Args:
        folder: Where they are, or would be.
        classes: Class ids.
        drawing: As for `picture_notes`.
        first_image: Place in its class of the first image.
        count: Images per class.

    Raises:
        FolderError: A file of one of their names tells something else, or nothing.
    """
    found, wanted = set(), set(classes)
    for name in _names_in(folder):
        parts = _DRAWN.fullmatch(name)
        if not parts:
            continue
        class_id, place = map(int, parts.groups())
        number = class_id * IMAGES_OF_A_CLASS + place
        if class_id not in wanted or not first_image <= place < first_image + count:
            continue
        if name != picture_name(class_id, number):
            continue
        if notes_of_png(folder / name) != picture_notes(drawing, class_id, number):
            raise FolderError(
                f"{folder / name} is another picture than this command would draw (another seed, "
                "sampling, engine or version drew it, or none of m2kit) and is not overwritten; "
                "choose another folder",
                option="-o",
            )
        found.add(number)
    return found


def check_names_free(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder, which may not be there yet, that has files of these names.

    Raises:
        FolderError: It has.
    """
    taken = set(names).intersection(_names_in(folder))
    if taken:
        raise FolderError(
            f"{folder / min(taken)} is there already and is not overwritten; choose another folder",
            option="-o",
        )


def _names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
