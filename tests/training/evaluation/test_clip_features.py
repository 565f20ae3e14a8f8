import warnings

import pytest
import torch
from torch.nn import functional

from m2kit.errors import CheckpointError, InputError, Unavailable
from m2kit.hashes import sha256_of_file
from m2kit.training.evaluation.clip_features import I3D_FILE, ClipNetwork, i3d_network
from m2kit.training.evaluation.input_rule import ranged
from m2kit.training.evaluation.moments import Moments, Published, frechet_distance
from m2kit.training.models.i3d import I3D


def clips_of(count, frames=9, size=(10, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (count, 3, frames, *size), generator=generator)
    return drawn.to(torch.float32) / 255


def moments_of(network, batches):
    moments = Moments(400)
    for clips in batches:
        moments.add(network(clips).pooled)
    return moments


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ClipNetwork("a" * 64, I3D())


@pytest.fixture(scope="module")
def features(network):
    return network(clips_of(3)).pooled


class Small(torch.nn.Module):
    """400 features of little work: of frames of 4 x 4 pixels by a random matrix."""

    def __init__(self):
        super().__init__()
        self.mixing = torch.randn(3 * 9 * 16, 400, generator=torch.Generator().manual_seed(0))

    def forward(self, clips):
        return clips.flatten(1) @ self.mixing


@pytest.fixture
def small():
    """The network of frames that nobody makes larger: hundreds of clips would take their time."""
    return ClipNetwork("a" * 64, Small(), ranged((4, 4), "bilinear, no antialias", -1, 1))


def test_features_are_logits_of_frames_resized_and_scaled_as_the_official_evaluation_does(
    network, features
):
    frames = (clips_of(3) * 255).transpose(1, 2).flatten(0, 1)
    resized = functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    given = (2 * resized / 255 - 1).unflatten(0, (3, 9)).transpose(1, 2)
    expected = network.module(given)
    assert (features.shape, features.dtype) == ((3, 400), torch.float32)
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_clips_features_do_not_depend_on_those_beside_it(network, features):
    assert torch.equal(network(clips_of(3)[1:2]).pooled, features[1:2])


def test_moments_of_few_clips_are_0_from_themselves_where_nobody_counts(features):
    found = Moments(400)
    found.add(features)
    of_few = Published(found.mean, found.covariance)
    assert frechet_distance(of_few, of_few) < 1e-9


def test_a_set_is_0_from_itself_and_shards_merge_into_what_one_pass_gives(small):
    clips, others = clips_of(410, size=(4, 4)), clips_of(405, size=(4, 4), seed=1)
    whole = moments_of(small, clips.split(100))
    merged = Moments(400)
    for shard in (clips[300:], clips[1:8], clips[8:300], clips[:1]):
        merged.merge(moments_of(small, shard.split(64)))
    assert merged.count == whole.count == 410
    assert frechet_distance(whole, merged) < 1e-6
    reference = moments_of(small, [others])
    distances = [frechet_distance(moments, reference) for moments in (whole, merged)]
    assert distances[0] > 1
    assert distances[0] == pytest.approx(distances[1], rel=1e-9)


def test_fewer_clips_than_features_have_no_distance(small):
    few = moments_of(small, [clips_of(5, size=(4, 4))])
    with pytest.raises(Unavailable, match="needs 400 samples or more, found 5"):
        frechet_distance(few, few)


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (clips_of(1).double(), r"float32, found .* torch.float64"),
        (clips_of(1) * 2 - 1, r"expected pictures in \[0, 1\], found values from"),
        (clips_of(1)[0], r"found \(3, 9, 10, 12\)"),
        (clips_of(1).transpose(1, 2), r"found \(1, 9, 3, 10, 12\)"),
        (clips_of(0), r"found \(0, 3, 9, 10, 12\)"),
        (clips_of(1, frames=8), "9 frames or more, found 8"),
    ],
)
def test_what_is_no_clip_is_refused_in_one_line(clips, words, small):
    with pytest.raises(InputError, match=words) as caught:
        small(clips)
    assert "\n" not in str(caught.value)


def test_features_that_are_not_finite_are_told(small):
    small.module.mixing *= torch.nan
    with pytest.raises(Unavailable, match="i3d are not finite; look at its weights"):
        small(clips_of(1))


def test_the_file_is_found_where_torch_hub_keeps_it(tmp_path, monkeypatch, network):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / I3D_FILE.name
    torch.save(network.module.state_dict(), path)
    found = i3d_network()
    assert found.sha256 == sha256_of_file(path)
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor)


def test_a_missing_file_is_one_line_that_says_which_from_where_and_where_to(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        i3d_network()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoints' / 'i3d_pretrained_400.pt'} is missing")
    assert "https://github.com/wilson1yan/VideoGPT" in text
    assert "put it there, or name it" in text
    assert "\n" not in text


def test_torchscript_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that its TorchScript is old
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(CheckpointError, match="is a TorchScript program, and reading") as caught:
        i3d_network(path)
    assert "\n" not in str(caught.value)


def test_other_weights_and_other_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}, path)
    with pytest.raises(CheckpointError, match=r"with Conv3d_1a_7x7.conv3d.weight of shape"):
        i3d_network(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match="not a whole PyTorch checkpoint"):
        i3d_network(path)
