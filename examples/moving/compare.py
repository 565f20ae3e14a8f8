"""What a video tokenizer leaves of held-out films, beside an image tokenizer frame by frame and
beside repeating the first frame; and what an overlap of clips changes.

    python examples/moving/compare.py films/val video.engine image.engine moving.png

PSNR in dB is of frames of 8 bits a colour, the mean over frames. In the picture each film has three
rows: its frames, those of the video tokenizer, those of the image tokenizer.
"""

import sys
from pathlib import Path

import numpy as np

import m2kit
from m2kit.runtime.film_coding import clip_length, reconstructed_frames
from m2kit.runtime.films import Film, film_paths
from m2kit.runtime.images import images_from_pixels
from m2kit.runtime.saving import write_grid

OVERLAPS, SHOWN = (0, 1, 2, 4), 4


def decibels(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 twice -> (...), with 100 dB for frames that are equal."""
    square = (np.subtract(frames, others, dtype=np.float64) ** 2).mean((-3, -2, -1))
    return 10 * np.log10(255**2 / np.maximum(square, 1e-10 * 255**2))


def tokens_of(engine: m2kit.Engine, size: tuple[int, ...]) -> str:
    """Of a picture or clip of a size, with their bits."""
    count = int(np.prod(engine.spec.grid_of_size(size)))
    return f"{count} tokens of {engine.spec.tokenizer.code_bits} bits"


def main() -> None:
    """Print the table, and draw the picture."""
    films = [Film(path) for path in film_paths([Path(sys.argv[1])])]
    video, image = (m2kit.open_engine(path) for path in sys.argv[2:4])
    length, size = clip_length(video), films[0].size
    found: dict[str, list[np.ndarray]] = {}
    rows = []
    for film in films:
        first = len(film) // 2 - length // 2
        frames = np.stack([*film.frames(first)][:length])
        coded = video.decode(video.encode(images_from_pixels(frames[None])))
        alone = image.decode(image.encode(images_from_pixels(frames)))
        each = {
            "video tokenizer": m2kit.to_uint8(coded)[0],
            "image tokenizer, frame by frame": m2kit.to_uint8(alone),
            "the first frame, repeated": np.broadcast_to(frames[:1], frames.shape),
        }
        for name, others in each.items():
            found.setdefault(name, []).append(decibels(frames, others))
        rows += [frames, *list(each.values())[:2]]
    print(f"{len(films)} clips of {length} frames of {size[0]} x {size[1]}")
    for name, values in found.items():
        by_frame = np.mean(values, axis=0)
        shown = " ".join(f"{value:.2f}" for value in by_frame)
        print(f"{name}: {by_frame[1:].mean():.2f} dB after the first frame; by frame {shown}")
    print(f"a clip: {tokens_of(video, (length, *size))}; a frame: {tokens_of(image, size)}")
    for overlap in OVERLAPS:
        pairs = [np.stack(list(reconstructed_frames(video, f, overlap=overlap))) for f in films]
        quality, jumps, evens = [], [], []
        for pair in pairs:  # (frames, 2, H, W, 3)
            quality.append(decibels(pair[:, 0], pair[:, 1]))
            error = pair[:, 1].astype(float) - pair[:, 0]
            change = np.abs(np.diff(error, axis=0)).mean((1, 2, 3))
            borders = np.arange(length, len(pair), length - overlap) - 1
            jumps.append(change[borders])
            evens.append(np.delete(change, borders))
        clips = len(range(0, max(len(pairs[0]) - overlap, 1), length - overlap))
        print(
            f"overlap {overlap}: {np.mean(np.concatenate(quality)):.2f} dB, {clips} clips a film; "
            f"change of the error from frame to frame {np.mean(np.concatenate(jumps)):.2f} of 255 "
            f"at borders, {np.mean(np.concatenate(evens)):.2f} within clips"
        )
    chosen = np.concatenate([row for i in spread(len(films)) for row in rows[3 * i : 3 * i + 3]])
    write_grid(Path(sys.argv[4]), images_from_pixels(chosen), columns=length)


def spread(count: int) -> list[int]:
    """SHOWN of so many, evenly apart."""
    return [index * count // SHOWN for index in range(SHOWN)]


main()
