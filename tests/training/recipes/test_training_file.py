"""tokenizer.train.pt has the names and shapes of the official training files, at full size: on
torch's meta device, which computes and stores nothing."""

import pytest
import torch
from conftest import GOLDEN

from m2kit.training.models.perceptual import PerceptualNetwork
from m2kit.training.recipes.presets import TOKENIZERS, published
from m2kit.training.recipes.settings import TokenizerSettings
from m2kit.training.recipes.tokenizer import TokenizerRecipe, _write_results

# Tensors of a file: live and averaged tokenizer, 33 of LPIPS, the live discriminator (22, or 21 of
# the blurring one), its averaged parameters (13, or 18), and two of the average itself.
TOTALS = {
    "tokenizer-128": 636,  # 2 x 283 + 33 + 22 + 13 + 2
    "tokenizer-256": 748,  # 2 x 339 + 33 + 22 + 13 + 2
    "tokenizer-pretrain-16384": 752,  # 2 x 339 + 33 + 21 + 18 + 2
    "tokenizer-pretrain-262144": 748,
    "video-128": 636,  # 2 x 283 + 33 + 22 + 13 + 2
}
PARAMETERS = [  # of the PatchGAN
    *(f"main.{layer}.weight" for layer in (0, 2, 3, 5, 6, 8, 9, 11)),
    *(f"main.{layer}.bias" for layer in (0, 3, 6, 9, 11)),
]
STATISTICS = [
    f"main.{layer}.{name}"
    for layer in (3, 6, 9)
    for name in ("running_mean", "running_var", "num_batches_tracked")
]
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
LPIPS = [
    *("scaling_layer.shift", "scaling_layer.scale"),
    *(
        f"net.slice{number}.{layer}.{part}"
        for number, layers in enumerate(SLICES, 1)
        for layer in layers
        for part in ("weight", "bias")
    ),
    *(f"lin{number}.model.1.weight" for number in range(5)),
]


@pytest.fixture
def written(tmp_path):
    """Shapes of what a published recipe writes, by name."""

    def write(name):
        with torch.device("meta"):
            settings = TokenizerSettings(data="x", seed=0, **published(name))
            recipe = TokenizerRecipe(settings, 1_281_167, PerceptualNetwork())
            weights = {
                phase.name: {
                    "network": phase.network.state_dict(), "average": phase.averaged.state_dict()
                }
                for phase in recipe.phases
            }  # fmt: skip
            _write_results(tmp_path, recipe, weights, {})
            state = torch.load(tmp_path / "tokenizer.train.pt", weights_only=True)["state_dict"]
            return {name: tuple(tensor.shape) for name, tensor in state.items()}

    return write


def published_shapes(name):
    lines = (GOLDEN / "keys" / f"{name}.tsv").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {key: tuple(map(int, sizes.split())) for key, sizes in pairs}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_training_file_has_as_many_tensors_as_the_official_one(name, written):
    assert len(written(name)) == TOTALS[name]


@pytest.mark.parametrize("name", ["tokenizer-128", "tokenizer-256"])
def test_a_training_file_has_the_official_names_and_shapes(name, written):
    found, tokenizer = written(name), published_shapes(name)
    discriminator = [f"loss.discriminator.{part}" for part in PARAMETERS]
    averaged = ["model_ema." + key.replace(".", "") for key in (*tokenizer, *discriminator)]
    assert set(found) == {
        *tokenizer,
        *discriminator,
        *(f"loss.discriminator.{part}" for part in STATISTICS),
        *(f"loss.perceptual_loss.{part}" for part in LPIPS),
        *averaged,
        "model_ema.decay",
        "model_ema.num_updates",
    }
    assert {key: found[key] for key in tokenizer} == tokenizer
    for key in (*tokenizer, *discriminator):
        assert found["model_ema." + key.replace(".", "")] == found[key]
    assert found["loss.discriminator.main.0.weight"] == (64, 3, 4, 4)
    assert found["loss.discriminator.main.11.weight"] == (1, 512, 4, 4)
    assert found["loss.perceptual_loss.net.slice5.28.weight"] == (512, 512, 3, 3)
    assert found["loss.perceptual_loss.lin4.model.1.weight"] == (1, 512, 1, 1)
