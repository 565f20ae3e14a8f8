"""What the settings of a run may be: a range for each field, which holds alike for the command
line, for a settings.json and for Python. Nothing here imports torch: what a run cannot be is told
before that has loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from m2kit.cache_file import read_cache_file
from m2kit.config import TransformerSpec
from m2kit.errors import InputError
from m2kit.families.convolutional import GROUPS, ConvolutionalSpec
from m2kit.families.image import ImageTokenizerSpec
from m2kit.families.video import VideoTokenizerSpec
from m2kit.hashes import sha256_of_file
from m2kit.records import Range, Text, checked_fields
from m2kit.runtime.pictures import MOST_SIDE
from m2kit.sampling import Sampling
from m2kit.token_cache import cache_files
from m2kit.training.datasets.dataset import latent_grid
from m2kit.training.datasets.table import cache_path

OF_CROPS = ("size", "place", "flip", "warp", "versions")  # settings that a cache decides
Number = Annotated[int, Range(1, 2_000_000_000)]
Side = Annotated[int, Range(1, MOST_SIDE)]
Bits = Annotated[int, Range(1, 24)]
Versions = Annotated[int, Range(0, 1000)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(1e-9, 1e9)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]
_ANY_GRID = 8, 8  # has space for as many sub-tokens as there may be
Decay = Annotated[float, Range(0, 1 - 1e-9)]  # at 1 an average would stay what it was


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every run has; each recipe adds its own.

    The learning rate rises linearly to its peak, stays there, and then falls, as decay says. All
    times are in epochs, or in steps where the run's length is.

    Attributes:
        data: Name or path of the data set.
        size: Height and width of the images in pixels; None is the pictures' own.
        place: Where training crops are taken.
        flip: Mirror every second training image.
        warp: How much training images are turned, scaled and moved at random, 1 a little.
        one_of_group: An epoch has one picture of each group (such as the skin tones of one emoji).
        epochs: Passes over the training pictures, where `steps` is None.
        steps: Optimizer steps in all.
        batch: Images per step, over all processes.
        learning_rate: The schedule's peak.
        warm_up: Until the peak is reached.
        warm_up_from: The learning rate's first value, as a share of its peak.
        flat: Share of the time after the warm-up at the peak, before a linear or cosine fall.
        decay: How it falls: a line or a half cosine down to `floor`, or to a tenth at each drop.
        floor: The learning rate's last value, as a share of its peak.
        drops: When it falls to a tenth, and a tenth of that.
        clip: Greatest norm of the gradients; 0 is none.
        ema_decay: Of the weights' moving average, per step; 0 keeps no average.
        seed: Of initial weights, order, crops and dropout.
        schedule_length: Epochs or steps over which the learning rate changes, where a resumed run
            was given more: from there on it stays at its lowest. None is all of them.
        log_every: Steps between two rows of metrics.csv.
        validate_every: Steps between two measurements on held-out pictures; None is an epoch.
    """

    data: Text
    size: Side | None = None
    place: Literal["random", "centre"] = "random"
    flip: bool = False
    warp: Share = 0.0
    one_of_group: bool = False
    epochs: Number
    steps: Number | None = None
    batch: Number
    learning_rate: Positive
    warm_up: Weight = 0.0
    warm_up_from: Share = 0.0
    flat: Share = 0.0
    decay: Literal["linear", "cosine", "drops"] = "linear"
    floor: Share = 0.1
    drops: tuple[Positive, ...] = ()
    clip: Weight = 0.0
    ema_decay: Decay
    seed: Seed
    schedule_length: Number | None = None
    log_every: Number = 50
    validate_every: Number | None = None

    @property
    def length(self) -> int:
        """Epochs, or steps where the run is so long."""
        return self.steps or self.epochs

    @property
    def planned_length(self) -> int:
        """Epochs or steps over which the learning rate changes."""
        return self.schedule_length or self.length

    def in_steps(self, time: float, pictures: int) -> int:
        """A time in epochs or steps, of so many training pictures, in steps."""
        return round(time) if self.steps else round(time * pictures / self.batch)

    def __post_init__(self) -> None:
        """Refuse a field that is of another type, out of range, or no finite number, and drops
        without the decay that they are of."""
        for name, value in checked_fields(self, "", InputError).items():
            object.__setattr__(self, name, value)
        if (self.decay == "drops") != bool(self.drops):
            found = f"decay {self.decay} and {len(self.drops) or 'no'} drops"
            raise InputError(
                f"the learning rate falls in drops where it is told when, found {found}; give both "
                "or neither",
                option="--decay, --drops",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings(RunSettings):
    """A tokenizer run.

    Attributes:
        frames: Of a clip, where the tokenizer is of clips of films; None is one of pictures.
        l1_weight: Of the mean absolute difference of pixels in [-1, 1].
        perceptual_weight: Of LPIPS on VGG-16; 0 needs no such network.
        adversary: The discriminator: PatchGAN (of clips in three dimensions), MaskBit's blurring
            one, or none.
        adversary_width: Channels after its first convolution.
        adversary_from: Epoch or step from which on the generator loss counts and the discriminator
            trains.
        adversary_weight: Of the generator loss.
        lecam_weight: Of LeCam regularisation, in the discriminator's loss.
        entropy_weight: Of (mean entropy per position - entropy of the mean code), in nats.
        entropy_temperature: Of the soft assignment.
        entropy_group_bits: None for the exact entropy of the mean, over all codes; else groups of
            so many bits are taken as independent, for codes of too many bits.
        commitment_weight: Of the mean squared distance between latent and code.
        over_processes: Take the entropy of the mean code, and LeCam's averages, over all processes;
            the published recipe takes each process's own.
        freeze_encoder: Train the decoder alone, so that tokens stay what they are; the entropy and
            the commitment then change nothing.
        init_sha256: Of the checkpoint file whose weights the run starts from, if any.
    """

    frames: Number | None = None
    base_channels: Number
    channel_multipliers: tuple[Number, ...]
    blocks_per_level: Number
    code_bits: Number
    l1_weight: Weight = 1.0
    perceptual_weight: Weight = 0.0
    adversary: Literal["none", "patch", "blur"] = "none"
    adversary_width: Number = 64
    adversary_from: Weight = 0.0
    adversary_weight: Weight = 0.1
    lecam_weight: Weight = 0.05
    entropy_weight: Weight
    entropy_temperature: Positive
    entropy_group_bits: Number | None = None
    commitment_weight: Weight
    over_processes: bool = False
    freeze_encoder: bool = False
    init_sha256: Text | None = None

    def __post_init__(self) -> None:
        """Refuse a field out of its range, an architecture that cannot be or that does not fit the
        images, and an encoder that could never learn."""
        RunSettings.__post_init__(self)  # super() knows no class that has slots
        spec = self.spec
        if self.size is not None:
            latent_grid(self.shape(self.size), spec)
        if self.frames is not None and self.one_of_group:
            raise InputError(
                "films are in no groups, of which an epoch could have one each; leave it out",
                option="--one-of-group, --frames",
            )
        if self.frames is not None and self.adversary == "blur":
            raise InputError(
                "the blurring adversary judges pictures alone; a tokenizer of clips takes PatchGAN",
                option="--adversary, --frames",
            )
        if self.adversary == "blur" and self.adversary_width % GROUPS:
            raise InputError(
                f"the blurring discriminator's width must be a multiple of {GROUPS}, found "
                f"{self.adversary_width}",
                option="--adversary-width",
            )
        if self.freeze_encoder and self.init_sha256 is None:
            raise InputError(
                "a frozen encoder needs a checkpoint to start from, whose encoder it is",
                option="--freeze-encoder, --init",
            )

    @property
    def spec(self) -> ConvolutionalSpec:
        """The architecture, in the released models' bit order and with adaptive GroupNorm."""
        fields: dict[str, Any] = {
            "base_channels": self.base_channels,
            "channel_multipliers": self.channel_multipliers,
            "blocks_per_level": self.blocks_per_level,
            "code_bits": self.code_bits,
            "adaptive_norm": True,
            "bit_order": "lsb",
        }
        if self.frames is None:
            return ImageTokenizerSpec(**fields)
        return VideoTokenizerSpec(**fields, frames=self.frames)

    def shape(self, size: int) -> tuple[int, ...]:
        """(H, W) of its pictures of so many pixels, or (T, H, W) of its clips."""
        return (size, size) if self.frames is None else (self.frames, size, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ARSettings(RunSettings):
    """An AR run.

    Attributes:
        bits: Bits of each sub-token; they sum to the tokenizer's code bits.
        weight_decay: Of AdamW, on every weight but those of the norms.
        dropout: On the input embedding and both residual branches.
        class_dropout: Share of images trained under the unconditional class.
        versions: Training images are encoded so many times before training begins, with other crops
            each time, of which every step draws one; 0 encodes the images of each step anew. Of a
            token cache it is the number of its crops.
        guidance: Default guidance scale per sub-token, kept in the checkpoint.
        tokenizer_sha256: Of the tokenizer file.
    """

    width: Number
    heads: Number
    inter_layers: Number
    intra_layers: Number
    ffn_width: Number
    bits: tuple[Bits, ...]
    weight_decay: Share
    dropout: Share
    class_dropout: Share
    versions: Versions
    guidance: tuple[float, ...]
    tokenizer_sha256: Text

    def __post_init__(self) -> None:
        """Refuse a field out of its range, an architecture that cannot be, and guidance that no
        sampling takes."""
        RunSettings.__post_init__(self)  # super() knows no class that has slots
        self.spec(_ANY_GRID, classes=1)
        Sampling(guidance=self.guidance).resolve(len(self.bits), None)

    def spec(self, grid: tuple[int, ...], classes: int) -> TransformerSpec:
        """The architecture on a latent grid (h, w)."""
        return TransformerSpec(
            width=self.width,
            heads=self.heads,
            inter_layers=self.inter_layers,
            intra_layers=self.intra_layers,
            ffn_width=self.ffn_width,
            grid=grid,
            classes=classes,
            vocabularies=tuple(2**count for count in self.bits),
            rope_base=10000.0,
        )


def digest(path: Path) -> str:
    """sha256 of the file to start from.

    Raises:
        InputError: There is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file to start from", option="--init")
    return sha256_of_file(path)


def settings_for(tokenizer_file: Path, **values: Any) -> ARSettings:
    """Settings of a run on a tokenizer file; a token cache decides about its crops where they are
    not given."""
    if not tokenizer_file.is_file():
        raise InputError(
            f"{tokenizer_file}: no such tokenizer file; train one with `m2kit train tokenizer`"
        )
    cache = cache_path(values["data"])
    if cache is not None:
        values = settings_of_cache(cache) | values
    return ARSettings(tokenizer_sha256=sha256_of_file(tokenizer_file), **values)


def settings_of_cache(path: Path) -> dict[str, Any]:
    """The settings of a run that a token cache decides.

    Raises:
        InputError: Its first file is damaged.
    """
    content = read_cache_file(cache_files(path)[0])
    size, made = content.tokens.image_size[0], content.making
    return dict(zip(OF_CROPS, (size, made.place, made.flip, 0.0, made.crops), strict=True))
