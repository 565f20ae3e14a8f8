"""What a run trains on and is measured on: crops of a data set's pictures, or clips of a folder's
films."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.training.datasets.clips import Clips, films_at
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.dataset import latent_grid
from m2kit.training.datasets.table import DATASETS, dataset_named
from m2kit.training.models.discriminator import check_judged
from m2kit.training.models.perceptual import check_compared
from m2kit.training.recipes.settings import RunSettings, TokenizerSettings

Kind = TypeVar("Kind", Crops, Clips)


@dataclass(frozen=True, slots=True)
class Examples(Generic[Kind]):
    """What a data set gives a run.

    Attributes:
        title: Of the data set.
        classes: Names of its classes; one where it has none.
        train: To be trained on, cut as the settings have it.
        held_out: To be measured on, at the centre and unchanged.
        left_out: What of the data set is in neither, as a line; nothing where all is.
    """

    title: str
    classes: tuple[str, ...]
    train: Kind
    held_out: Kind
    left_out: str = ""


def picture_examples(settings: RunSettings) -> Examples[Crops]:
    """Of a data set of pictures.

    Raises:
        InputError: There is no such data set; the settings name no size, and the pictures have none
            in common; or none of those to train on, or of those held out, can be read.
    """
    data = dataset_named(settings.data)
    collection = data.load()
    cut = _cut(settings, collection.size, "pictures")
    train = Crops(collection.train, cut, one_of_group=settings.one_of_group)
    held_out = Crops(collection.held_out, Cut(cut.size))
    for crops in (train, held_out):
        crops[0]  # before a run that could not be measured begins
    return Examples(data.title, collection.classes, train, held_out)


def clip_examples(settings: RunSettings, frames: int, begin: Begin = silent) -> Examples[Clips]:
    """Of a folder of films, clips of so many frames.

    Raises:
        InputError: There is no such folder; the settings name no size, and the films have none in
            common; or too few films are long enough and can be read.
        BackendError: PyAV is not installed.
    """
    path = Path(settings.data)
    if settings.data in DATASETS or not path.is_dir():
        raise InputError(
            "a tokenizer of clips is trained on a folder of films; found "
            + ("the data set " * (settings.data in DATASETS) + settings.data),
            option="--data, --frames",
        )
    films = films_at(path, frames, begin)
    cut = _cut(settings, films.size, "films")
    train, held_out = Clips(films.train, frames, cut), Clips(films.held_out, frames, Cut(cut.size))
    return Examples(path.resolve().name, ("",), train, held_out, films.left_out_text(frames))


def tokenizer_examples(
    settings: TokenizerSettings, begin: Begin = silent
) -> Examples[Crops] | Examples[Clips]:
    """Of what the settings of a tokenizer's run name, as its networks take it.

    Raises:
        InputError: There is none, or they do not take it.
        BackendError: PyAV is not installed, for clips.
    """
    frames = settings.frames
    found: Examples[Crops] | Examples[Clips]
    found = picture_examples(settings) if frames is None else clip_examples(settings, frames, begin)
    check_taken(settings, found.train.cut.size[0])
    return found


def check_taken(settings: TokenizerSettings, size: int) -> None:
    """Refuse images, of such a height and width in pixels, that a run's networks do not take.

    Raises:
        InputError: They do not.
    """
    shape = settings.shape(size)
    latent_grid(shape, settings.spec)
    check_judged(settings.adversary, shape)
    if settings.perceptual_weight:
        check_compared(shape)


def _cut(settings: RunSettings, own: int | None, words: str) -> Cut:
    """How training images are cut, to the size of the settings or the data set's own."""
    size = settings.size or own
    if size is None:
        raise InputError(
            f"the {words} of {settings.data} are of several sizes, or not square; name the one to "
            "train on",
            option="--size",
        )
    return Cut((size, size), settings.place, settings.flip, settings.warp, settings.seed)
