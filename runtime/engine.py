"""An opened model: images to tokens, tokens to images, classes to tokens.

It only needs a spec and a backend: opening.py makes one of a folder on disk, training and export
wrap the PyTorch model in the same class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from m2kit import contract
from m2kit.config import ModelSpec, TransformerSpec
from m2kit.errors import InputError
from m2kit.manifest import Manifest
from m2kit.progress import Advance
from m2kit.runtime.backend import Backend
from m2kit.runtime.decoding import Drawn, KnownTokens, decode
from m2kit.runtime.sampling import Sampler, Sampling, check_image_numbers, is_integer
from m2kit.tokens import check_tokens, codes_from_tokens


class Engine:
    """A model on a backend; a context manager.

    Attributes:
        spec: The architecture.
        info: The manifest it was opened from, None for a model in memory.
        defaults: Default guidance, temperature, top_k, top_p, one value per sub-token.
        backend: What runs the graphs.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        *,
        defaults: Mapping[str, Any] | None = None,
        info: Manifest | None = None,
    ) -> None:
        """Wrap an opened backend."""
        self.spec, self.info, self.backend = spec, info, backend
        self.defaults = dict(defaults or {})

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the backend."""
        self.backend.close()

    def latents(self, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Encoder output (B, Z, h, w) float32 of images (B, 3, H, W) in [-1, 1].

        Raises:
            InputError: Wrong shape, size or range.
        """
        checked = self._check_images(images)
        latent: npt.NDArray[np.float32] = self.backend.run(
            contract.ENCODER, {contract.IMAGE: checked}
        )[contract.LATENT]
        return latent

    def encode(self, images: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K) int64 of images (B, 3, H, W) float32 in [-1, 1].

        Raises:
            InputError: Wrong shape, size or range.
        """
        latent = self.latents(images)
        tokens: npt.NDArray[np.int64] = self.backend.run(contract.LFQ, {contract.LATENT: latent})[
            contract.TOKENS
        ]
        return tokens

    def decode(self, tokens: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Images (B, 3, H, W) float32, about [-1, 1], of tokens (B, h, w, K).

        Raises:
            InputError: Not integers of that shape, or an id outside its sub-vocabulary.
        """
        checked = check_tokens(tokens, self.spec.bits)
        self._check_latent_grid(checked.shape[1], checked.shape[2])
        codes = codes_from_tokens(checked, self.spec.bits, self.spec.tokenizer.bit_order)
        image: npt.NDArray[np.float32] = self.backend.run(
            contract.DECODER, {contract.CODES: codes}
        )[contract.IMAGE]
        return image

    def score(
        self,
        class_ids: npt.ArrayLike,
        tokens: npt.ArrayLike,
        advance: Advance = lambda count: None,
    ) -> list[npt.NDArray[np.float32]]:
        """Teacher-forced conditional logits, through the same cached steps as `sample`.

        Args:
            class_ids: (B) integers in 0..classes; `classes` is the unconditional row.
            tokens: (B, h, w, K) integers.
            advance: Called with 1 after each position.

        Returns:
            K arrays (B, h, w, V_k) float32.
        """
        spec = self.transformer
        classes = self._check_classes(class_ids, spec.classes)
        checked = check_tokens(tokens, spec.bits)
        if checked.shape[:3] != (len(classes), *spec.grid):
            raise InputError(
                f"tokens must have shape {(len(classes), *spec.grid, len(spec.bits))}, "
                f"found {checked.shape}"
            )
        known = KnownTokens(checked, len(classes), spec)
        steps = self.backend.open_steps(len(classes))
        for _ in decode(steps, spec, classes, len(classes), known):
            advance(1)
        return [array.reshape(len(classes), *spec.grid, -1) for array in known.logits]

    def generate(
        self,
        class_ids: npt.ArrayLike,
        sampling: Sampling | None = None,
        *,
        image_numbers: npt.ArrayLike | None = None,
    ) -> Iterator[Drawn]:
        """Draw one image per class id, one position per iteration.

        Args:
            class_ids: (B) integers in 0..classes-1.
            sampling: How to draw; the model's defaults where it says None.
            image_numbers: (B) integers; an image depends on the seed and its number alone.

        Yields:
            (position, tokens so far), the tokens as (B, h, w, K) int64.

        Raises:
            InputError: A class, image number or sampling option out of range.
        """
        spec = self.transformer
        classes = self._check_classes(class_ids, spec.classes - 1)
        resolved = (sampling or Sampling()).resolve(len(spec.bits), self.defaults)
        numbers = check_image_numbers(image_numbers, len(classes))
        rows = classes
        if resolved.guided:
            rows = np.concatenate([classes, np.full_like(classes, spec.classes)])
        steps = self.backend.open_steps(len(rows))
        sampler = Sampler(resolved, numbers, spec.positions)
        return decode(steps, spec, rows, len(classes), sampler)

    def sample(
        self,
        class_ids: npt.ArrayLike,
        sampling: Sampling | None = None,
        *,
        image_numbers: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.int64]:
        """Tokens (B, h, w, K) int64 of one image per class id; arguments as for `generate`."""
        for drawn in self.generate(class_ids, sampling, image_numbers=image_numbers):
            tokens = drawn.tokens
        return tokens

    def largest_draw(self, sampling: Sampling | None = None) -> int | None:
        """Images that `generate` takes at once: half as many with guidance; None is any number."""
        rows = self.backend.largest_rows
        resolved = (sampling or Sampling()).resolve(len(self.transformer.bits), self.defaults)
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
        array = np.asarray(images)
        if array.ndim != 4 or array.shape[1] != 3 or not len(array):
            raise InputError(f"images must have shape (B, 3, H, W), found {array.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"images must be float32 in [-1, 1], found {array.dtype}")
        if not np.isfinite(array).all() or np.abs(array).max() > 1.0001:
            raise InputError(
                f"images must lie in [-1, 1], found {array.min():.3g}..{array.max():.3g}; "
                "scale 8-bit pixels by x / 127.5 - 1"
            )
        factor = self.spec.tokenizer.downsampling
        height, width = array.shape[2:]
        if height % factor or width % factor or not height or not width:
            raise InputError(
                f"image height and width must be multiples of {factor}, found {height} x {width}; "
                "resize or crop the image, or frame it with --pad"
            )
        self._check_latent_grid(height // factor, width // factor)
        return np.ascontiguousarray(array, np.float32)

    def _check_latent_grid(self, height: int, width: int) -> None:
        factor = self.spec.tokenizer.downsampling
        if self.spec.tokenizer.adaptive_norm and height * width < 2:
            raise InputError(
                f"an image of {height * factor} x {width * factor} pixels is a single latent "
                f"position, and adaptive GroupNorm needs two; use at least {factor} x {2 * factor}"
            )
