"""Make films of pictures that move, to train a small video tokenizer on, and pictures of their
frames for an image tokenizer to compare it with.

    python examples/moving/films.py digits films frames

Every picture of a data set crosses a canvas of 32 x 32 pixels in its corner's colour for 24 frames,
20 x 20 pixels large, at up to 2 pixels a frame each way, and turns back at the borders. The films,
without loss, are divided as the pictures are: films/train and films/val; of every sixth frame there
is a picture in frames/train and frames/val.
"""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from m2kit.runtime.film_saving import new_film
from m2kit.timing import Timing
from m2kit.training.datasets.table import dataset_named

FRAMES, SIDE, PICTURE, FASTEST, APART = 24, 32, 20, 2.0, 6


def places(random: np.random.Generator) -> np.ndarray:
    """(FRAMES, 2) upper left corners: even motion that turns back at the borders."""
    room = SIDE - PICTURE
    start, speed = random.uniform(0, room, 2), random.uniform(-FASTEST, FASTEST, 2)
    straight = (start + np.arange(FRAMES)[:, None] * speed) % (2 * room)
    return np.rint(room - np.abs(straight - room)).astype(int)


def frames_of(picture: Image.Image, random: np.random.Generator) -> list[np.ndarray]:
    """(SIDE, SIDE, 3) uint8 each."""
    pixels = np.asarray(picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS))
    frames = []
    for top, left in places(random):
        frames.append(np.full((SIDE, SIDE, 3), pixels[0, 0]))
        frames[-1][top : top + PICTURE, left : left + PICTURE] = pixels
    return frames


def main() -> None:
    """Write films and pictures."""
    data, films, stills = dataset_named(sys.argv[1]).load(), Path(sys.argv[2]), Path(sys.argv[3])
    for part, pictures in (("train", data.train), ("val", data.held_out)):
        for folder in (films, stills):
            (folder / part).mkdir(parents=True)
        for index in range(len(pictures.labels)):
            random = np.random.default_rng([part == "val", index])
            frames = frames_of(pictures.read(index), random)
            film = films / part / f"{index:05}.mkv"
            with new_film(film, (SIDE, SIDE), Timing(Fraction(12))) as add:
                for frame in frames:
                    add(frame)
            for number in range(0, FRAMES, APART):
                still = stills / part / f"{index:05}-{number:02}.png"
                Image.fromarray(frames[number]).save(still)


main()
