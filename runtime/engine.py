"""An opened model: images to tokens, tokens to images, classes to tokens.

It only needs a spec and a backend: opening.py makes one of a folder on disk, training and export
wrap the PyTorch model in the same class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import InputError
from m2kit.manifest import Manifest
from m2kit.progress import Advance, Begin, silent
from m2kit.runtime.backend import IMAGES_AT_ONCE, Backend
from m2kit.runtime.decoding import Drawn, KnownTokens, generate_positions
from m2kit.runtime.sampling import Sampler, check_image_numbers
from m2kit.sampling import ResolvedSampling, Sampling, SamplingDefaults, is_integer
from m2kit.tokens import check_tokens


class Engine:
    """A model on a backend; a context manager.

    Attributes:
        spec: The architecture.
        info: The manifest it was opened from, None for a model in memory.
        defaults: The model's own guidance, temperature, top_k and top_p; None has none.
        backend: What runs the graphs.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        *,
        defaults: SamplingDefaults | None = None,
        info: Manifest | None = None,
    ) -> None:
        """Wrap an opened backend."""
        self.spec, self.backend, self.defaults, self.info = spec, backend, defaults, info

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the backend."""
        self.backend.close()

    def latents(
        self, images: npt.ArrayLike, *, batch: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Encoder output (B, Z, h, w) float32 of images (B, 3, H, W) in [-1, 1].

        Raises:
            InputError: Wrong shape, size or range.
        """
        checked = self._check_images(images)
        at_once = self._at_once(checked.shape[2:], batch)
        return np.concatenate([self._latents(part) for part in _parts(checked, at_once)])

    def quantize(
        self, latents: npt.NDArray[np.float32], *, batch: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Codes (B, Z, h, w) float32 and tokens (B, h, w, K) int64 of latents (B, Z, h, w)."""
        at_once = self._at_once(self.spec.size_of_grid(latents.shape[2:]), batch)
        parts = [self._quantize(part) for part in _parts(latents, at_once)]
        codes, tokens = zip(*parts, strict=True)
        return np.concatenate(codes), np.concatenate(tokens)

    def encode(
        self, images: npt.ArrayLike, *, batch: int | None = None, begin: Begin = silent
    ) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K) int64 of images (B, 3, H, W) float32 in [-1, 1]; any B.

        At most `batch` images are computed at once, by default as many as is good here; `begin` is
        called when all is checked, with the number of images.

        Raises:
            InputError: Wrong shape, size or range.
        """
        checked = self._check_images(images)
        advance = begin("encoding", len(checked))
        encoded = []
        for part in _parts(checked, self._at_once(checked.shape[2:], batch)):
            encoded.append(self._quantize(self._latents(part))[1])
            advance(len(part))
        return np.concatenate(encoded)

    def decode(
        self, tokens: npt.ArrayLike, *, batch: int | None = None, begin: Begin = silent
    ) -> npt.NDArray[np.float32]:
        """Images (B, 3, H, W) float32, about [-1, 1], of tokens (B, h, w, K), integers; any B.

        `batch` and `begin` as for `encode`.

        Raises:
            InputError: Not integers of that shape, or an id outside its sub-vocabulary.
        """
        spec = self.spec
        checked = check_tokens(tokens, spec.vocabularies, self._grid_axes)
        grid = checked.shape[1:-1]
        spec.tokenizer.check_grid(grid)
        advance = begin("decoding", len(checked))
        decoded = []
        for part in _parts(checked, self._at_once(spec.size_of_grid(grid), batch)):
            codes = spec.tokenizer.codes_from_tokens(part, spec.vocabularies)
            found = self.backend.run(contract.DECODER, {contract.CODES: codes})
            decoded.append(found[contract.IMAGE])
            advance(len(part))
        return np.concatenate(decoded)

    def score(
        self, class_ids: npt.ArrayLike, tokens: npt.ArrayLike, advance: Advance = lambda count: None
    ) -> list[npt.NDArray[np.float32]]:
        """Teacher-forced conditional logits, through the same cached steps as `sample`.

        Args:
            class_ids: (B) integers in 0..classes; `classes` is the unconditional row. Any B.
            tokens: (B, h, w, K) integers.
            advance: Called with 1 after each position of each batch of rows.

        Returns:
            K arrays (B, h, w, V_k) float32.
        """
        spec = self.transformer
        classes = self._check_classes(class_ids, spec.classes)
        checked = check_tokens(tokens, spec.vocabularies, self._grid_axes)
        shape = (len(classes), *spec.grid, spec.sub_tokens)
        if checked.shape != shape:
            raise InputError(f"tokens must have shape {shape}, found {checked.shape}")
        parts = []
        rows = self.backend.largest_rows or 2 * IMAGES_AT_ONCE
        for part, forced in zip(_parts(classes, rows), _parts(checked, rows), strict=True):
            known = KnownTokens(forced, spec)
            steps = self.backend.open_steps(len(part))
            for _ in generate_positions(steps, spec, part, len(part), known):
                advance(1)
            parts.append(known.logits)
        return [
            np.concatenate(logits).reshape(len(classes), *spec.grid, -1)
            for logits in zip(*parts, strict=True)
        ]

    def generate(
        self,
        class_ids: npt.ArrayLike,
        sampling: Sampling | None = None,
        *,
        image_numbers: npt.ArrayLike | None = None,
    ) -> Iterator[Drawn]:
        """Draw one image per class id, one position per iteration.

        Args:
            class_ids: (B) integers in 0..classes-1; B is `largest_draw` at most.
            sampling: How to draw; the model's defaults where it says None.
            image_numbers: (B) integers; an image depends on the seed and its number alone.

        Yields:
            (position, tokens so far), the tokens as (B, h, w, K) int64.

        Raises:
            InputError: A class, image number or sampling option out of range.
        """
        spec = self.transformer
        classes, resolved = self.check_draw(class_ids, sampling)
        numbers = check_image_numbers(image_numbers, len(classes))
        rows = self.row_classes(classes, resolved)
        steps = self.backend.open_steps(len(rows))
        sampler = Sampler(resolved, numbers, spec.positions)
        return generate_positions(steps, spec, rows, len(classes), sampler)

    def sample(
        self,
        class_ids: npt.ArrayLike,
        sampling: Sampling | None = None,
        *,
        image_numbers: npt.ArrayLike | None = None,
        batch: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K) int64 of one image per class id, any B; arguments as for `generate`,
        and `batch`: images drawn at once, at most."""
        classes, _ = self.check_draw(class_ids, sampling)
        numbers = check_image_numbers(image_numbers, len(classes))
        at_once = self.draw_at_once(sampling, batch)
        parts = []
        for part, own in zip(_parts(classes, at_once), _parts(numbers, at_once), strict=True):
            for drawn in self.generate(part, sampling, image_numbers=own):
                tokens = drawn.tokens
            parts.append(tokens)
        return np.concatenate(parts)

    def check_draw(
        self, class_ids: npt.ArrayLike, sampling: Sampling | None
    ) -> tuple[npt.NDArray[np.int64], ResolvedSampling]:
        """Class ids (B) and sampling, checked and resolved.

        Raises:
            InputError: A class or sampling option out of range.
        """
        spec = self.transformer
        classes = self._check_classes(class_ids, spec.classes - 1)
        return classes, (sampling or Sampling()).resolve(spec.sub_tokens, self.defaults)

    def row_classes(
        self, classes: npt.NDArray[np.int64], sampling: ResolvedSampling
    ) -> npt.NDArray[np.int64]:
        """(R) class of every row: of B images, and with guidance the unconditional one for each."""
        if not sampling.guided:
            return classes
        return np.concatenate([classes, np.full_like(classes, self.transformer.classes)])

    def draw_at_once(self, sampling: Sampling | None, batch: int | None = None) -> int:
        """Images that are drawn at once: `batch`, or as many as is good here."""
        largest = self.largest_draw(sampling)
        wanted = _checked_batch(batch) or largest or IMAGES_AT_ONCE
        return wanted if largest is None else min(wanted, largest)

    def largest_draw(self, sampling: Sampling | None = None) -> int | None:
        """Images that `generate` takes at once: half as many with guidance; None is any number."""
        rows = self.backend.largest_rows
        resolved = (sampling or Sampling()).resolve(self.transformer.sub_tokens, self.defaults)
        return rows // 2 if rows is not None and resolved.guided else rows

    @property
    def transformer(self) -> TransformerSpec:
        """The spec of the autoregressive part.

        Raises:
            InputError: The engine holds a tokenizer only.
        """
        if self.spec.transformer is None:
            raise InputError(
                "this engine holds a tokenizer only (encode, decode, reconstruct); generating "
                "needs an engine built from an AR checkpoint"
            )
        return self.spec.transformer

    def _check_classes(self, class_ids: npt.ArrayLike, highest: int) -> npt.NDArray[np.int64]:
        classes = np.asarray(class_ids, dtype=object)
        if classes.ndim != 1 or not len(classes) or not all(map(is_integer, classes)):
            raise InputError(
                f"class_ids must be a non-empty list of integers, found {class_ids!r:.80}"
            )
        for class_id in classes:
            if not 0 <= class_id <= highest:
                raise InputError(
                    f"class {class_id} is out of range: this model has classes 0..{highest}"
                )
        return classes.astype(np.int64)

    def _check_images(self, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
        tokenizer, array = self.spec.tokenizer, np.asarray(images)
        axes = tokenizer.axes
        if array.ndim != 2 + len(axes) or array.shape[1] != 3 or not len(array):
            raise InputError(
                f"images must have shape (B, 3, {', '.join(axes)}), found {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"images must be float32 in [-1, 1], found {array.dtype}")
        size = array.shape[2:]
        if any(n % stride or not n for n, stride in zip(size, tokenizer.strides, strict=True)):
            strides = " x ".join(map(str, dict.fromkeys(tokenizer.strides)))
            raise InputError(
                f"image sides must be multiples of {strides}, found "
                f"{' x '.join(map(str, size))}; resize, crop or frame the images",
                option="--pad",
            )
        if not np.isfinite(array).all() or np.abs(array).max() > 1.0001:
            raise InputError(
                f"images must lie in [-1, 1], found {array.min():.3g}..{array.max():.3g}; "
                "scale 8-bit pixels by x / 127.5 - 1"
            )
        tokenizer.check_grid(self.spec.grid_of_size(size))
        return np.ascontiguousarray(array, np.float32)

    @property
    def _grid_axes(self) -> tuple[str, ...]:
        return tuple(map(str.lower, self.spec.tokenizer.axes))

    def _at_once(self, size: tuple[int, ...], batch: int | None) -> int:
        good = self.backend.images_at_once(size)
        return min(good, _checked_batch(batch) or good)

    def _latents(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.backend.run(contract.ENCODER, {contract.IMAGE: images})[contract.LATENT]

    def _quantize(
        self, latents: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        found = self.backend.run(self.spec.tokenizer.quantizer, {contract.LATENT: latents})
        return found[contract.CODES], found[contract.TOKENS]


def _parts(array: npt.NDArray[Any], at_once: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(array), at_once):
        yield array[start : start + at_once]


def _checked_batch(batch: int | None) -> int | None:
    if batch is not None and (not is_integer(batch) or batch < 1):
        raise InputError(f"batch must be a whole number from 1, found {batch!r:.60}")
    return batch
