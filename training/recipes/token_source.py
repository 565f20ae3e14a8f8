"""Where an AR run has its tokens from: pictures that are encoded here, or a token cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from m2kit.cache_file import ENCODE_AGAIN
from m2kit.config import ModelSpec
from m2kit.errors import InputError
from m2kit.progress import Begin, silent
from m2kit.runtime.codebook import CodebookCount, CodebookReport
from m2kit.token_cache import TokenCache, open_cache
from m2kit.token_file import check_architecture
from m2kit.training.checkpoints.reading import Checkpoint
from m2kit.training.datasets.cached import CachedTokens
from m2kit.training.datasets.crops import Crops
from m2kit.training.datasets.dataset import latent_grid
from m2kit.training.datasets.pictures import SomePictures
from m2kit.training.datasets.table import cache_path
from m2kit.training.datasets.tokens import TokenExamples, encoded
from m2kit.training.evaluation.tokenizer import measured_of
from m2kit.training.models.tokenizer import Tokenizer
from m2kit.training.recipes.examples import picture_examples
from m2kit.training.recipes.settings import RunSettings, settings_of_cache

Tokens = TokenExamples | CachedTokens
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class FromPictures:
    """Pictures of a data set.

    Attributes:
        title: What the checkpoint notes about them.
        classes: Their names, by label.
        grid: Latent positions, (h, w).
        train: Training crops.
        held_out: Held-out crops.
        versions: Training crops are encoded so many times beforehand; 0 leaves them crops.
    """

    title: str
    classes: tuple[str, ...]
    grid: tuple[int, ...]
    train: Crops
    held_out: Crops
    versions: int

    def __len__(self) -> int:
        """Pictures of an epoch."""
        return len(self.train)

    def examples(
        self, tokenizer: Tokenizer, spec: ModelSpec, begin: Begin
    ) -> tuple[Crops | Tokens, Tokens]:
        """What to train on and to measure on."""
        held_out = encoded(tokenizer, spec.vocabularies, self.held_out, 1, begin)
        if not self.versions:
            return self.train, held_out
        return encoded(tokenizer, spec.vocabularies, self.train, self.versions, begin), held_out

    def plain(self, tokenizer: Tokenizer, spec: ModelSpec, begin: Begin) -> Tokens:
        """Training pictures as they are, a hundred thousand at most."""
        whole = self.train.pictures
        crops = Crops(SomePictures(whole, measured_of(len(whole.labels))), self.held_out.cut)
        return encoded(tokenizer, spec.vocabularies, crops, 1, begin)


@dataclass(frozen=True, slots=True)
class FromCache:
    """Tokens of a cache.

    Attributes:
        cache: Opened.
        seed: Of the choice of crops.
        one_of_group: An epoch has one picture of each group.
    """

    cache: TokenCache
    seed: int
    one_of_group: bool

    @property
    def title(self) -> str:
        """What the checkpoint notes about its pictures."""
        return self.cache.making.data

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""
        return self.cache.classes

    @property
    def grid(self) -> tuple[int, ...]:
        """Latent positions, (h, w)."""
        return self.cache.tokens.ids.shape[1:-1]

    def __len__(self) -> int:
        """Pictures of an epoch."""
        groups = self.cache.train.groups
        return len(set(groups)) if self.one_of_group else len(groups)

    def examples(self, _: Tokenizer, spec: ModelSpec, begin: Begin) -> tuple[Tokens, Tokens]:
        """What to train on and to measure on."""
        train = CachedTokens(
            self.cache, self.cache.train, spec, seed=self.seed, one_of_group=self.one_of_group
        )
        return train, CachedTokens(self.cache, self.cache.held_out, spec)

    def plain(self, _: Tokenizer, spec: ModelSpec, begin: Begin) -> Tokens:
        """Training pictures, a hundred thousand at most, by their first crops."""
        whole = self.cache.train
        chosen = measured_of(len(whole.labels))
        some = replace(whole, labels=whole.labels[chosen], places=whole.places[chosen])
        return CachedTokens(self.cache, some, spec)


Source = FromPictures | FromCache


def token_source(
    settings: RunSettings, versions: int, checkpoint: Checkpoint, begin: Begin = silent
) -> Source:
    """Where the run of some settings has its tokens from.

    Args:
        settings: Of the run.
        versions: How many of each picture it is to have.
        checkpoint: The tokenizer's.
        begin: Shows how far the checks of a cache are.

    Raises:
        InputError: There is no such data set, or the tokenizer does not fit it.
    """
    path = cache_path(settings.data)
    if path is None:
        examples = picture_examples(settings)
        grid = latent_grid(examples.train.cut.size, checkpoint.spec.tokenizer)
        return FromPictures(
            examples.title, examples.classes, grid, examples.train, examples.held_out, versions
        )
    cache = open_cache(path, begin)
    own = checkpoint.source.tokenizer_file
    made = cache.making.tokenizer_sha256, cache.making.tokenizer_weights
    if made != own:
        raise InputError(
            f"{path} was encoded with the {made[1]} weights of a tokenizer file of sha256 "
            f"{made[0]:.12}..., not with the {own[1]} weights of this one, {own[0]:.12}...; name "
            f"that file, or {ENCODE_AGAIN}",
            option="--tokenizer",
        )
    check_architecture(path, cache.tokens, checkpoint.spec)
    for name, value in settings_of_cache(path).items():
        found = versions if name == "versions" else getattr(settings, name)
        if found != value:
            raise InputError(
                f"{path} is a token cache, whose crops have {name} {value}, found {found}; leave "
                "it out",
                option=f"--{name}",
            )
    return FromCache(cache, settings.seed, settings.one_of_group)


def codebook_of_tokens(examples: Tokens, spec: ModelSpec) -> CodebookReport:
    """How the tokens of each picture's first version use the codebook."""
    count = CodebookCount(spec.vocabularies, spec.tokenizer.bit_order)
    for tokens, _ in examples.in_order(_AT_ONCE):
        count.add(tokens.numpy())
    return count.report()
