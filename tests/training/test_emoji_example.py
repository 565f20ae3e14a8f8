"""The shipped emoji example: its file, and what it leaves of held-out pictures."""

import numpy as np
import torch
from conftest import EMOJI_CHECKPOINT, ROOT, picture

import m2kit
from m2kit.runtime.images import images_from_pixels, psnr, uint8_from_images
from m2kit.training.checkpoints.file import read_file
from m2kit.training.checkpoints.reading import read_checkpoint

_COLUMNS, _STEP, _SIZE = 20, 66, 64  # of the picture, in pixels


def test_the_file_is_small_and_says_how_it_was_made():
    assert EMOJI_CHECKPOINT.stat().st_size <= 16_000_000
    checkpoint = read_checkpoint(EMOJI_CHECKPOINT)
    tensors = read_file(EMOJI_CHECKPOINT, check=False).tensors.values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    training = checkpoint.training
    assert training["one_of_group"]
    assert training["codebook_usage"] == 1.0
    script = (ROOT / "examples" / "emoji" / "train.sh").read_text(encoding="utf-8")
    for option in ("seed", "steps", "batch", "width", "inter_layers", "ffn_width", "versions"):
        assert f"--{option.replace('_', '-')} {training[option]} " in script, option


def test_held_out_pictures_are_reconstructed_as_the_readme_shows_them(emoji_engine):
    shown = picture(ROOT / "docs" / "images" / "emoji-reconstructed.png")
    rows = [
        [shown[top : top + _SIZE, left : left + _SIZE] for left in _places(_COLUMNS)]
        for top in _places(6)
    ]
    images = images_from_pixels(np.stack(rows[0] + rows[3]))
    expected = np.stack(rows[1] + rows[4]).astype(int)
    with m2kit.open_engine(emoji_engine) as engine:
        found = engine.decode(engine.encode(images))
    difference = np.abs(uint8_from_images(found).astype(int) - expected)
    assert difference.mean() < 1  # pixels that were rounded once more turn a few bits
    assert psnr(images, found) > 20


def _places(count):
    return [_STEP * index for index in range(count)]
