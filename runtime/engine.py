"""An opened model: images to tokens, tokens to images, classes to tokens.

It only needs a spec and a backend: opening.py makes one of a folder on disk, training and export
wrap the PyTorch model in the same class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import InputError
from m2kit.manifest import Manifest
from m2kit.progress import Advance, Begin, silent
from m2kit.runtime.arguments import (
    batch_of,
    check_flag,
    check_function,
    classes_of,
    image_numbers_of,
    images_of,
    latents_of,
    tokens_of,
)
from m2kit.runtime.backend import IMAGES_AT_ONCE, Backend
from m2kit.runtime.decoding import (
    Drawn,
    KnownTokens,
    Rows,
    Stopped,
    generate_positions,
    not_finite,
)
from m2kit.runtime.sampling import Sampler
from m2kit.sampling import ResolvedSampling, Sampling, SamplingDefaults

_OPEN = "open it with m2kit.open_engine, in each process that uses it"


class Engine:
    """A model on a backend; a context manager, which closes it.

    An engine lives in one process: it cannot be pickled or copied. Whatever is not finite that a
    graph computes is a BackendError that names the graph.

    Attributes:
        spec: The architecture.
        info: The manifest it was opened from, None for a model in memory.
        defaults: The model's own guidance, temperature, top_k and top_p; None has none.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        *,
        defaults: SamplingDefaults | None = None,
        info: Manifest | None = None,
        finite: bool = True,
    ) -> None:
        """Wrap an opened backend; where `finite` is False, NaN and Inf are handed on."""
        self.spec, self.defaults, self.info = spec, defaults, info
        self._backend: Backend | None = backend
        self._finite = finite

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Release the model; every later use is an InputError. Closing twice is no error."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @property
    def backend(self) -> Backend:
        """What runs the graphs.

        Raises:
            InputError: The engine was closed.
        """
        if self._backend is None:
            raise InputError(f"this engine was closed; {_OPEN}")
        return self._backend

    def __repr__(self) -> str:
        """Which model it is, what runs it and where."""
        name = self.info.name if self.info else "a model in memory"
        transformer, size = self.spec.transformer, self.spec.image_size
        what = [f"{transformer.classes} classes" if transformer else "a tokenizer"]
        what += [f"{' x '.join(map(str, size))} pixels"] if size else []
        if self.info and self.info.build:
            what.append(f"{self.info.build.backend} {self.info.precision.value}")
        what.append("closed" if self._backend is None else f"on {self._backend.device}")
        return f"<m2kit.Engine {name}: {', '.join(what)}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: what it holds belongs to this process.

        Raises:
            InputError: Always.
        """
        raise InputError(f"an engine cannot be pickled or copied; {_OPEN}")

    def latents(self, images: Any, *, batch: int | None = None) -> npt.NDArray[np.float32]:
        """Encoder output (B, Z, h, w) float32 of images; arguments and errors as for `encode`."""
        checked = images_of(self.spec, images)
        at_once = self.compute_at_once(checked.shape[2:], batch)
        return np.concatenate([self._latents(part) for part in _parts(checked, at_once)])

    def quantize(
        self, latents: Any, *, batch: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Codes (B, Z, h, w) float32 and tokens (B, h, w, K) int64 of latents (B, Z, h, w), floats.

        Raises:
            InputError: Wrong shape, no floats, or not finite.
        """
        checked = latents_of(self.spec, latents)
        at_once = self.compute_at_once(self.spec.size_of_grid(checked.shape[2:]), batch)
        parts = [self._quantize(part) for part in _parts(checked, at_once)]
        codes, tokens = zip(*parts, strict=True)
        return np.concatenate(codes), np.concatenate(tokens)

    def encode(
        self, images: Any, *, batch: int | None = None, begin: Begin = silent
    ) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K), of clips (B, t, h, w, K), int64 of any number of images.

        Args:
            images: (B, 3, H, W) floats in [-1, 1]; or 8-bit pixels, as (B, H, W, 3) or (B, 3, H, W)
                uint8 or PIL images of one size. Arrays may be numpy's or torch's. Of a video
                tokenizer clips, with frames T before H, each encoded as it is and never in parts.
            batch: Images computed at once, at most; by default as many as is good here.
            begin: Called when all is checked, with the number of images.

        Raises:
            InputError: Wrong shape, size, type or range.
        """
        check_function(begin, "begin")
        checked = images_of(self.spec, images)
        advance = begin("encoding", len(checked))
        encoded = []
        for part in _parts(checked, self.compute_at_once(checked.shape[2:], batch)):
            encoded.append(self._quantize(self._latents(part))[1])
            advance(len(part))
        return np.concatenate(encoded)

    def decode(
        self,
        tokens: Any,
        *,
        clip: bool = True,
        batch: int | None = None,
        begin: Begin = silent,
    ) -> npt.NDArray[np.float32]:
        """Images (B, 3, H, W), of a video tokenizer clips (B, 3, T, H, W), float32 of any number of
        tokens.

        Args:
            tokens: (B, h, w, K) or (B, t, h, w, K) integers, numpy's or torch's.
            clip: Whether values are clipped to [-1, 1], as pixels are; the decoder leaves it a
                little.
            batch: As for `encode`.
            begin: As for `encode`.

        Raises:
            InputError: Not integers of that shape, or an id outside its sub-vocabulary.
        """
        spec = self.spec
        check_flag(clip, "clip")
        check_function(begin, "begin")
        checked = tokens_of(self.spec, tokens)
        grid = checked.shape[1:-1]
        spec.tokenizer.check_grid(grid)
        advance = begin("decoding", len(checked))
        decoded = []
        for part in _parts(checked, self.compute_at_once(spec.size_of_grid(grid), batch)):
            codes = spec.tokenizer.codes_from_tokens(part, spec.vocabularies)
            decoded.append(self._run(contract.DECODER, {contract.CODES: codes}, contract.IMAGE))
            advance(len(part))
        images = np.concatenate(decoded)
        return np.clip(images, -1, 1, out=images) if clip else images

    def score(
        self, class_ids: Any, tokens: Any, advance: Advance = lambda count: None
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
        check_function(advance, "advance")
        classes = classes_of(class_ids, spec.classes)
        checked = tokens_of(self.spec, tokens)
        shape = (len(classes), *spec.grid, spec.sub_tokens)
        if checked.shape != shape:
            raise InputError(f"tokens must have shape {shape}, found {checked.shape}")
        parts = []
        rows = self.backend.largest_rows or 2 * IMAGES_AT_ONCE
        for part, forced in zip(_parts(classes, rows), _parts(checked, rows), strict=True):
            known = KnownTokens(forced, spec)
            steps = self.backend.open_steps(len(part))
            rows_of = Rows(part, np.arange(len(part)))
            for _ in generate_positions(steps, spec, rows_of, known, finite=self._finite):
                advance(1)
            parts.append(known.logits)
        return [
            np.concatenate(logits).reshape(len(classes), *spec.grid, -1)
            for logits in zip(*parts, strict=True)
        ]

    def generate(
        self,
        class_ids: Any,
        sampling: Sampling | list[Sampling] | None = None,
        *,
        image_numbers: Any = None,
        stopped: Stopped = lambda: (),
    ) -> Iterator[Drawn]:
        """Draw one image per class id, one position per iteration.

        Args:
            class_ids: (B) integers in 0..classes-1; B is `largest_draw` at most.
            sampling: How to draw, all images or each of them; the model's defaults where it says
                None.
            image_numbers: (B) integers; an image depends on the seed and its number alone.
            stopped: Asked before each position for the images, by their place in the batch, that
                are to be drawn no further.

        Yields:
            (position, tokens so far), the tokens as (B, h, w, K) int64.

        Raises:
            InputError: A class, image number or sampling option out of range.
        """
        spec = self.transformer
        check_function(stopped, "stopped")
        classes = classes_of(class_ids, spec.classes - 1)
        each = sampling if isinstance(sampling, list) else [sampling] * len(classes)
        resolved = [self._resolved(one) for one in each]
        if len(resolved) != len(classes):
            raise InputError(
                f"sampling must be one, or one for each of the {len(classes)} images, found "
                f"{len(resolved)}"
            )
        numbers = image_numbers_of(image_numbers, len(classes))
        rows = self.rows_of(classes, resolved)
        steps = self.backend.open_steps(len(rows.classes))
        sampler = Sampler(resolved, numbers, spec.positions)
        return generate_positions(steps, spec, rows, sampler, finite=self._finite, stopped=stopped)

    def sample(
        self,
        class_ids: Any,
        sampling: Sampling | None = None,
        *,
        image_numbers: Any = None,
        batch: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K) int64 of one image per class id, any B; arguments as for `generate`,
        and `batch`: images drawn at once, at most."""
        classes, _ = self.check_draw(class_ids, sampling)
        numbers = image_numbers_of(image_numbers, len(classes))
        at_once = self.draw_at_once(sampling, batch)
        parts = []
        for part, own in zip(_parts(classes, at_once), _parts(numbers, at_once), strict=True):
            for drawn in self.generate(part, sampling, image_numbers=own):
                tokens = drawn.tokens
            parts.append(tokens)
        return np.concatenate(parts)

    def check_draw(
        self, class_ids: Any, sampling: Sampling | None
    ) -> tuple[npt.NDArray[np.int64], ResolvedSampling]:
        """Class ids (B) and sampling, checked and resolved.

        Raises:
            InputError: A class or sampling option out of range.
        """
        spec = self.transformer
        classes = classes_of(class_ids, spec.classes - 1)
        return classes, self._resolved(sampling)

    def rows_of(self, classes: npt.NDArray[np.int64], sampling: Sequence[ResolvedSampling]) -> Rows:
        """The rows of images of such classes (B), each drawn so."""
        return Rows.of(classes, [each.guided for each in sampling], self.transformer.classes)

    def compute_at_once(self, size: tuple[int, ...], batch: int | None = None) -> int:
        """Images of a size in pixels that are encoded or decoded at once: `batch` at most."""
        good = self.backend.images_at_once(size)
        return min(good, batch_of(batch) or good)

    def draw_at_once(self, sampling: Sampling | None, batch: int | None = None) -> int:
        """Images that are drawn at once: `batch`, or as many as is good here."""
        largest = self.largest_draw(sampling)
        wanted = batch_of(batch) or largest or IMAGES_AT_ONCE
        return wanted if largest is None else min(wanted, largest)

    def largest_draw(self, sampling: Sampling | None = None) -> int | None:
        """Images that `generate` takes at once: half as many with guidance; None is any number."""
        rows = self.backend.largest_rows
        guided = self._resolved(sampling).guided
        return rows // 2 if rows is not None and guided else rows

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

    def _resolved(self, sampling: Sampling | None) -> ResolvedSampling:
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(
                f"sampling must be an m2kit.Sampling such as m2kit.Sampling(seed=1), found "
                f"{sampling!r:.60}"
            )
        return (sampling or Sampling()).resolve(self.transformer.sub_tokens, self.defaults)

    def _run(
        self, graph: str, feeds: dict[str, npt.NDArray[np.float32]], output: str
    ) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self.backend.run(graph, feeds)[output]
        if self._finite and not np.isfinite(found).all():
            raise not_finite(graph)
        return found

    def _latents(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self._run(contract.ENCODER, {contract.IMAGE: images}, contract.LATENT)

    def _quantize(
        self, latents: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        found = self.backend.run(self.spec.tokenizer.quantizer, {contract.LATENT: latents})
        return found[contract.CODES], found[contract.TOKENS]


def _parts(array: npt.NDArray[Any], at_once: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(array), at_once):
        yield array[start : start + at_once]
