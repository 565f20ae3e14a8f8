"""The published recipes: what the released models were trained with, by the names that `--preset`
of export gives their architectures.

Facts from TencentARC/SEED-Voken: configs/Open-MAGVIT2 and the training code; the optimizers' betas
and what no recipe changes are in the recipes themselves. The released V0.1 tokenizers are of
another recipe, which is not published. Of the pre-trained tokenizers the pictures are several sets
of 100 million in all, of the video tokenizer's the films of UCF-101 (arXiv 1212.0402: 13,320, of
which its first split trains on 9,537), of the others ImageNet's 1,281,167, in 1,000 classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m2kit.config import PRESETS
from m2kit.families.convolutional import ConvolutionalSpec


@dataclass(frozen=True, slots=True)
class PublishedData:
    """What a released model was trained on.

    Attributes:
        title: Its name.
        pictures: To train on.
        held_out: Pictures that were measured on; None is not told.
        classes: How many there are; 1 is none.
    """

    title: str
    pictures: int
    held_out: int | None
    classes: int


IMAGENET = PublishedData("ImageNet", 1_281_167, 50_000, 1000)
UCF = PublishedData("UCF-101, the first split's training films", 9_537, 3_783, 101)
_SEVERAL = PublishedData("several sets of pictures with text", 100_000_000, None, 1)
_NOT_ON_IMAGENET = {
    "tokenizer-pretrain-16384": _SEVERAL,
    "tokenizer-pretrain-262144": _SEVERAL,
    "video-128": UCF,
}
_TOKENIZER: dict[str, Any] = {  # neither warm-up nor clipping nor warping: said, as the command
    "size": 256,  # line has other defaults
    "warm_up": 0.0,
    "warm_up_from": 0.0,
    "floor": 0.1,
    "clip": 0.0,
    "warp": 0.0,
    "epochs": 1,
    "batch": 256,
    "learning_rate": 1e-4,
    "ema_decay": 0.999,
    "perceptual_weight": 1.0,
    "adversary": "patch",
    "adversary_weight": 0.1,
    "lecam_weight": 0.05,
    "entropy_weight": 0.1,
    "entropy_temperature": 0.01,
    "commitment_weight": 0.25,
}
_PRETRAINED = {**_TOKENIZER, "place": "centre", "steps": 1_500_000}
_AR: dict[str, Any] = {
    "size": 256,
    "epochs": 300,
    "batch": 768,
    "learning_rate": 3e-4,
    "warm_up": 6.0,
    "warm_up_from": 0.005,
    "flat": 0.05,
    "floor": 0.1,
    "clip": 1.0,
    "warp": 0.0,
    "ema_decay": 0.0,
    "weight_decay": 0.05,
    "dropout": 0.1,
    "class_dropout": 0.1,
    "versions": 0,
}
_TRAINING: dict[str, dict[str, Any]] = {
    "tokenizer-128": {
        **_TOKENIZER,
        "size": 128,
        "epochs": 350,
        "decay": "drops",
        "drops": (250.0, 300.0),
        "lecam_weight": 0.01,
    },
    "tokenizer-256": {**_TOKENIZER, "epochs": 270, "decay": "drops", "drops": (200.0, 250.0)},
    "tokenizer-pretrain-16384": {
        **_PRETRAINED,
        "warm_up": 5000.0,
        "decay": "cosine",
        "floor": 0.01,
        "adversary": "blur",
        "adversary_width": 128,
    },
    "tokenizer-pretrain-262144": {
        **_PRETRAINED,
        "decay": "drops",
        "drops": (800_000.0, 1_000_000.0),
    },
    "video-128": {
        **_TOKENIZER,
        "size": 128,
        "frames": 17,
        "epochs": 2000,
        "batch": 128,
        "warm_up": 2.0,
        "decay": "cosine",
        "floor": 0.01,
        "adversary_weight": 0.3,
    },
    "ar-b": _AR,
    "ar-l": _AR,
    "ar-xl": {**_AR, "epochs": 350, "learning_rate": 2.4e-4, "warm_up": 7.0},
}


def published(name: str) -> dict[str, Any]:
    """The settings of a published run, its architecture among them: all but data and seed, and of
    an AR run the tokenizer's hash.

    Args:
        name: One of `TOKENIZERS` or `TRANSFORMERS`.
    """
    values, preset = dict(_TRAINING[name]), PRESETS[name]
    tokenizer, transformer = preset.spec.tokenizer, preset.spec.transformer
    if transformer is None:
        assert isinstance(tokenizer, ConvolutionalSpec)
        names = ("base_channels", "channel_multipliers", "blocks_per_level", "code_bits")
        return values | {name: getattr(tokenizer, name) for name in names}
    sizes = ("width", "heads", "inter_layers", "intra_layers", "ffn_width")
    architecture = {name: getattr(transformer, name) for name in sizes}
    return values | architecture | {"bits": preset.split, "guidance": preset.guidance}


def published_data(name: str) -> PublishedData:
    """What the published run of that name was trained on."""
    return _NOT_ON_IMAGENET.get(name, IMAGENET)


TOKENIZERS = tuple(name for name in _TRAINING if PRESETS[name].spec.transformer is None)
TRANSFORMERS = tuple(name for name in _TRAINING if name not in TOKENIZERS)
