import numpy as np
import pytest
import torch
from PIL import Image

from m2kit.errors import InputError
from m2kit.training.datasets.crops import READ, Crops, cut_out
from m2kit.training.datasets.cut import Cut
from m2kit.training.datasets.pictures import ArrayPictures, FilePictures

RANDOM = np.random.default_rng(0)


def noise(height, width):
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def official_centre(picture, size):
    """Resize of the short side and CenterCrop, by the rules of torchvision on a PIL image."""
    short, long = sorted(picture.size)
    longer = int(size * long / short)
    shape = (longer, size) if picture.width > picture.height else (size, longer)
    picture = picture.resize(shape, Image.Resampling.BILINEAR)
    left, top = (int(round((n - size) / 2.0)) for n in shape)  # noqa: RUF046
    pixels = np.asarray(picture)[top : top + size, left : left + size]
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize("shape", [(40, 40), (40, 57), (81, 40), (16, 16), (9, 31), (333, 250)])
def test_the_centre_is_the_official_one(shape):
    picture = noise(*shape)
    found = cut_out(picture, Cut((16, 16)), RANDOM).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, official_centre(picture, 16))


def test_a_crop_need_not_be_square():
    picture = noise(40, 40)
    assert cut_out(picture, Cut((8, 24)), RANDOM).shape == (3, 8, 24)
    assert cut_out(picture, Cut((24, 8)), RANDOM).shape == (3, 24, 8)


def test_random_crops_reach_both_ends_and_change_with_the_epoch():
    row = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None], (10, 20, 3)).copy()
    crops = Crops(ArrayPictures(row[None], np.zeros(1, int), ["x"]), Cut((10, 10), "random"))
    lefts = [round((crops[epoch][0][0, 0, 0].item() + 1) * 127.5) for epoch in range(200)]
    assert set(lefts) == set(range(11))
    assert [round((crops[e][0][0, 0, 0].item() + 1) * 127.5) for e in range(200)] == lefts


def test_nothing_is_mirrored_unless_asked():
    row = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None], (10, 10, 3)).copy()
    pictures = ArrayPictures(row[None], np.zeros(1, int), ["x"])
    plain, mirrored = (
        Crops(pictures, Cut((10, 10), "random")),
        Crops(pictures, Cut((10, 10), "random", flip=True)),
    )
    assert all(torch.equal(plain[e][0], plain[0][0]) for e in range(20))
    flipped = [torch.equal(mirrored[e][0], plain[0][0].flip(2)) for e in range(100)]
    assert 30 < sum(flipped) < 70


@pytest.fixture
def files(tmp_path):
    """Five pictures, of which the second and the last are damaged."""
    paths = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (4, 4), (index, 0, 0)).save(path)
        if index in (1, 4):
            path.write_bytes(path.read_bytes()[:40])
        paths.append(str(path))
    return FilePictures(paths, np.arange(5))


def test_a_damaged_picture_is_replaced_by_the_next_and_told(files):
    crops = Crops(files, Cut((4, 4)))
    items = [crops[5 + index] for index in range(5)]  # of the second epoch
    assert [label.item() for _, label, _ in items] == [0, 2, 2, 3, 0]
    assert [replaced.item() for *_, replaced in items] == [READ, 1, READ, READ, 4]


def test_a_data_set_without_a_readable_picture_is_an_error(files):
    only = FilePictures([files.groups[1], files.groups[4]], np.arange(2))
    with pytest.raises(InputError, match=r"none of the 2 pictures can be read.*1\.png"):
        Crops(only, Cut((4, 4)))[1]
